"""A process that is sampled from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlup_stream.memory import outside
from mlup_stream.memory.outside import Sample, Sampler
from mlup_stream.units import MIB

SLACK_BYTES = 2 * MIB  # of the kernel's per-CPU counters and the interpreter's own objects

ALLOCATES = f"x = bytearray({64 * MIB}); x[::4096] = bytes(len(x[::4096]))"
TOUCHES = "import mmap; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096])"


@contextmanager
def _child(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, then `code` when a line comes, then says so and waits for another."""
    source = f"import sys; sys.stdin.readline()\n{code}\nprint(flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", source, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def _go(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"\n")
    child.stdin.flush()
    child.stdout.readline()


def _seen_after(sampler: Sampler) -> Sample:
    """A sample that began after now."""
    now = time.monotonic()
    while not sampler.samples or sampler.samples[-1].seconds <= now:
        assert sampler._thread.is_alive(), "the process has ended"
        time.sleep(0.01)
    return sampler.samples[-1]


def _taken(code: str, *arguments: str) -> dict[str, int]:
    """What `code` takes of each figure while its process waits at its end."""
    with _child(code, *arguments) as child, Sampler(child.pid, shares=True) as sampler:
        time.sleep(0.2)  # until the interpreter has started; more of it would be counted as taken
        before = _seen_after(sampler)
        _go(child)
        time.sleep(2 * outside._SHARES_INTERVAL_SECONDS)
        after = _seen_after(sampler)
    return {name: (getattr(after, name) or 0) - (getattr(before, name) or 0) for name in Sample._fields if name != "seconds"}


@pytest.mark.skipif(not outside.is_told_apart(), reason="this system does not tell private memory apart")
def test_an_allocation_is_private_and_a_touched_map_is_not(tmp_path: Path) -> None:
    """A reading of private memory follows 64 MiB that are allocated, and ignores 512 MiB of a file that are touched."""
    took = _taken(ALLOCATES)
    assert took["anon_bytes"] == pytest.approx(64 * MIB, abs=SLACK_BYTES)
    assert took["rss_bytes"] == pytest.approx(64 * MIB, abs=2 * SLACK_BYTES)
    assert took["pss_bytes"] == pytest.approx(64 * MIB, abs=2 * SLACK_BYTES)
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(512 * MIB)
    took = _taken(TOUCHES, str(path))
    assert took["anon_bytes"] <= SLACK_BYTES
    assert took["file_bytes"] == pytest.approx(512 * MIB, abs=SLACK_BYTES)


def test_a_process_that_ends_ends_the_samples() -> None:
    """The thread stops by itself, and what was seen before stays."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"]) as child, Sampler(child.pid) as sampler:
        child.wait()
        sampler._thread.join(5)
        assert not sampler._thread.is_alive()
    assert sampler.highest("rss_bytes")


def test_what_is_thinned_out_keeps_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it runs, the samples are bounded and the highest is among them."""
    monkeypatch.setattr(outside, "_KEPT_SAMPLES", 8)
    monkeypatch.setattr(outside, "_INTERVAL_SECONDS", 0)
    sizes = iter([*range(30), 1000, *range(30)])
    sampler = Sampler(0)

    def read() -> Sample | None:
        size = next(sizes, None)
        return None if size is None else Sample(float(size), size, size, 0, 0)

    monkeypatch.setattr(outside, "is_told_apart", lambda: True)
    monkeypatch.setattr(sampler, "_of_proc", read)
    sampler._run()
    assert len(sampler.samples) < 16
    assert sampler.highest("anon_bytes") == 1000


def test_without_proc_psutil_says_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """RSS, and its USS for private memory where shares are asked for."""
    monkeypatch.setattr(outside, "is_told_apart", lambda: False)
    with _child("") as child, Sampler(child.pid, shares=True) as sampler:
        sample = _seen_after(sampler)
    assert sample.rss_bytes
    assert sample.anon_bytes
    assert sample.rss_bytes >= sample.anon_bytes
    assert sample.file_bytes is None
