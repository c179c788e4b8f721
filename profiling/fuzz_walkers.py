"""Is there a file that a walker of a wire format does not survive? Damages small valid files and looks for one.

    python profiling/fuzz_walkers.py --inputs 1000000 --seed 1
    python profiling/fuzz_walkers.py --walker zip --inputs 1 --first 123456 --seed 1        # one input again

An outcome is a value that can be true of the input, or an error of `mlup_stream.errors`. Anything else is a finding: another
exception, a value that cannot be true, more than 20 seconds of processor time, more memory than the address space is allowed to
grow by, or, of every 64th input, more traced memory or more bytes read than an equation says. Findings are printed and saved.

Input N of a walker under a seed is always the same. Two processes share the work; what they print is the same, in another order.
`--corpus` also keeps, for each place where an error is raised and for each kind of value, the smallest input that leads there.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import traceback
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz_mutations import mutate
from fuzz_seeds import seeds
from fuzz_targets import TARGETS, Target, Wrong

from mlup_stream.errors import MLupError
from mlup_stream.units import KIB, MIB

__all__ = ["corpus_name", "run", "watched_outcome"]

_PROCESSES = 2
_DEATHS = 3
"""How often a piece may be lost: when one process is killed, what waits for the others is lost with it."""
_HANG_SECONDS = 20
_SLOW_SECONDS = 0.1
_ROOM_BYTES = 256 * MIB
"""Three times what detection lets lzma reserve. A length of 2^31 that is believed does not fit."""
_WATCHED_EVERY = 64
_CORPUS_BYTES = 1 * KIB
_MINIMISED_BYTES = 8 * KIB
"""What is longer at its smallest is long for a reason, and takes hours to make smaller."""


def memory_bound(target: Target, data: bytes) -> int:
    """The memory that Python objects may take at the highest while `data` is walked.

    Peak memory: ten times the header of a safetensors file or the directory of a zip, or 500 bytes for each opcode that a
    joblib file is followed by; one window of each of two nested walks; 1 MiB of what is imported and cached meanwhile; and what
    the target says that it reserves.
    """
    return 500 * len(data) + 2 * 64 * KIB + 1 * MIB + target.reserved_bytes


def reading_bound(target: Target, data: bytes) -> int:
    """How many bytes may be read while `data` is walked: all of it a few times, and a few small windows in vain, twice."""
    return target.passes * len(data) + 4 * KIB


class CountedFile(io.BytesIO):
    """A file that counts what is read of it."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self.read_bytes += count
        return count


class Hang(Exception):
    """An input took more processor time than any may."""


def inputs(target: Target, walker: str, seed: int, indices: range) -> Iterator[tuple[int, bytes]]:
    """The inputs of a walker, by number."""
    files = seeds()
    own = [data for name in target.formats for data in files[name]]
    others = [data for group in files.values() for data in group if len(data) < 4 * KIB]
    random = Random()
    for index in indices:
        random.seed(seed << 64 | zlib.crc32(walker.encode()) << 32 | index)
        data = random.choice(own)
        if len(data) > 4 * KIB and random.random() < 0.9:  # large ones are there for their lengths, and slow
            data = random.choice(own)
        yield index, mutate(random, data, own if random.random() < 0.8 else others)


def outcome(target: Target, data: bytes, given: Any = None) -> str:
    """What becomes of an input: the word for its value, or where and as what its error was raised.

    Args:
        given: What the walker gets: a file of the input, by default the input itself.

    Raises:
        Exception: A finding.
    """
    try:
        return f"value: {target.call(data, data if given is None else given)}"
    except MLupError as error:
        return f"{type(error).__name__} in {_raised_in(error)}"


def _raised_in(error: BaseException) -> str:
    """The function and the line of a walker that raised, or asked `Source` for what is not there."""
    found = "?"
    trace = error.__traceback__
    while trace is not None:
        folder, _, file = trace.tb_frame.f_code.co_filename.rpartition(os.sep)
        if f"{os.sep}mlup_stream{os.sep}formats" in folder and file != "source.py":
            found = f"{file[:-3]}.{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


@dataclass
class Tally:
    """What one process found out about one walker."""

    walker: str
    count: int = 0
    seconds: float = 0.0
    slow: int = 0
    slowest: tuple[float, int] = (0.0, 0)
    traced_bytes: int = 0
    findings: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)
    smallest: dict[str, bytes] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.count += other.count
        self.seconds += other.seconds
        self.slow += other.slow
        self.slowest = max(self.slowest, other.slowest)
        self.traced_bytes = max(self.traced_bytes, other.traced_bytes)
        self.findings = {**other.findings, **self.findings}
        for key, data in other.smallest.items():
            self.keep(key, data)

    def keep(self, key: str, data: bytes) -> None:
        if key not in self.smallest or (len(data), data) < (len(self.smallest[key]), self.smallest[key]):
            self.smallest[key] = data


def run(walker: str, seed: int, indices: range, limited: bool = True) -> Tally:
    """Feeds the inputs to the walker."""
    target, tally = TARGETS[walker], Tally(walker)
    signal.signal(signal.SIGVTALRM, _hang)
    if limited:
        _limit_address_space()
    started = time.process_time()
    for index, data in inputs(target, walker, seed, indices):
        before = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, _HANG_SECONDS)
        try:
            if index % _WATCHED_EVERY:
                key = outcome(target, data)
            else:
                key, traced_bytes = watched_outcome(target, data)
                tally.traced_bytes = max(tally.traced_bytes, traced_bytes)
            tally.keep(key, data)
        except Exception as error:
            key = f"{type(error).__name__} in {_raised_in(error)}"
            tally.findings.setdefault(key, (index, data, "".join(traceback.format_exception(error))))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        took = time.process_time() - before
        tally.slow += took > _SLOW_SECONDS
        tally.slowest = max(tally.slowest, (took, index))
        tally.count += 1
    tally.seconds = time.process_time() - started
    return tally


def watched_outcome(target: Target, data: bytes) -> tuple[str, int]:
    """The outcome of an input that is read from a file, and how many bytes Python objects took at the highest.

    Raises:
        MemoryError: More than `memory_bound` says.
        Wrong: More was read than `reading_bound` says.
    """
    file = CountedFile(data)
    tracemalloc.start()
    try:
        key = outcome(target, data, file)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak_bytes > memory_bound(target, data):
        raise MemoryError(f"{peak_bytes} bytes at the highest for an input of {len(data)}")
    if file.read_bytes > reading_bound(target, data):
        raise Wrong(f"{file.read_bytes} bytes read of an input of {len(data)}")
    return key, peak_bytes


def _hang(number: int, frame: Any) -> None:
    raise Hang(f"more than {_HANG_SECONDS} s of processor time")


def _limit_address_space() -> None:
    with open("/proc/self/statm") as file:
        size_bytes = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + _ROOM_BYTES, resource.RLIM_INFINITY))


def minimise(target: Target, key: str, data: bytes) -> bytes:
    """A smaller input with the same outcome: pieces are left out, and bytes made zero, as long as it stays."""

    def stays(candidate: bytes) -> bool:
        try:
            return outcome(target, candidate) == key
        except Exception:
            return False

    size_bytes = len(data) // 2
    while size_bytes:
        at = 0
        while at < len(data):
            candidate = data[:at] + data[at + size_bytes :]
            if stays(candidate):
                data = candidate
            else:
                at += size_bytes
        size_bytes //= 2
    return data


def corpus_name(key: str, data: bytes) -> str:
    """What an input is called in the corpus: its outcome, without the line that changes with every edit, and its checksum."""
    name = re.sub(r"[^a-z0-9]+", "-", re.sub(r":\d+$", "", key.lower())).strip("-")[:60].rstrip("-")
    return f"{name}-{zlib.crc32(data):08x}"


def write_corpus(folder: Path, tally: Tally) -> int:
    """Writes the smallest input for each outcome, if there is none for it yet; returns how many it wrote."""
    target, written = TARGETS[tally.walker], 0
    own = folder / tally.walker
    own.mkdir(parents=True, exist_ok=True)
    known = {outcome(target, each.read_bytes()) for each in own.iterdir()}
    for key, found in sorted(tally.smallest.items()):
        if key in known or len(found) > _MINIMISED_BYTES:
            continue
        if len(data := minimise(target, key, found)) <= _CORPUS_BYTES:
            (own / corpus_name(key, data)).write_bytes(data)
            written += 1
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="for each walker; default 10000")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the number of the first input")
    parser.add_argument("--walker", action="append", choices=sorted(TARGETS), metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--processes", type=int, default=_PROCESSES)
    parser.add_argument("--save", type=Path, default=Path("fuzz-findings"), metavar="DIR", help="for what found something")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="keep the smallest input for each outcome here")
    arguments = parser.parse_args()
    chosen = arguments.walker or list(TARGETS)
    piece = max(1, min(20_000, arguments.inputs // (4 * arguments.processes)))
    last = arguments.first + arguments.inputs
    tasks = [
        (walker, arguments.seed, range(start, min(start + piece, last)))
        for walker in chosen
        for start in range(arguments.first, last, piece)
    ]
    tallies = {walker: Tally(walker) for walker in chosen}
    started = time.perf_counter()
    for done, tally in enumerate(_run_all(tasks, arguments.processes), start=1):
        tallies[tally.walker].add(tally)
        print(f"\r{done} of {len(tasks)} pieces, {time.perf_counter() - started:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return sum(_tell(tally, arguments) for tally in tallies.values()) > 0


def _run_all(tasks: list[tuple[str, int, range]], processes: int) -> Iterator[Tally]:
    """The tallies as they come. What kills a process again and again is a finding; once, somebody else may have killed it."""
    deaths: Counter[tuple[str, int, range]] = Counter()
    tasks = list(tasks)
    while tasks:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            waiting = {pool.submit(_run_task, task): task for task in tasks}
            for future in as_completed(waiting):
                task = waiting[future]
                try:
                    tally = future.result()
                except BrokenProcessPool as error:
                    deaths[task] += 1
                    if deaths[task] < _DEATHS:
                        continue
                    tally = Tally(task[0], findings={"death": (task[2].start, b"", f"by one of the inputs {task[2]}: {error}")})
                tasks.remove(task)
                yield tally


def _run_task(task: tuple[str, int, range]) -> Tally:
    return run(*task)


def _tell(tally: Tally, arguments: argparse.Namespace) -> int:
    """Prints what was found; returns how many findings there are."""
    slowest, index = tally.slowest
    print(
        f"{tally.walker}: {tally.count} inputs, {tally.count / max(tally.seconds, 1e-9):.0f} a second and core;"
        f" {len(tally.smallest)} outcomes, {len(tally.findings)} findings; slower than {_SLOW_SECONDS} s: {tally.slow},"
        f" slowest {slowest:.3f} s (input {index}); {tally.traced_bytes} bytes traced at the highest"
    )
    for key, (number, data, trace) in tally.findings.items():
        arguments.save.mkdir(parents=True, exist_ok=True)
        path = arguments.save / f"{tally.walker}-{arguments.seed}-{number}"
        path.write_bytes(data)
        again = f"--walker {tally.walker} --seed {arguments.seed} --first {number} --inputs 1"
        print(f"FINDING {key}, saved as {path}; again: {again}")
        print(trace)
    if arguments.corpus is not None:
        print(f"{write_corpus(arguments.corpus, tally)} inputs added to {arguments.corpus / tally.walker}")
    return len(tally.findings)


if __name__ == "__main__":
    sys.exit(main())
