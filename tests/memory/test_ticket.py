"""Tickets: loads that would not fit together run in turn, and a dead holder holds nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from limits import cgroup_limit, needs_cgroups

from mlup_stream.errors import LoadTicketTimeout, MemoryBudgetExceeded, ModelLoadError
from mlup_stream.memory.ticket import TicketOffice
from mlup_stream.units import MIB


@pytest.fixture
def office(tmp_path: Path) -> TicketOffice:
    return TicketOffice(str(tmp_path), group="/group", timeout_seconds=0.3)


def fits_into(room_bytes: int, need_bytes: int):  # type: ignore[no-untyped-def]
    """An attempt that needs `need_bytes` of `room_bytes`, less what others have been promised."""

    def attempt(promised_bytes: int) -> tuple[str, int]:
        if need_bytes > room_bytes - promised_bytes:
            raise MemoryBudgetExceeded("does not fit")
        return "admitted", need_bytes

    return attempt


HOLDER = """
import sys, time
from mlup_stream.memory.ticket import TicketOffice
office = TicketOffice(sys.argv[1], group="/group", timeout_seconds=20)
need = None if sys.argv[2] == "None" else int(sys.argv[2])
_, ticket = office.take("other.pkl", lambda promised: ("admitted", need))
print("ready", flush=True)
sys.stdin.readline()
ticket.release()
print("released", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that holds a ticket."""

    def __init__(self, folder: Path, need_bytes: int | None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), str(need_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def test_alone_a_load_is_admitted_at_once(office: TicketOffice) -> None:
    """Nobody else loads: the attempt decides, with nothing promised to others."""
    admitted, ticket = office.take("model.pkl", fits_into(100, 100))
    assert admitted == "admitted"
    ticket.release()
    ticket.release()
    assert [name for name in os.listdir(office.folder) if name.endswith((".ticket", ".ticket.lock"))] == []


def test_alone_what_does_not_fit_is_refused_at_once(office: TicketOffice) -> None:
    """Waiting would not help."""
    office.timeout_seconds = 30
    started = time.monotonic()
    with pytest.raises(MemoryBudgetExceeded, match="does not fit"):
        office.take("model.pkl", fits_into(100, 101))
    assert time.monotonic() - started < 10


def test_loads_that_fit_together_run_together(office: TicketOffice, tmp_path: Path) -> None:
    """Another process was promised 40 MiB; of 100, 60 are left."""
    with Holder(tmp_path, 40 * MIB):
        _, ticket = office.take("model.pkl", fits_into(100 * MIB, 55 * MIB))
        ticket.release()


def test_a_load_waits_and_says_for_whom(office: TicketOffice, tmp_path: Path) -> None:
    """The message has the process, what it loads, how much it needs and what to do."""
    with Holder(tmp_path, 80 * MIB) as holder:
        with pytest.raises(LoadTicketTimeout) as waited:
            office.take("model.pkl", fits_into(100 * MIB, 60 * MIB))
        assert isinstance(waited.value, TimeoutError)
        assert isinstance(waited.value, ModelLoadError)
        for words in ("model.pkl", f"process {holder.process.pid}", "other.pkl", "80.0 MiB", "memory_ticket"):
            assert words in str(waited.value)
        assert waited.value.holders is not None
        assert len(waited.value.holders) == 1


def test_a_ticket_that_is_given_back_admits_the_next(office: TicketOffice, tmp_path: Path) -> None:
    """The one that waits gets its turn when the holder has settled, without the holder's process ending."""
    office.timeout_seconds = 20
    with Holder(tmp_path, 80 * MIB) as holder:
        threading.Timer(0.3, holder.go_on).start()
        _, ticket = office.take("model.pkl", fits_into(100 * MIB, 60 * MIB))
        assert holder.process.poll() is None
        ticket.release()


def test_a_dead_holder_frees_its_ticket(office: TicketOffice, tmp_path: Path) -> None:
    """SIGKILL leaves the files, and nobody waits for them; they are removed."""
    office.timeout_seconds = 20
    with Holder(tmp_path, 80 * MIB) as holder:
        os.kill(holder.process.pid, signal.SIGKILL)
        holder.process.wait()
        assert any(name.endswith(".ticket") for name in os.listdir(office.folder))
        _, ticket = office.take("model.pkl", fits_into(100 * MIB, 100 * MIB))
        ticket.release()
    assert [name for name in os.listdir(office.folder) if name.endswith(".ticket")] == []


def test_an_unknown_need_loads_alone(office: TicketOffice, tmp_path: Path) -> None:
    """Nobody joins a load of which nothing is known, and it joins nobody."""
    with Holder(tmp_path, None), pytest.raises(LoadTicketTimeout, match="an unknown amount"):
        office.take("model.pkl", fits_into(100 * MIB, 1))
    with Holder(tmp_path, 1), pytest.raises(LoadTicketTimeout):
        office.take("model.pkl", lambda promised: ("admitted", None))


def test_what_a_holder_has_taken_already_is_not_promised_twice(office: TicketOffice, tmp_path: Path) -> None:
    """Its memory is in what is used by now: only the rest of its need is still to come."""
    promised: list[int] = []

    def attempt(promised_bytes: int) -> tuple[str, int]:
        promised.append(promised_bytes)
        return "admitted", 1

    with Holder(tmp_path, 80 * MIB):
        (path,) = Path(office.folder).glob("*.ticket")
        values = json.loads(path.read_text())
        values[-1] -= 30 * MIB  # as if it had taken 30 MiB since
        path.write_text(json.dumps(values))
        office.take("model.pkl", attempt)[1].release()
    assert 49 * MIB <= promised[0] <= 51 * MIB


def test_a_load_inside_another_does_not_wait_for_it(office: TicketOffice) -> None:
    """A model that loads a model, in one thread, would wait for ever."""
    _, outer = office.take("outer.pkl", fits_into(100, 100))
    _, inner = office.take("inner.pkl", fits_into(100, 100))
    inner.release()
    outer.release()


def test_threads_of_one_process_take_turns(office: TicketOffice) -> None:
    """They share its memory: another thread's ticket counts like another process's."""
    _, ticket = office.take("first.pkl", fits_into(100, 100))
    errors: list[BaseException] = []

    def other() -> None:
        try:
            office.take("second.pkl", lambda promised: (None, None))
        except LoadTicketTimeout as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    ticket.release()
    assert len(errors) == 1


def test_groups_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Containers with limits of their own share nothing that a ticket could save."""
    first, second = (TicketOffice(str(tmp_path), group=group, timeout_seconds=0.3) for group in ("/a", "/b"))
    _, ticket = first.take("model.pkl", lambda promised: (None, None))
    second.take("model.pkl", lambda promised: (None, None))[1].release()
    ticket.release()


def test_the_folder_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that everybody can write to, somebody else's folder or link is refused."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    office = TicketOffice(timeout_seconds=0.1)
    parent = Path(office.folder).parent
    assert parent.parent == tmp_path
    assert parent.stat().st_mode & 0o077 == 0
    parent.rmdir()
    parent.symlink_to(tmp_path)
    with pytest.raises(ModelLoadError, match="somebody else"):
        TicketOffice()
    parent.unlink()
    parent.write_bytes(b"")
    with pytest.raises(ModelLoadError, match="set TMPDIR"):
        TicketOffice()

    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", no_folder)
    with pytest.raises(ModelLoadError, match="memory_ticket: expected a folder"):
        TicketOffice()


LOADER = """
import sys, time
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.estimate import Certainty, Estimate
peak, settled = int(sys.argv[2]), int(sys.argv[3])
estimate = Estimate.private(peak, settled, certainty=Certainty.EXACT, why="a test")
governor = MemoryGovernor(ticket=sys.argv[1] or False, learned=False, ticket_timeout_seconds=60)
print("ready", flush=True)
sys.stdin.readline()
with governor:
    with governor.watching(governor.plan({"path": estimate}, name="model")) as watch:
        block = b"x" * peak
        time.sleep(0.2)
        block = block[:settled]
        watch.settle()
    print("loaded", flush=True)
    sys.stdin.readline()
"""


@needs_cgroups
def test_four_workers_that_start_together_load_within_the_peak_of_one(tmp_path: Path) -> None:
    """In a group that holds four settled models and one peak, four loads at once all succeed: they take turns."""
    peak_bytes, settled_bytes, process_bytes = 96 * MIB, 8 * MIB, 20 * MIB
    with cgroup_limit(4 * (settled_bytes + process_bytes) + peak_bytes) as (_, join):
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", LOADER, str(tmp_path), str(peak_bytes), str(settled_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=join,
            )
            for _ in range(4)
        ]
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("\n")
                worker.stdin.flush()
            said = [worker.stdout.readline() for worker in workers if worker.stdout is not None]
            errors = ""
            if said != ["loaded\n"] * 4:
                errors = "\n".join(worker.communicate("\n")[1][-500:] for worker in workers)
            assert said == ["loaded\n"] * 4, errors
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
