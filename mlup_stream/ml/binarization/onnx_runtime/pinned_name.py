"""Names under which onnxruntime opens files that are open here already.

onnxruntime opens external data by name, and by then the name may lead to another file, or out of the model's folder through a
link, which it refuses. `/proc/self/fd/N` leads to the file that was walked. onnxruntime resolves that link, and refuses what lies
outside of the folder that external data may come from; so the folder is `/`, which is safe only as long as no reference in the
model is its author's.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mlup_stream.delivery.pinned import PinnedFile

__all__ = ["Names", "own_names", "pinned_names"]


class Names(NamedTuple):
    """Names of files, for onnxruntime.

    Attributes:
        folder: The folder that external data may come from.
        locations: The files' names in that folder, by their paths.
        are_pinned: Whether they lead to the open files whatever happens to the files' own names.
    """

    folder: str
    locations: dict[str, str]
    are_pinned: bool

    @property
    def open_everything(self) -> bool:
        """Whether the folder holds every file of the system."""
        return self.folder == "/"


@contextlib.contextmanager
def pinned_names(files: Sequence[PinnedFile]) -> Iterator[Names | None]:
    """Names that lead to the open files, while onnxruntime opens them; None where the system has none.

    Raises:
        OSError: One is a file without a name, and could not be given one.
    """
    pinned = {file.path: file.pinned_name for file in files}
    names = {path: name for path, name in pinned.items() if name is not None}
    if len(names) < len(pinned):
        yield None
    elif all(os.stat(name).st_nlink for name in names.values()):
        yield Names("/", {path: name[1:] for path, name in names.items()}, are_pinned=True)
    else:
        # A file without a name, such as a snapshot, cannot be resolved: for a moment it gets one in a private folder.
        beside = os.path.dirname(os.readlink(next(iter(names.values()))))
        with tempfile.TemporaryDirectory(prefix="mlup-stream-", dir=beside) as folder:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for number, name in enumerate(names.values()):
                    # With a descriptor it is linkat(2), which follows the link in /proc; link(2) does not.
                    os.link(name, str(number), dst_dir_fd=descriptor, follow_symlinks=True)
            finally:
                os.close(descriptor)
            yield Names(folder, {path: str(number) for number, path in enumerate(names)}, are_pinned=True)


def own_names(path: str, *, follow: bool) -> Names:
    """The folder and name by which the user knows the model, links followed or not; to be checked once it was opened."""
    folder, name = os.path.split(os.path.realpath(path) if follow else os.path.abspath(path))
    return Names(folder, {path: name}, are_pinned=False)
