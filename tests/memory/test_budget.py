"""One function says what is available: the tightest of the user's word, control groups, rlimits and the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from child import run_child
from limits import data_limit, needs_cgroups, run_limited

from mlup_stream.errors import ConfigError
from mlup_stream.memory.budget import Available, Budget, available
from mlup_stream.memory.limit import Counts, Limit
from mlup_stream.memory.rlimit import hard_limit, rlimits
from mlup_stream.units import GIB, MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 4 GiB, 3 of them available, this process in a group of 1 GiB that uses 256 MiB."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/app\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {4 << 20} kB\nMemFree: 1 kB\nMemAvailable: {3 << 20} kB\n")
    group = tmp_path / "sys/fs/cgroup/app"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{GIB}\n")
    (group / "memory.current").write_text(f"{256 * MIB}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("auto", Budget()),
        ("AUTO ", Budget()),
        (None, Budget(enforced=False)),
        (512 * MIB, Budget(limit_bytes=512 * MIB)),
        ("512MiB", Budget(limit_bytes=512 * MIB)),
        ("1.5g", Budget(limit_bytes=3 * GIB // 2)),
        ("0.5 GiB", Budget(limit_bytes=GIB // 2)),
        (0.8, Budget(fraction=0.8)),
        ("0.8", Budget(fraction=0.8)),
        ("80%", Budget(fraction=0.8)),
        (1.0, Budget(fraction=1.0)),
        (Budget(limit_bytes=7), Budget(limit_bytes=7)),
    ],
)
def test_a_budget_is_read_from_what_users_write(value: object, expected: Budget) -> None:
    """Bytes, sizes, fractions, percentages, "auto" and None."""
    assert Budget.of(value) == expected


@pytest.mark.parametrize("value", [0, -1, 0.0, -0.5, 1.5, True, "", "many", "0", "120%", "x%", b"1", [1], float("nan")])
def test_what_is_no_budget_is_refused_with_what_would_be(value: object) -> None:
    """The error names the setting, the value and what is allowed."""
    with pytest.raises(ConfigError, match="memory_budget") as failed:
        Budget.of(value)
    assert failed.value.field == "memory_budget"
    assert "512MiB" in str(failed.value)


def test_the_tightest_limit_is_first(root: Path) -> None:
    """The group leaves 768 MiB, the host 3 GiB."""
    room = available(root=str(root))
    assert room.bytes == 768 * MIB
    assert room.tightest is not None
    assert room.tightest.name == "memory.max"
    assert str(root / "sys/fs/cgroup/app/memory.max") == room.tightest.where
    assert [limit.name for limit in room.limits if limit.name != "RLIMIT_DATA"][:2] == ["memory.max", "host memory"]


def test_a_users_size_is_what_may_be_taken_from_the_start(root: Path) -> None:
    """512 MiB, of which 100 were spent since, leave 412, less than the group does."""
    room = available(Budget.of("512MiB"), spent_bytes=100 * MIB, root=str(root))
    assert room.bytes == 412 * MIB
    assert room.tightest is not None
    assert room.tightest.name == "memory_budget"


def test_a_users_size_above_the_groups_changes_nothing(root: Path) -> None:
    """The user cannot lift a limit."""
    assert available(Budget.of("64GiB"), root=str(root)).bytes == 768 * MIB


def test_a_fraction_is_of_each_limit_of_the_system(root: Path) -> None:
    """Half of the group's GiB, of which 256 MiB are used, leaves 256; that of the host's 4 GiB, 1 used, leaves 1 GiB."""
    room = available(Budget.of(0.5), root=str(root))
    by_name = {limit.name: limit.available_bytes for limit in room.limits}
    assert by_name["memory.max"] == 256 * MIB
    assert by_name["host memory"] == GIB
    assert room.tightest is not None
    assert "50% of" in room.tightest.where


def test_a_host_that_does_not_overcommit_has_a_limit_more(root: Path) -> None:
    """With vm.overcommit_memory=2 what is left of the commit limit counts, against private writable address space."""
    (root / "proc/sys/vm").mkdir(parents=True)
    (root / "proc/sys/vm/overcommit_memory").write_text("2\n")
    with open(root / "proc/meminfo", "a") as file:
        file.write(f"CommitLimit: {2 << 20} kB\nCommitted_AS: {(2 << 20) - 102400} kB\n")
    room = available(root=str(root))
    assert room.bytes == 100 * MIB
    assert room.tightest is not None
    assert (room.tightest.name, room.tightest.counts) == ("commit limit", Counts.DATA)


def test_without_proc_the_host_is_asked_through_psutil(tmp_path: Path) -> None:
    """On other systems there is one limit: the host's memory."""
    import psutil

    room = available(root=str(tmp_path))
    hosts = [limit for limit in room.limits if limit.name == "host memory"]
    assert [limit.limit_bytes for limit in hosts] == [psutil.virtual_memory().total]
    assert hosts[0].where == "psutil.virtual_memory()"


def test_a_proc_with_nothing_but_processes_in_it_has_one_limit_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `subset=pid` there is no /proc/meminfo for psutil either: what is not known is left out."""
    import psutil

    def no_meminfo() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", no_meminfo)
    assert [limit.name for limit in available(root=str(tmp_path)).limits if limit.name == "host memory"] == []


def test_system_calls_that_are_filtered_leave_their_figure_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's seccomp profile that answers EPERM: no limit of the process, no count of page faults, all CPUs, no guard."""
    import resource

    from mlup_stream.errors import ConfigError
    from mlup_stream.memory import imports, proc
    from mlup_stream.memory.rlimit import guard_of, hard_limit, rlimits

    def filtered(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(resource, "getrlimit", filtered)
    monkeypatch.setattr(resource, "getrusage", filtered)
    monkeypatch.setattr("os.sched_getaffinity", filtered, raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert list(rlimits()) == []
    assert proc.anon_growth_limit_bytes() is None
    assert imports._cpus() == os.cpu_count()
    assert guard_of(None, 1, 100 * MIB) is None
    with pytest.raises(ConfigError, match="use 'soft'"), hard_limit(100 * MIB):
        pass


def test_what_others_will_take_is_taken_from_shared_limits_only() -> None:
    """Another process's load takes from the group, not from this process's own budget."""
    group = Limit("memory.max", "", 100, 20, shared=True)
    own = Limit("memory_budget", "", 70, 0)
    room = Available.of([group, own])
    assert room.bytes == 70
    assert [(limit.name, limit.available_bytes) for limit in room.less(30).limits] == [("memory.max", 50), ("memory_budget", 70)]
    assert room.less(0) is room


def test_no_limit_is_none() -> None:
    """Where nothing limits, nothing is said of bytes."""
    assert Available(()).bytes is None
    assert Available(()).tightest is None


@pytest.mark.parametrize(("name", "use"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_rlimits_are_found_with_their_use(name: str, use: str) -> None:
    """A soft limit of 900 MiB leaves 900 MiB less what the kernel says that is used."""
    limit, available_bytes, used = run_child(
        """
        import resource
        from mlup_stream.memory import proc
        from mlup_stream.memory.rlimit import rlimits
        kind = getattr(resource, name)
        resource.setrlimit(kind, (900 << 20, resource.getrlimit(kind)[1]))
        used = proc.status()[use]
        (found,) = [limit for limit in rlimits() if limit.name == name]
        answer([found.limit_bytes, found.available_bytes, used])
        """,
        name=name,
        use=use,
    )
    assert limit == 900 * MIB
    assert abs(available_bytes - (900 * MIB - used)) <= MIB


def test_an_rlimit_of_infinity_is_none() -> None:
    """What is not set does not limit."""
    assert run_child(
        """
        import resource
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
        from mlup_stream.memory.rlimit import rlimits
        answer([limit.name for limit in rlimits() if limit.limit_bytes == resource.RLIM_INFINITY or limit.limit_bytes < 0])
        """
    ) == []


def test_a_hard_limit_makes_an_allocation_fail_and_is_lifted_after() -> None:
    """Inside 32 MiB may be taken and 64 may not, in any thread; afterwards the limit is what it was."""
    assert run_child(
        """
        import resource, threading
        from mlup_stream.memory.rlimit import hard_limit
        before = resource.getrlimit(resource.RLIMIT_DATA)
        seen = []
        def allocate(size):
            try:
                seen.append(len(bytearray(size)) == size)
            except MemoryError:
                seen.append("MemoryError")
        with hard_limit(48 << 20):
            allocate(32 << 20)
            allocate(64 << 20)
            thread = threading.Thread(target=allocate, args=(64 << 20,))
            thread.start()
            thread.join()
        allocate(64 << 20)
        answer([seen, resource.getrlimit(resource.RLIMIT_DATA) == before])
        """
    ) == [[True, "MemoryError", "MemoryError", True], True]


def test_hard_limits_that_overlap_combine_to_the_tightest() -> None:
    """Whichever ends first, none is lifted while it is in force, and the last one restores what was there before the first."""
    assert run_child(
        """
        import resource
        from mlup_stream.memory.rlimit import hard_limit
        def soft():
            return resource.getrlimit(resource.RLIMIT_DATA)[0]
        before = soft()
        wide, tight = hard_limit(512 << 20), hard_limit(64 << 20)
        first = wide.__enter__().limit_bytes
        second = tight.__enter__().limit_bytes
        both = soft()
        wide.__exit__(None, None, None)
        one = soft()
        tight.__exit__(None, None, None)
        answer([both == second, one == second, second < first, soft() == before])
        """
    ) == [True] * 4


def test_a_hard_limit_never_lifts_one_that_was_there() -> None:
    """Under a limit of 256 MiB, asking for 10 GiB more changes nothing."""
    assert run_child(
        """
        import resource
        from mlup_stream.memory.rlimit import hard_limit
        with hard_limit(10 << 30):
            inside = resource.getrlimit(resource.RLIMIT_DATA)[0]
        answer([inside, resource.getrlimit(resource.RLIMIT_DATA)[0]])
        """,
        before_exec=data_limit(256 * MIB),
    ) == [256 * MIB, 256 * MIB]


def test_a_hard_limit_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the setting is an error, not a limit that does not limit."""
    monkeypatch.setattr("mlup_stream.memory.rlimit.sys.platform", "darwin")
    with pytest.raises(ConfigError, match="memory_limit"), hard_limit(1):
        pass
    assert list(rlimits()) == []


@needs_cgroups
def test_in_a_real_group_available_is_what_can_be_taken() -> None:
    """In a group of 128 MiB all but 8 MiB of what is said to be available can be had, and the process lives."""
    said, taken = run_limited(
        """
        from mlup_stream.memory.budget import available
        said = available().bytes
        block = bytes(1) * (said - (8 << 20))
        answer([said, len(block)])
        """,
        limit_bytes=128 * MIB,
    )
    assert 100 * MIB <= said < 128 * MIB
    assert taken == said - 8 * MIB
