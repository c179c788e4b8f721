"""Files that would run something: whatever looks at a file before it is loaded imports and calls nothing that it names.

Each file would make a folder (`canary`) if its code ran, or import a module (`sideeffect`) that makes one when it is imported.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream.constants import LoadedFile
from mlup_stream.errors import MLupError, PackError
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.ml.binarization.detection import formats_of
from mlup_stream.ml.inspection import inspect
from mlup_stream.pack import pack

joblib = pytest.importorskip("joblib", reason="writes the joblib files")
numpy = pytest.importorskip("numpy", reason="the arrays")

_ARRAY = pickle.dumps(numpy.arange(20_000.0), 4)[2:-1]
"""Something to gain by packing, without its PROTO and STOP."""


def _call(canary: str, name: bytes = b"os\nmkdir\n", call: bytes = b"R") -> bytes:
    argument = canary.encode()
    return b"c" + name + b"X" + len(argument).to_bytes(4, "little") + argument + b"\x85" + call


def _dotted(canary: str) -> bytes:
    names = b"".join(b"\x8c" + bytes([len(each)]) + each for each in (b"os", b"path.os.mkdir"))
    argument = canary.encode()
    return names + b"\x93" + b"\x8c" + bytes([len(argument)]) + argument + b"\x85R"


WAYS: dict[str, Callable[[str], bytes]] = {
    "reduce": _call,
    "newobj": lambda canary: _call(canary, call=b"\x81"),
    "inst": lambda canary: b"(V" + canary.encode() + b"\nios\nmkdir\n",
    "obj": lambda canary: b"(cos\nmkdir\nV" + canary.encode() + b"\no",
    "stack_global": lambda canary: b"\x8c\x02os\x8c\x05mkdir\x93" + _call(canary)[len(b"cos\nmkdir\n") :],
    "dotted name": _dotted,
    "python 2 name": lambda canary: _call(canary, b"posix\nmkdir\n"),
    "import": lambda canary: b"csideeffect\nanything\n",
    "import of joblib's name": lambda canary: b"csideeffect\nNumpyArrayWrapper\n",
    "import below a library": lambda canary: b"csideeffect.sklearn\nanything\n",
    "getattr": lambda canary: b"cbuiltins\ngetattr\ncos\npath\nX\x05\0\0\0mkdir\x86R",
    "extension code": lambda canary: b"\x82\xf0" + _call(canary)[len(b"cos\nmkdir\n") :],
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that is not to be made; the current folder has modules that make it, also under a library's name."""
    canary = tmp_path / "canary"
    makes_it = f"import os\nos.mkdir({str(canary)!r})\n"
    for name in ("sideeffect.py", "xgboost.py", "lightgbm.py"):
        (tmp_path / name).write_text(makes_it)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield canary
    assert "sideeffect" not in set(sys.modules) - before
    assert not canary.exists()


def _pickle(way: str, canary: Path, protocol: int) -> bytes:
    return b"\x80" + bytes([protocol]) + WAYS[way](str(canary)) + b"0" + _ARRAY + b"."


def _joblib(way: str, canary: Path, protocol: int) -> bytes:
    written = io.BytesIO()
    joblib.dump(numpy.arange(20_000.0), written, protocol=protocol)
    data = written.getvalue()
    return data[:2] + WAYS[way](str(canary)) + b"0" + data[2:]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("write", [_pickle, _joblib], ids=["pickle", "joblib"])
@pytest.mark.parametrize("way", WAYS)
def test_looking_at_a_file_runs_nothing_of_it(
    way: str, write: Callable[[str, Path, int], bytes], protocol: int, canary: Path, tmp_path: Path
) -> None:
    """Detection, `inspect`, the plan and `pack` each end in an answer or a typed error, and nothing was imported or called."""
    path = tmp_path / f"m.{write.__name__.strip('_')}"
    path.write_bytes(write(way, canary, protocol))
    formats_of(LoadedFile(path=path))
    looks: list[Callable[[], Any]] = [
        lambda: inspect(path),
        lambda: _planned(path),
        lambda: pack(path, tmp_path / "packed", force=True),
    ]
    for look in looks:
        try:
            look()
        except MLupError as error:
            assert str(path) in str(error) or "extension" in str(error)  # noqa: PT017
        assert not canary.exists()


def _planned(path: Path) -> None:
    model = mlup.MLupModel(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}))
    with MemoryGovernor(None, learned=False) as governor:
        model.plan(governor)


def test_extension_codes_of_this_process_are_not_called(canary: Path, tmp_path: Path) -> None:
    """The unpickler in C answers for a registered code out of its cache, past `find_class`: nothing is followed then."""
    import os

    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf0.") is os.mkdir  # cached from here on
        for write in (_pickle, _joblib):
            path = tmp_path / f"m.{write.__name__.strip('_')}"
            path.write_bytes(write("extension code", canary, 4))
            pack(path, tmp_path / "packed", force=True)
            assert not canary.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_pickle_whose_arrays_are_text_is_packed_only_by_who_trusts_it(protocol: int, tmp_path: Path) -> None:
    """Only running its code makes arrays of it: refused, with the setting that allows it; allowed, it works."""
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(numpy.arange(20_000.0), protocol))
    with pytest.raises(PackError, match="--trust full"):
        pack(path, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    pack(path, tmp_path / "packed", trust="full")
    assert (mlup.load(tmp_path / "packed") == numpy.arange(20_000.0)).all()
    with pytest.raises(MLupError, match="'none' or 'full'"):
        pack(path, tmp_path / "packed", trust="some")  # type: ignore[arg-type]  # what a caller may get wrong
