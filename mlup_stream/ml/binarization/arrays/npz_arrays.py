"""What the archive of an `.npz` file is loaded as: its arrays, those in the mapped file made when they are asked for, and no open
file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

__all__ = ["Later", "NpzArrays"]

_SUFFIX = ".npy"
_SHOWN_NAMES = 5


class Later:
    """An array that is made when it is first asked for, from bytes in the mapped file."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class NpzArrays(Mapping[str, Any]):
    """The arrays by name, to be read as `numpy.load` lets one read an `NpzFile`; each is made once, and stays.

    Args:
        members: By their names in the archive, in its order; or a `Later`. They are called so, and without `.npy`.
        source: What was loaded, for `repr`.

    Attributes:
        files: The names without `.npy`.
        f: The arrays as attributes: `model.f.weights`.
    """

    def __init__(self, members: Mapping[str, Any], source: str = "object") -> None:
        self._arrays = {name.removesuffix(_SUFFIX): array for name, array in members.items()}
        self._full_names = frozenset(members)
        self._source = source
        self._lock = threading.Lock()
        self.f = _Attributes(self)

    def __reduce__(self) -> Any:
        named = {name if name in self._full_names else f"{name}{_SUFFIX}": self[name] for name in self._arrays}
        return type(self), (named, self._source)

    @property
    def files(self) -> list[str]:
        return list(self._arrays)

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(f"{key} is not a file in the archive")
        name = key if key in self._arrays else key.removesuffix(_SUFFIX)
        with self._lock:
            found = self._arrays[name]
            if isinstance(found, Later):
                found = self._arrays[name] = found.make()
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._arrays or key in self._full_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        shown = ", ".join(self.files[:_SHOWN_NAMES]) + ("..." if len(self) > _SHOWN_NAMES else "")
        return f"{type(self).__name__} {self._source!r} with keys: {shown}"

    def close(self) -> None:
        """Does nothing: no file is open. Here for those who close an `NpzFile`."""

    def __enter__(self) -> NpzArrays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


class _Attributes:
    """The arrays as attributes."""

    def __init__(self, arrays: NpzArrays) -> None:
        self._arrays = arrays

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._arrays[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __dir__(self) -> list[str]:
        return self._arrays.files
