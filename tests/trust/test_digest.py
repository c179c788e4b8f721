"""A file is the one that somebody has vouched for, or it is not loaded."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream.errors import ConfigError, IntegrityError
from mlup_stream.trust import digest as module

CONTENT = pickle.dumps({"a": list(range(1000))})
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "1")
    path = tmp_path / "model.pkl"
    path.write_bytes(CONTENT)
    time.sleep(0.2)  # after which another write has another time, so that what matched is remembered
    return path


@pytest.mark.parametrize("delivery", ["view", "stream", "path", "bytes"])
@pytest.mark.parametrize("snapshot", [False, True])
def test_only_the_file_that_was_meant_loads(path: Path, delivery: Any, snapshot: bool) -> None:
    """By every delivery; the error has both digests."""
    assert mlup.load(path, sha256=DIGEST, delivery=delivery, snapshot=snapshot)["a"][5] == 5
    assert mlup.load(path, sha256=f"sha256:{DIGEST.upper()}", delivery=delivery, snapshot=snapshot)["a"][5] == 5
    with pytest.raises(IntegrityError, match=f"expected the content of sha256 {OTHER}, found {DIGEST}") as caught:
        mlup.load(path, sha256=OTHER, delivery=delivery, snapshot=snapshot)
    assert (caught.value.expected, caught.value.found) == (OTHER, DIGEST)


@pytest.mark.parametrize(
    ("name", "text", "is_meant"),
    [
        ("model.pkl.sha256", f"{DIGEST}  model.pkl\n", True),
        ("model.pkl.sha256", DIGEST, True),
        ("model.pkl.sha256", f"SHA256 (model.pkl) = {DIGEST}\n", True),
        ("SHA256SUMS", f"{OTHER}  other.pkl\n{DIGEST} *./model.pkl\n", True),
        ("SHA256SUMS", f"{OTHER}  model.pkl\n{DIGEST}  other.pkl\n", False),
        ("model.pkl.sha256", f"{OTHER}  model.pkl\n", False),
    ],
)
def test_what_lies_beside_it_says_the_digest(path: Path, name: str, text: str, is_meant: bool) -> None:
    """As `sha256sum` writes it, in either style, of one file or of many."""
    (path.parent / name).write_text(text)
    if is_meant:
        assert mlup.load(path, sha256="beside")["a"][5] == 5
    else:
        with pytest.raises(IntegrityError, match=OTHER):
            mlup.load(path, sha256="beside")


def test_a_list_that_does_not_name_it_is_none(path: Path) -> None:
    """No digest is no match; a list of many that names nobody says nothing of anybody."""
    (path.parent / "SHA256SUMS").write_text(f"{DIGEST}\n{DIGEST}  my model.pkl\n")
    with pytest.raises(IntegrityError, match=r"expected its digest in model\.pkl\.sha256 or SHA256SUMS beside it, found none"):
        mlup.load(path, sha256="beside")


def test_what_matched_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start hashes nothing; another digest, or a file that changed, is hashed."""
    reads = []

    def counted(artifact: Any, real: Any = module._digest_of) -> str:
        reads.append(artifact.name)
        return str(real(artifact))

    monkeypatch.setattr(module, "_digest_of", counted)
    for _ in range(3):
        mlup.load(path, sha256=DIGEST)
    assert len(reads) == 1
    with pytest.raises(IntegrityError):
        mlup.load(path, sha256=OTHER)
    assert len(reads) == 2
    before = os.stat(path)
    path.write_bytes(CONTENT[:-2] + b"x" + CONTENT[-1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError):
        mlup.load(path, sha256=DIGEST)
    assert len(reads) == 3


def test_content_has_a_digest_too(path: Path) -> None:
    """Bytes and file objects; a folder has none."""
    assert mlup.load(CONTENT, sha256=DIGEST, binarization_type="pickle")["a"][5] == 5
    with open(path, "rb") as file, pytest.raises(IntegrityError):
        mlup.load(file, sha256=OTHER, binarization_type="pickle")
    with pytest.raises(IntegrityError, match="needs a file with a path"):
        mlup.load(CONTENT, sha256="beside", binarization_type="pickle")


@pytest.mark.parametrize("wrong", ["", "abc", DIGEST[:-1], DIGEST + "0", "md5:" + DIGEST, 5])
def test_a_wrong_digest_is_told_as_a_setting(path: Path, wrong: Any) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError, match="sha256"):
        mlup.load(path.with_name("none.pkl"), sha256=wrong)
