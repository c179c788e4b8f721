"""What a pool hands out: a model that stays loaded until it is released."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlup_stream.errors import ModelLoadError
from mlup_stream.ml.report import LoadReport

if TYPE_CHECKING:
    from mlup_stream.ml.pool import ModelPool
    from mlup_stream.ml.pool_models import Copy, PoolModel

__all__ = ["PooledModel", "Use"]


class PooledModel:
    """A model of a pool, held until `release`. It ends a `with` block, or an `async with` block, that it is used in.

    Attributes:
        name: Its name in the pool.
    """

    def __init__(self, pool: ModelPool, name: str, copy: Copy) -> None:
        self.name = name
        self._pool = pool
        self._copy: Copy | None = copy
        self._pid = os.getpid()

    @property
    def _ml(self) -> PoolModel:
        if self._copy is None:
            raise ModelLoadError(f"{self.name}: it was released; take it from the pool again")
        return self._copy.ml

    @property
    def model(self) -> Any:
        """The model object. Whoever keeps it after `release` keeps its memory, and the pool does not know.

        Raises:
            ModelLoadError: It was released.
        """
        return self._ml.model_obj

    @property
    def report(self) -> LoadReport:
        """What loading it did and took."""
        report = self._ml.report
        assert report is not None  # a load that returned has one
        return report

    def predict(self, **predict_data: Any) -> Any:
        """See `MLupModel.predict`."""
        return self._ml.predict(**predict_data)

    def release(self) -> None:
        """Gives it back to the pool, which may let go of it then. Idempotent."""
        copy, self._copy = self._copy, None
        if copy is not None and self._pid == os.getpid():  # in a forked child it is not the pool's any more
            self._pool._release(copy)

    def __enter__(self) -> PooledModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.release()

    async def __aenter__(self) -> PooledModel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.release()

    def __del__(self) -> None:
        copy = getattr(self, "_copy", None)
        if copy is not None and self._pid == os.getpid():
            # Not released here: a finalizer may run in the thread that holds the pool's lock.
            self._pool._dropped.append(copy)
            words = f"{self.name}: a model of a pool was not released; use it in a with block"
            warnings.warn(words, ResourceWarning, stacklevel=2)


class Use:
    """What `ModelPool.use` returns: the model is taken when its block begins."""

    def __init__(self, pool: ModelPool, name: str) -> None:
        self._pool = pool
        self._name = name
        self._taken: PooledModel | None = None

    def __enter__(self) -> PooledModel:
        self._taken = self._pool._take(self._name)
        return self._taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._taken is not None:
            self._taken.release()

    async def __aenter__(self) -> PooledModel:
        self._taken = await self._pool.get(self._name)
        return self._taken

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.__exit__(kind, error, trace)
