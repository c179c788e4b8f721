"""What importing a library takes, said before it is imported: a framework alone can be more than a small server has.

A model's file may be small and its framework not: importing TensorFlow takes 220 MiB of private memory before the first byte of a
model is read, and the kernel kills a process in which that does not fit, whatever was planned for the model.

The first import on a machine is judged by `import_costs`, measured elsewhere and with other versions, and by a margin; each
one that is measured is remembered, and judges the next.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.import_costs import COSTS
from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured
from mlup_stream.units import MIB

__all__ = ["KNOWN", "estimate_of", "record", "to_import"]


class _Cost(NamedTuple):
    """What a library takes on top of those that it needs.

    Attributes:
        private_mib: Private memory.
        address_mib: Private writable address space beyond that: thread stacks, buffers that were not touched.
        address_per_cpu_mib: The same for each CPU after the first: a stack of 8 MiB and a buffer of 32 MiB for each thread of
            OpenBLAS, of which NumPy and SciPy bring a copy each.
        mapped_mib: Address space of its code and data, which lie in files.
        needs: What it imports, if it is installed.
    """

    private_mib: int
    address_mib: int
    address_per_cpu_mib: int
    mapped_mib: int
    needs: tuple[str, ...]


_COSTS = {library: _Cost(*row) for library, row in COSTS.items()}

KNOWN = frozenset(_COSTS)
"""The libraries of which something is known before their first import."""

MARGIN = 1.25
"""How many times what the table says an import is expected to take that was not measured here."""
_MOST_MORE = 2
"""How many times what the table says a measurement is believed."""
_MOST_BLAS_THREADS = 64  # for which the wheels of NumPy and SciPy are built


def to_import(modules: Iterable[str]) -> tuple[str, ...]:
    """Those libraries, of the ones known, that importing `modules` (dotted names) would import first, each once."""
    found: dict[str, None] = {}
    for module in modules:
        for root in _closure(module.partition(".")[0]):
            if root not in sys.modules and _origin(root) is not None:
                found[root] = None
    return tuple(found)


def _closure(root: str) -> Iterator[str]:
    cost = _COSTS.get(root)
    if cost is not None:
        for each in cost.needs:
            yield from _closure(each)
        yield root


def _origin(root: str) -> str | None:
    """The file that importing it begins with; None if it is not installed."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


def estimate_of(roots: tuple[str, ...], learned: LearnedStore) -> Estimate:
    """What importing `roots` takes, as `to_import` gave them."""
    costs = [_COSTS[root] for root in roots]
    private_bytes = sum(cost.private_mib for cost in costs) * MIB
    threads = min(_cpus(), _MOST_BLAS_THREADS) - 1
    address_bytes = sum(cost.address_mib + cost.address_per_cpu_mib * threads for cost in costs) * MIB
    mapped_bytes = address_bytes + sum(cost.mapped_mib for cost in costs) * MIB
    key = _key(roots)
    measured = learned.recall(key) if key is not None else None
    if measured is None:
        private_bytes = int(private_bytes * MARGIN)
        certainty, why = Certainty.CONSERVATIVE, "what importing it took elsewhere, and a quarter more"
    else:
        # What other threads took meanwhile was measured too, and what is refused is never measured again.
        private_bytes = min(measured.peak_anon_bytes, _MOST_MORE * private_bytes)
        certainty, why = Certainty.LEARNED, f"what importing it took before ({measured.loads} times)"
    return Estimate(private_bytes, 0, private_bytes, 0, certainty, why, mapped_bytes, copy_on_write_bytes=address_bytes)


def record(roots: tuple[str, ...], private_bytes: int, learned: LearnedStore) -> None:
    """Remembers that importing `roots`, as `to_import` gave them before, took so much private memory."""
    key = _key(roots)
    if key is not None and all(root in sys.modules for root in roots):
        learned.record(key, Measured(private_bytes, 0, private_bytes, 0))


def _key(roots: tuple[str, ...]) -> LoadKey | None:
    """Under which an import is remembered: the last library's own file, which an upgrade replaces, and what came before it."""
    origin = _origin(roots[-1]) if roots else None
    return LoadKey.of(origin, "import", " ".join(roots)) if origin is not None else None


def _cpus() -> int:
    said = os.environ.get("OPENBLAS_NUM_THREADS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # another system, or a filter of system calls
        return os.cpu_count() or 1
