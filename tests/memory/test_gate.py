"""Estimates and the gate: what a load needs of each kind of limit, and which delivery is admitted."""

from __future__ import annotations

import pickle

import pytest

from mlup_stream.errors import MemoryBudgetExceeded
from mlup_stream.memory.budget import Available
from mlup_stream.memory.estimate import Certainty, Estimate, by_size
from mlup_stream.memory.gate import admit, overhead_bytes, weigh
from mlup_stream.memory.limit import Counts, Limit
from mlup_stream.units import GIB, MIB

EXACT = Certainty.EXACT


def private(size_bytes: int, certainty: Certainty = EXACT) -> Estimate:
    return Estimate.private(size_bytes, certainty=certainty, why="a test")


def in_place(size_bytes: int, **values: int) -> Estimate:
    return Estimate.in_place(size_bytes, certainty=EXACT, why="a test", **values)  # type: ignore[arg-type]


def room_of(size_bytes: int, counts: Counts = Counts.PRIVATE) -> Available:
    return Available.of([Limit("memory.max", "/group/memory.max", size_bytes + 10 * MIB, 10 * MIB, counts)])


def test_raw_bytes_lie_beside_the_model_until_they_are_released() -> None:
    """Delivery `bytes`: the peak is the documented 2x, what settles is not."""
    raw = private(100).with_raw(100)
    assert (raw.peak_anon_bytes, raw.settled_anon_bytes) == (200, 100)


@pytest.mark.parametrize(("delivery", "peak"), [("path", 1), ("view", 1), ("stream", 1), ("bytes", 2)])
def test_by_its_size_a_model_is_guessed(delivery: str, peak: int) -> None:
    """The documented 1x and 2x, called unknown."""
    guess = by_size(100, delivery)
    assert (guess.peak_anon_bytes, guess.settled_anon_bytes, guess.certainty) == (100 * peak, 100, Certainty.UNKNOWN)


@pytest.mark.parametrize("sizes", [(-1, 0, 0, 0), (10, 0, 11, 0), (10, 5, 10, 6)])
def test_an_impossible_estimate_is_refused(sizes: tuple[int, int, int, int]) -> None:
    """Negative sizes, and more settled than there was at the peak."""
    with pytest.raises(ValueError, match="estimate"):
        Estimate(*sizes, EXACT, "a test")


def test_each_kind_of_limit_needs_its_own_amount() -> None:
    """A map costs no private memory, all of its address space, and private writable space if it is writable."""
    reading, writing = in_place(100, private_bytes=7, touched_bytes=20), in_place(100, private_bytes=7, copy_on_write=True)
    assert [reading.needed_bytes(counts) for counts in Counts] == [7, 7, 107]
    assert [writing.needed_bytes(counts) for counts in Counts] == [7, 107, 107]
    assert (reading.peak_bytes, reading.settled_bytes) == (27, 27)


def test_the_first_delivery_that_fits_is_taken() -> None:
    """In the order of preference; nothing is said when it is the first."""
    choice = admit({"path": private(100 * MIB), "view": in_place(100 * MIB)}, room_of(GIB))
    assert (choice.delivery, choice.reason, choice.warning) == ("path", "", "")


def test_a_cheaper_delivery_is_looked_for_first() -> None:
    """1x does not fit in 64 MiB, the map does: it is used, and the reason says what was wrong with the first."""
    estimates = {"path": private(100 * MIB), "bytes": private(200 * MIB), "view": in_place(100 * MIB, private_bytes=MIB)}
    choice = admit(estimates, room_of(64 * MIB))
    assert choice.delivery == "view"
    assert choice.reason.startswith("path needs")
    assert "64.0 MiB is left" in choice.reason


def test_what_does_not_fit_is_refused_with_everything_one_needs_to_know() -> None:
    """Needed, available, the limit and where it is set, and how large it would have to be; also after a trip through pickle."""
    needed = 100 * MIB + overhead_bytes(private(100 * MIB), shared=False)
    with pytest.raises(MemoryBudgetExceeded) as refused:
        admit({"path": private(100 * MIB), "bytes": private(200 * MIB)}, room_of(64 * MIB), name="model.pkl")
    error = pickle.loads(pickle.dumps(refused.value))
    assert isinstance(error, MemoryError)
    assert (error.needed_bytes, error.available_bytes, error.enough_bytes) == (needed, 64 * MIB, needed + 10 * MIB)
    assert (error.delivery, error.would_fit) == ("path", ())
    assert error.limit.where == "/group/memory.max"
    message = str(error)
    assert "\n" not in message
    for words in ("model.pkl", "by delivery path", "64.0 MiB is left", "/group/memory.max", "memory.max at"):
        assert words in message


def test_a_load_that_is_told_to_be_enough_fits() -> None:
    """With the limit that the refusal asks for, the same load is admitted."""
    with pytest.raises(MemoryBudgetExceeded) as refused:
        admit({"path": private(100 * MIB)}, room_of(64 * MIB))
    enough = refused.value.enough_bytes  # type: ignore[attr-defined]
    room = Available.of([Limit("memory.max", "", enough, 10 * MIB)])
    assert admit({"path": private(100 * MIB)}, room).delivery == "path"


def test_a_delivery_that_was_asked_for_is_not_replaced() -> None:
    """The refusal names those that would fit instead."""
    estimates = {"view": in_place(100 * MIB), "bytes": private(200 * MIB)}
    with pytest.raises(MemoryBudgetExceeded, match="would fit by view") as refused:
        admit(estimates, room_of(64 * MIB), asked="bytes")
    assert refused.value.would_fit == ("view",)  # type: ignore[attr-defined]
    assert admit(estimates, room_of(64 * MIB), asked="view").delivery == "view"


@pytest.mark.parametrize("estimate", [None, by_size(GIB, "path")])
def test_the_unknown_is_admitted_with_a_warning(estimate: Estimate | None) -> None:
    """Never refused; what is left and why is in the warning."""
    choice = admit({"path": estimate}, room_of(64 * MIB), name="model.bin")
    assert choice.delivery == "path"
    assert "model.bin" in choice.warning
    assert "64.0 MiB is left" in choice.warning


def test_the_unknown_with_room_for_ten_of_it_is_nothing_to_warn_of() -> None:
    """Otherwise every load by somebody's own binarizer would warn."""
    assert admit({"path": by_size(100 * MIB, "path")}, room_of(2 * GIB)).warning == ""
    assert admit({"path": by_size(300 * MIB, "path")}, room_of(2 * GIB)).warning != ""


def test_raw_bytes_are_certain_whatever_the_format_needs() -> None:
    """Of a guess for `bytes` the copy of the file is none: a load that cannot even hold that is refused, others are admitted."""
    estimates = {"path": private(GIB), "bytes": by_size(100 * MIB, "bytes")}
    with pytest.raises(MemoryBudgetExceeded, match="by delivery bytes") as refused:
        admit(estimates, room_of(90 * MIB))
    assert refused.value.needed_bytes is not None
    assert 100 * MIB <= refused.value.needed_bytes <= 110 * MIB
    choice = admit(estimates, room_of(150 * MIB))
    assert (choice.delivery, bool(choice.warning)) == ("bytes", True)


def test_a_delivery_that_fits_is_preferred_to_an_unknown_one() -> None:
    """After a first one that does not fit: known to fit, then unknown, and only then the refusal."""
    too_much, unknown, fits = private(GIB), by_size(GIB, "stream"), in_place(GIB)
    assert admit({"path": too_much, "stream": unknown, "view": fits}, room_of(64 * MIB)).delivery == "view"
    choice = admit({"path": too_much, "stream": unknown}, room_of(64 * MIB))
    assert choice.delivery == "stream"
    assert choice.warning


def test_without_any_limit_everything_fits() -> None:
    """As on a system that tells nothing, or with memory_budget=None."""
    assert admit({"path": private(1 << 50)}, Available(())).delivery == "path"
    assert admit({"path": None}, Available(())).warning == ""


def test_the_limit_that_binds_is_the_one_that_the_load_hits_first() -> None:
    """A map of 1 GiB under an address-space limit of 512 MiB is refused by that, though the group leaves less."""
    limits = [
        Limit("memory.max", "/group", 128 * MIB, 0),
        Limit("RLIMIT_AS", "ulimit -v", 512 * MIB, 0, Counts.ADDRESSES),
    ]
    (row,) = weigh({"view": in_place(GIB)}, Available.of(limits))
    assert row.limit is not None
    assert (row.limit.name, row.fits, row.available_bytes) == ("RLIMIT_AS", False, 512 * MIB)
    (row,) = weigh({"path": private(100 * MIB)}, Available.of(limits))
    assert row.limit is not None
    assert (row.limit.name, row.fits) == ("memory.max", True)


def test_rows_are_values() -> None:
    """What the command line prints: a row for each delivery, in order, with the figures and why."""
    rows = weigh({"path": private(100 * MIB), "view": in_place(100 * MIB), "bytes": None}, room_of(64 * MIB))
    assert [(row.delivery, row.fits) for row in rows] == [("path", False), ("view", True), ("bytes", True)]
    assert rows[0].why.startswith("needs")
    assert rows[1].why == "exact: a test"
    assert "nothing is known" in rows[2].why
    assert rows[0].to_dict()["estimate"]["peak_bytes"] == 100 * MIB  # type: ignore[index]
    assert rows[2].to_dict()["estimate"] is None


def test_nothing_to_choose_from_is_the_callers_mistake() -> None:
    """No delivery at all, or not the one that was asked for."""
    with pytest.raises(ValueError, match="nothing to choose from"):
        admit({}, room_of(GIB))
    with pytest.raises(ValueError, match="nothing to choose from"):
        admit({"path": None}, room_of(GIB), asked="view")


@pytest.mark.parametrize("cpus", [128, 256])
def test_the_hosts_cpus_are_not_a_small_containers(cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each CPU charges ahead is taken back before anybody is killed: 2 MiB at most, and none of it from one's own budget."""
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    need = private(5 * MIB)
    assert overhead_bytes(need) - overhead_bytes(need, shared=False) == 2 * MIB
    own = Available.of([Limit("memory_budget", "a setting", 8 * MIB, 0)])
    assert weigh({"path": need}, own)[0].fits


def test_page_tables_are_part_of_the_need() -> None:
    """8 bytes for each page of 4 KiB: 2 MiB for each GiB that is mapped or allocated."""
    small, large = overhead_bytes(private(0)), overhead_bytes(private(GIB))
    assert large - small == 2 * MIB
    assert overhead_bytes(in_place(GIB)) - small == 2 * MIB
