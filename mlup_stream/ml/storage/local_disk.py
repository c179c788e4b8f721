"""A model file, or a folder that is a model, on the local disk: found by path and mask, handed over as a path."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import warnings
from dataclasses import InitVar, dataclass

from mlup_stream.delivery.files import checked_stat, explain_os_error
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import ConfigError, LoadError, ModelNotFoundError, NotAModelFileError
from mlup_stream.ml.storage.base import BaseStorage
from mlup_stream.ml.storage.folder import is_model_folder, models_in, seems

__all__ = ["DiskStorage"]

DEFAULT_SUFFIX = ".pckl"
_MLFLOW = "MLmodel"
"""What is in a folder that MLflow wrote, and says which of its files is the model."""


@dataclass
class DiskStorage(BaseStorage):
    """Finds model files; `load` returns every match, sorted by name, and reads none of them.

    Attributes:
        path_to_files: A file, a folder of files, one that MLflow wrote, or a folder that is itself a model (a SavedModel, an
            unzipped `.keras`). `~` is expanded, symlinks are followed. A file needs no mask.
        file_mask: Which files of the folder: the exact name of one, or a regular expression that is searched in their names.
            By default the names that end in `.pckl`; where there is none, what is a model by its name or content.
        need_load_file: Whether the file is read into memory for the binarizer: `delivery="bytes"` in other words.
        delivery: How the bytes travel: `auto`, `path`, `view`, `stream` or `bytes`.
        files_mask: The old name of `file_mask`.

    Raises:
        ConfigError: Arguments that are not valid, or that contradict each other.
    """

    path_to_files: str | os.PathLike[str]
    file_mask: str | re.Pattern[str] | None = None
    need_load_file: bool | None = None
    delivery: str | Delivery = Delivery.AUTO
    files_mask: InitVar[str | re.Pattern[str] | None] = None

    def __post_init__(self, files_mask: str | re.Pattern[str] | None) -> None:
        if not isinstance(self.path_to_files, (str, os.PathLike)):
            raise _wrong("path_to_files", self.path_to_files, "a path")
        if files_mask is not None:
            if self.file_mask is not None:
                raise _wrong("files_mask", files_mask, "file_mask alone, of which it is the old name, not both")
            warnings.warn("DiskStorage: files_mask is now called file_mask", DeprecationWarning, stacklevel=3)
            self.file_mask = files_mask
        if self.file_mask is not None and not isinstance(self.file_mask, (str, re.Pattern)):
            raise _wrong("file_mask", self.file_mask, "a file name, a regular expression or a compiled pattern")
        if self.need_load_file not in (None, True, False):
            raise _wrong("need_load_file", self.need_load_file, "True or False")
        try:
            self.delivery = Delivery(self.delivery)
        except ValueError as error:
            raise _wrong("delivery", self.delivery, ", ".join(kind.value for kind in Delivery)) from error
        says_both = self.need_load_file is not None and self.delivery is not Delivery.AUTO
        if says_both and self.need_load_file != (self.delivery is Delivery.BYTES):
            agreeing = f"what agrees with need_load_file={self.need_load_file}; leave one out"
            raise _wrong("delivery", self.delivery.value, agreeing)
        self.need_load_file = bool(self.need_load_file) or self.delivery is Delivery.BYTES
        if self.need_load_file:
            self.delivery = Delivery.BYTES

    def load_bytes_single_file(self, path_to_file: str | os.PathLike[str]) -> LoadedFile:
        """The handle of one file, after a look at what it is. With `need_load_file` its `raw_data` is read when first used.

        Raises:
            ModelNotFoundError, ModelPermissionError, NotAModelFileError: As `checked_stat`; also an empty file, and a folder that
                is not a model.
        """
        path = os.fspath(path_to_file)
        status = checked_stat(path)
        if stat.S_ISDIR(status.st_mode):
            if not is_model_folder(path):
                raise NotAModelFileError(
                    f"{path}: expected a model file, found a folder; give a file in it, or the folder of a SavedModel",
                    path=path,
                )
        elif status.st_size == 0:
            raise NotAModelFileError(f"{path}: expected a model file, found an empty one; copy or export it again", path=path)
        return LoadedFile(path=path, delivery=None if self.delivery is Delivery.AUTO else Delivery(self.delivery))

    def load(self) -> list[LoadedFile]:
        path = os.path.expanduser(os.fspath(self.path_to_files))
        if not stat.S_ISDIR(checked_stat(path).st_mode):
            self._check_own_name(path)
            return [self.load_bytes_single_file(path)]
        if self.file_mask is None and is_model_folder(path):
            return [self.load_bytes_single_file(path)]
        if self.file_mask is None and os.path.isfile(os.path.join(path, _MLFLOW)):
            return self._of_mlflow(path)
        return [self.load_bytes_single_file(os.path.join(path, name)) for name in self._matches(path)]

    def _of_mlflow(self, folder: str) -> list[LoadedFile]:
        """What `MLmodel` names: a file, a folder that is a model, or what is found in one that is none."""
        from mlup_stream.ml.storage.mlflow import model_file_of  # which needs a parser of YAML

        try:
            path = os.path.join(folder, model_file_of(folder))
        except LoadError:
            raise
        except OSError as error:
            raise explain_os_error(error, folder) from error
        if not os.path.isdir(path) or is_model_folder(path):
            return [self.load_bytes_single_file(path)]
        names = self._matches(path) if len(os.listdir(path)) > 1 else os.listdir(path)
        return [self.load_bytes_single_file(os.path.join(path, name)) for name in names]

    def _check_own_name(self, path: str) -> None:
        name = os.path.basename(path)
        if self.file_mask is not None and name != self.file_mask and not self._pattern().search(name):
            raise ModelNotFoundError(
                f"{path}: is a file whose name does not match file_mask {self._mask_text!r}; a file given directly needs no mask",
                path=path,
            )

    def _matches(self, folder: str) -> list[str]:
        try:
            entries = sorted(os.listdir(folder))
        except OSError as error:
            raise explain_os_error(error, folder) from error
        if self.file_mask is None:
            # A folder among the files is a candidate only if it is a model.
            files = [name for name in entries if not _is_plain_folder(os.path.join(folder, name))]
            names = [name for name in files if name.endswith(DEFAULT_SUFFIX)] or models_in(folder, files)
        elif self.file_mask in entries:
            return [str(self.file_mask)]
        else:
            names = [name for name in entries if self._pattern().search(name)]
        found = [name for name in names if not _is_plain_folder(os.path.join(folder, name))]
        if not found:
            raise self._not_found(folder, entries)
        return found

    def _not_found(self, folder: str, entries: list[str]) -> LoadError:
        if self.file_mask is None:
            wanted = f"a name ending in {DEFAULT_SUFFIX!r}, or a file that is recognised as a model"
        else:
            wanted = f"a name in which {self._mask_text!r} is found"
            if fnmatch.filter(entries, self._mask_text):
                wanted += f" (a regular expression; as the glob that it looks like, write {fnmatch.translate(self._mask_text)!r})"
        shown = ", ".join(entries[:10]) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")
        what = f" ({seems(folder)})" if seems(folder) else ""
        return ModelNotFoundError(
            f"{folder}: expected {wanted}, found {shown or 'an empty folder'}{what}; set file_mask", path=folder
        )

    @property
    def _mask_text(self) -> str:
        return self.file_mask.pattern if isinstance(self.file_mask, re.Pattern) else str(self.file_mask)

    def _pattern(self) -> re.Pattern[str]:
        if isinstance(self.file_mask, re.Pattern):
            return self.file_mask
        try:
            return re.compile(self._mask_text)
        except re.error as error:
            glob = "looks like a glob; " if self._mask_text.startswith("*") else ""
            raise _wrong(
                "file_mask", self.file_mask, f"a regular expression ({glob}{error}), such as {_suggested(self._mask_text)!r}"
            ) from error


def _suggested(glob: str) -> str:
    return re.escape(glob.lstrip("*")) + "$"


def _wrong(field: str, value: object, allowed: str) -> ConfigError:
    message = f"storage_kwargs: DiskStorage: {field}={value!r} is not valid; expected {allowed}"
    return ConfigError(message, field=field, value=value, allowed=allowed)


def _is_plain_folder(path: str) -> bool:
    return os.path.isdir(path) and not is_model_folder(path)
