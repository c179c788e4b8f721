"""What the archive of an `.npz` file is loaded as: all of its arrays, and no open file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

__all__ = ["NpzArrays"]

_SUFFIX = ".npy"
_SHOWN_NAMES = 5


class NpzArrays(Mapping[str, Any]):
    """The arrays by name, to be read as `numpy.load` lets one read an `NpzFile`; they are all there already.

    Args:
        members: By their names in the archive, in its order. They are called so, and without `.npy`.
        source: What was loaded, for `repr`.

    Attributes:
        files: The names without `.npy`.
        f: The arrays as attributes: `model.f.weights`.
    """

    def __init__(self, members: Mapping[str, Any], source: str = "object") -> None:
        self._arrays = {name.removesuffix(_SUFFIX): array for name, array in members.items()}
        self._full_names = frozenset(members)
        self._source = source
        self.f = _Attributes(self._arrays)

    @property
    def files(self) -> list[str]:
        return list(self._arrays)

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(f"{key} is not a file in the archive")
        return self._arrays[key if key in self._arrays else key.removesuffix(_SUFFIX)]

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
    """The items of a dict as attributes."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.__dict__ = arrays
