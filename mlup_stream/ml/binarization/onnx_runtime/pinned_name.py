"""Names under which onnxruntime opens the file that a view has open.

onnxruntime opens external data by name, and by then the name may lead to another file. `/proc/self/fd/N` leads to the file that
was walked even when its own name does not any more. onnxruntime resolves that link, and refuses what lies outside of the folder
that external data may come from; so the folder is `/`, which is safe only as long as no reference in the model is its author's.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from mlup_stream.delivery.files import FileIdentity
from mlup_stream.delivery.view import View
from mlup_stream.errors import ModelFileChanged

__all__ = ["Name", "check_name", "leads_to", "named", "own_name"]

_LINK_NAME = "model.onnx"


class Name(NamedTuple):
    """A name of the view's file.

    Attributes:
        folder: The folder that external data may come from.
        location: The name in that folder.
        is_pinned: Whether it leads to the view's file whatever happens to the file's own name.
    """

    folder: str
    location: str
    is_pinned: bool

    @property
    def opens_everything(self) -> bool:
        """Whether the folder holds every file of the system."""
        return self.folder == "/"


@contextlib.contextmanager
def named(view: View, *, beside: bool) -> Iterator[Name]:
    """A name of the view's file, while onnxruntime opens it.

    Args:
        view: Of a file.
        beside: Whether the model refers to other files, by names of its author's: onnxruntime has to confine these to the
            model's folder, and the model's file is named in it as well.

    Raises:
        OSError: It is a file without a name, and could not be given one.
    """
    pinned = view.pinned_path
    if beside or not pinned.startswith("/proc/"):
        yield own_name(view, follow=not beside)
    elif os.stat(pinned).st_nlink:
        yield Name("/", pinned[1:], is_pinned=True)
    else:
        # A file without a name, such as a snapshot, cannot be resolved: for a moment it gets one in a private folder.
        with tempfile.TemporaryDirectory(prefix="mlup-stream-", dir=os.path.dirname(os.readlink(pinned))) as folder:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # With a descriptor it is linkat(2), which follows the link in /proc; link(2) does not.
                os.link(pinned, _LINK_NAME, dst_dir_fd=descriptor, follow_symlinks=True)
            finally:
                os.close(descriptor)
            yield Name(folder, _LINK_NAME, is_pinned=True)


def own_name(view: View, *, follow: bool) -> Name:
    """The folder and name by which the user knows the file, links followed or not; to be checked once it was opened."""
    assert view.path is not None
    return Name(*os.path.split(os.path.realpath(view.path) if follow else os.path.abspath(view.path)), is_pinned=False)


def leads_to(path: str, view: View) -> bool:
    """Whether the file at `path` is the view's, as it was."""
    try:
        return FileIdentity.of(os.stat(path)) == view.identity
    except OSError:
        return False


def check_name(view: View) -> None:
    """Makes sure that the file that was opened by its own name is the view's.

    Raises:
        ModelFileChanged: It is another one by now, or was changed.
    """
    view.check()
    assert view.path is not None
    if not leads_to(view.path, view):
        raise ModelFileChanged(f"{view.path}: replaced or removed while it was being loaded; load it again", path=view.path)
