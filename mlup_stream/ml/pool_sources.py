"""From where a pool has its names: a mapping, a folder, or a storage."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from mlup_stream.config import Config
from mlup_stream.constants import StorageType
from mlup_stream.delivery.files import explain_os_error
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import ConfigError, ModelNotFoundError
from mlup_stream.ml.storage.base import BaseStorage
from mlup_stream.ml.storage.folder import is_model_folder, models_in
from mlup_stream.registry import storage_class

__all__ = ["Names", "names_of"]


class Names:
    """The configurations of a mapping, which has them all from the start."""

    def __init__(self, confs: Mapping[str, Config]) -> None:
        self._confs = dict(confs)

    def listed(self) -> tuple[str, ...]:
        """Every name that there is now."""
        return tuple(self._confs)

    def conf(self, name: str) -> Config:
        """How the model of that name is loaded.

        Raises:
            ModelNotFoundError: There is none.
        """
        if name not in self._confs:
            raise unknown(name, self._confs)
        return self._confs[name]


class _Folder(Names):
    """The models that lie in a folder, each under the name of its file; one that comes later is found then."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.listed()

    def listed(self) -> tuple[str, ...]:
        folder = self._folder
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise explain_os_error(error, folder) from error
        paths = {name: os.path.join(folder, name) for name in names}
        files = [name for name, path in paths.items() if not os.path.isdir(path) or is_model_folder(path)]
        return tuple(models_in(folder, files))

    def conf(self, name: str) -> Config:
        if name not in self.listed():
            raise unknown(name, self.listed())
        return _on_disk(os.path.join(self._folder, name))


class _Storage(Names):
    """What a storage finds, each under the name of its file."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.listed()

    def listed(self) -> tuple[str, ...]:
        return tuple(_file_name(each) for each in self._storage.load())

    def conf(self, name: str) -> Config:
        if name not in self.listed():
            raise unknown(name, self.listed())
        return Config(storage_type=_OneOf, storage_kwargs={"storage": self._storage, "name": name})


@dataclasses.dataclass
class _OneOf(BaseStorage):
    """One of the files that another storage finds."""

    storage: Any
    name: str

    def load_bytes_single_file(self, *args: Any, **kwargs: Any) -> Any:
        return self.storage.load_bytes_single_file(*args, **kwargs)

    def load(self) -> list[LoadedFile]:
        return [LoadedFile.of(each) for each in self.storage.load() if _file_name(each) == self.name]


def names_of(models: Any) -> Names:
    """The names in `models`: a mapping to paths or configurations, the path of a folder, or a storage.

    Raises:
        ConfigError: It is none of these, or a model that is in memory already.
    """
    if isinstance(models, Mapping):
        return Names({str(name): _conf(str(name), each) for name, each in models.items()})
    if isinstance(models, (str, os.PathLike)):
        return _Folder(os.path.expanduser(os.fspath(models)))
    if callable(getattr(models, "load", None)) and not isinstance(models, type):
        return _Storage(models)
    raise _wrong("models", models, "a mapping of names to paths or Configs, the path of a folder, or a storage object")


def _conf(name: str, value: Any) -> Config:
    if isinstance(value, (str, os.PathLike)):
        return _on_disk(value)
    if not isinstance(value, Config):
        raise _wrong(f"models[{name!r}]", value, "a path or a Config")
    if getattr(storage_class(value.storage_type), "gives_models", False):
        raise _wrong(f"models[{name!r}]", value, "a Config whose storage finds a file: a model that is given cannot be let go of")
    return value


def _on_disk(path: str | os.PathLike[str]) -> Config:
    return Config(storage_type=StorageType.disk, storage_kwargs={"path_to_files": path})


def _file_name(found: Any) -> str:
    loaded = LoadedFile.of(found)
    if loaded.path is None:
        raise ConfigError(f"models: expected a storage whose files have paths, of which names are made, found {loaded.name}")
    return os.path.basename(os.path.normpath(loaded.path))


def unknown(name: str, known: Iterable[str]) -> ModelNotFoundError:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    listed = f"expected one of {', '.join(known[:10])}{f' and {len(known) - 10} more' if len(known) > 10 else ''}"
    hint = f"did you mean {near[0]!r}?" if near else listed if known else "it has none"
    return ModelNotFoundError(f"the pool has no model {name!r}; {hint}", path=name)


def _wrong(field: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{field}={value!r} is not valid; expected {expected}", field=field, value=value)
