"""Control groups as they are found on servers, in containers and in none: trees of both versions, in the kernel's own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from limits import cgroup_limit, needs_cgroups, run_limited

from mlup_stream.memory.cgroup import cgroup_limits, memory_cgroups
from mlup_stream.memory.limit import Limit
from mlup_stream.units import MIB

V1_UNLIMITED = 9223372036854771712
"""PAGE_COUNTER_MAX with pages of 4 KiB; with pages of 64 KiB it is 9223372036854710272."""

V2_MOUNT = "30 23 0:27 {root} {point} rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {root} {point} rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw,memory"
OTHER_MOUNTS = (
    "22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw",
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset",
    "28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/root rw,discard",
    "garbage",
    "",
)


class Tree:
    """A root folder with `/proc` and control groups in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def proc(self, cgroup: str, *mounts: str) -> None:
        folder = self.root / "proc" / "self"
        folder.mkdir(parents=True)
        (folder / "cgroup").write_text(cgroup)
        (folder / "mountinfo").write_text("\n".join([*OTHER_MOUNTS, *mounts]) + "\n")

    def group(self, folder: str, **files: object) -> None:
        """`memory__max=1` is the file `memory.max` with the text `1`."""
        path = self.root / folder.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(f"{text}\n")

    def limits(self) -> list[Limit]:
        return list(cgroup_limits(str(self.root)))

    def figures(self) -> list[tuple[str, str, int, int]]:
        """Name, folder, limit and use in MiB of each limit, in the order found."""
        found = []
        for limit in self.limits():
            folder = "/" + limit.where.removeprefix(str(self.root)).strip("/").rpartition("/")[0]
            found.append((limit.name, folder, limit.limit_bytes // MIB, limit.used_bytes // MIB))
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def stat_v2(active: int, inactive: int, shmem: int = 0) -> str:
    return f"anon 1\nfile {(active + inactive + shmem) * MIB}\nactive_file {active * MIB}\ninactive_file {inactive * MIB}"


def stat_v1(active: int, inactive: int, hierarchical_limit: int = V1_UNLIMITED) -> str:
    return (
        f"cache 1\nactive_file 1\ninactive_file 1\nhierarchical_memory_limit {hierarchical_limit}\n"
        f"total_active_file {active * MIB}\ntotal_inactive_file {inactive * MIB}"
    )


def test_v2_nested(tree: Tree) -> None:
    """Every ancestor's limit counts, `memory.high` among them, `max` is none, and page cache is free but shared memory is not."""
    tree.proc("0::/system.slice/app.service\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup", cgroup__procs="")  # the root of the hierarchy has no limits
    tree.group(
        "/sys/fs/cgroup/system.slice",
        memory__max="max",
        memory__high=900 * MIB,
        memory__current=300 * MIB,
        memory__stat=stat_v2(30, 20, shmem=50),
    )
    tree.group(
        "/sys/fs/cgroup/system.slice/app.service",
        memory__max=512 * MIB,
        memory__high="max",
        memory__current=200 * MIB,
        memory__stat=stat_v2(60, 40),
    )
    assert tree.figures() == [
        ("memory.max", "/sys/fs/cgroup/system.slice/app.service", 512, 100),
        ("memory.high", "/sys/fs/cgroup/system.slice", 900, 250),
    ]


def test_v2_a_containers_own_root(tree: Tree) -> None:
    """In a cgroup namespace of its own a container sees its group as the root, with the limits in it."""
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup", memory__max=256 * MIB, memory__high="max", memory__current=64 * MIB, memory__stat=stat_v2(4, 0))
    assert tree.figures() == [("memory.max", "/sys/fs/cgroup", 256, 60)]


def test_v2_a_container_in_the_hosts_namespace(tree: Tree) -> None:
    """With `--cgroupns=host` the limit lies at the path that /proc names, not at the root of the mount, which has none."""
    tree.proc("0::/docker/0123abc\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup", cgroup__procs="")
    tree.group("/sys/fs/cgroup/docker", memory__max="max", memory__current=9 * MIB)
    tree.group("/sys/fs/cgroup/docker/0123abc", memory__max=512 * MIB, memory__current=10 * MIB)
    assert tree.figures() == [("memory.max", "/sys/fs/cgroup/docker/0123abc", 512, 10)]


def test_v2_a_mount_from_above_the_namespace(tree: Tree) -> None:
    """Podman's mount shows more than the namespace: the names in between cannot be known, and nothing is guessed."""
    tree.proc("0::/\n", V2_MOUNT.format(root="/../../..", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup", memory__max=700 * MIB, memory__current=10 * MIB)
    assert tree.figures() == [("memory.max", "/sys/fs/cgroup", 700, 10)]


@pytest.mark.parametrize("order", [1, -1])
def test_v2_the_hosts_tree_mounted_beside_ones_own(tree: Tree, order: int) -> None:
    """A tool's mount of the host's tree in a container (`/../../..`) tells nothing of it, whether it comes first or last."""
    mounts = [V2_MOUNT.format(root="/../../..", point="/host/cgroup"), V2_MOUNT.format(root="/", point="/sys/fs/cgroup")]
    tree.proc("0::/\n", *mounts[::order])
    tree.group("/host/cgroup", cgroup__procs="")
    tree.group("/sys/fs/cgroup", memory__max=256 * MIB, memory__current=10 * MIB)
    assert tree.figures() == [("memory.max", "/sys/fs/cgroup", 256, 10)]


def test_v2_names_of_files_are_given_up_like_their_pages(tree: Tree) -> None:
    """200 MiB of dentries, as after many lookups of files that are not there, are no reason to refuse a load."""
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    statistics = stat_v2(4, 0) + f"\nslab_reclaimable {200 * MIB}\nslab_unreclaimable {7 * MIB}\n"
    tree.group("/sys/fs/cgroup", memory__max=420 * MIB, memory__current=300 * MIB, memory__stat=statistics)
    assert tree.figures() == [("memory.max", "/sys/fs/cgroup", 420, 96)]


def test_v2_a_process_outside_of_its_namespace(tree: Tree) -> None:
    """A path that leads out of the namespace (`/../other`) is never joined to the mount point."""
    tree.proc("0::/../other\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup", memory__max=700 * MIB, memory__current=10 * MIB)
    tree.group("/sys/fs/other", memory__max=1 * MIB, memory__current=0)
    assert tree.figures() == [("memory.max", "/sys/fs/cgroup", 700, 10)]


def test_v1_nested_with_the_unlimited_number(tree: Tree) -> None:
    """LONG_MAX rounded down to a page is no limit, whatever the size of a page; the sums of the whole subtree are used."""
    tree.proc("5:cpuset:/x\n4:memory,hugetlb:/a/b\n0::/\n", V1_MOUNT.format(root="/", point="/sys/fs/cgroup/memory"))
    point = "/sys/fs/cgroup/memory"
    tree.group(point, memory__limit_in_bytes=9223372036854710272, memory__usage_in_bytes=900 * MIB, memory__stat=stat_v1(1, 1))
    tree.group(
        f"{point}/a",
        memory__limit_in_bytes=800 * MIB,
        memory__usage_in_bytes=500 * MIB,
        memory__stat=stat_v1(60, 40),
        memory__use_hierarchy=1,
    )
    tree.group(
        f"{point}/a/b",
        memory__limit_in_bytes=V1_UNLIMITED,
        memory__usage_in_bytes=100 * MIB,
        memory__memsw__limit_in_bytes=600 * MIB,
        memory__memsw__usage_in_bytes=120 * MIB,
        memory__stat=stat_v1(6, 4),
    )
    assert tree.figures() == [
        ("memory.memsw.limit_in_bytes", "/sys/fs/cgroup/memory/a/b", 600, 110),
        ("memory.limit_in_bytes", "/sys/fs/cgroup/memory/a", 800, 400),
    ]


def test_v1_under_docker(tree: Tree) -> None:
    """Docker mounts the container's own group: the path in /proc is the mount's root, and its files lie at the mount point."""
    tree.proc("4:memory:/docker/0123abc\n", V1_MOUNT.format(root="/docker/0123abc", point="/sys/fs/cgroup/memory"))
    tree.group("/sys/fs/cgroup/memory", memory__limit_in_bytes=512 * MIB, memory__usage_in_bytes=20 * MIB)
    tree.group("/sys/fs/cgroup/memory/worker", memory__limit_in_bytes=1 * MIB, memory__usage_in_bytes=0)
    assert tree.figures() == [("memory.limit_in_bytes", "/sys/fs/cgroup/memory", 512, 20)]


def test_v1_a_group_below_a_containers_own(tree: Tree) -> None:
    """A group that the container made inside its own is found below the mount point."""
    tree.proc("4:memory:/docker/0123abc/worker\n", V1_MOUNT.format(root="/docker/0123abc", point="/sys/fs/cgroup/memory"))
    tree.group("/sys/fs/cgroup/memory", memory__limit_in_bytes=512 * MIB, memory__usage_in_bytes=20 * MIB)
    tree.group("/sys/fs/cgroup/memory/worker", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=8 * MIB)
    assert [figure[1:] for figure in tree.figures()] == [
        ("/sys/fs/cgroup/memory/worker", 64, 8),
        ("/sys/fs/cgroup/memory", 512, 20),
    ]


def test_v1_an_ancestor_out_of_sight(tree: Tree) -> None:
    """A pod's limit above the container's is in `hierarchical_memory_limit`, and counts if it is tighter than what is seen."""
    tree.proc("4:memory:/kubepods/pod1/c1\n", V1_MOUNT.format(root="/kubepods/pod1/c1", point="/sys/fs/cgroup/memory"))
    tree.group(
        "/sys/fs/cgroup/memory",
        memory__limit_in_bytes=V1_UNLIMITED,
        memory__usage_in_bytes=100 * MIB,
        memory__stat=stat_v1(30, 10, hierarchical_limit=300 * MIB),
    )
    (limit,) = tree.limits()
    assert (limit.limit_bytes, limit.used_bytes) == (300 * MIB, 60 * MIB)
    assert "cannot be seen" in limit.where


def test_v1_an_ancestor_that_accounts_alone(tree: Tree) -> None:
    """Without `use_hierarchy` a group is not charged for those below it, and does not limit them."""
    tree.proc("4:memory:/a/b\n", V1_MOUNT.format(root="/", point="/sys/fs/cgroup/memory"))
    point = "/sys/fs/cgroup/memory"
    tree.group(f"{point}/a", memory__limit_in_bytes=1 * MIB, memory__usage_in_bytes=0, memory__use_hierarchy=0)
    tree.group(f"{point}/a/b", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=0, memory__use_hierarchy=0)
    assert [figure[1:3] for figure in tree.figures()] == [("/sys/fs/cgroup/memory/a/b", 64)]


def test_hybrid(tree: Tree) -> None:
    """Both versions mounted, the memory controller on the first: limits come from it, and the second has none to give."""
    tree.proc(
        "4:memory:/a\n0::/a\n",
        V1_MOUNT.format(root="/", point="/sys/fs/cgroup/memory"),
        V2_MOUNT.format(root="/", point="/sys/fs/cgroup/unified"),
    )
    tree.group("/sys/fs/cgroup/memory/a", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=MIB)
    tree.group("/sys/fs/cgroup/unified/a", cgroup__procs="")
    assert sorted(group.version for group in memory_cgroups(str(tree.root))) == [1, 2]
    assert tree.figures() == [("memory.limit_in_bytes", "/sys/fs/cgroup/memory/a", 64, 1)]


@pytest.mark.parametrize("missing", ["memory.max", "memory.current", "memory.stat"])
def test_missing_files(tree: Tree, missing: str) -> None:
    """Without a limit or its use there is no limit; without the statistics nothing counts as reclaimable."""
    tree.proc("0::/a\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup/a", memory__max=64 * MIB, memory__current=8 * MIB, memory__stat=stat_v2(2, 2))
    (tree.root / "sys/fs/cgroup/a" / missing).unlink()
    assert [figure[2:] for figure in tree.figures()] == ([(64, 8)] if missing == "memory.stat" else [])


@pytest.mark.parametrize("text", ["", "max", "garbage", "-1", "12 34", "9" * 30])
def test_a_limit_that_is_no_number(tree: Tree, text: str) -> None:
    """Whatever the file holds, it is a limit or none, and never an exception."""
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup", memory__max=text, memory__current=8 * MIB)
    assert tree.limits() == []


def test_no_proc_at_all(tree: Tree) -> None:
    """A system without /proc has no control groups."""
    assert memory_cgroups(str(tree.root)) == ()
    assert tree.limits() == []


def test_no_mount(tree: Tree) -> None:
    """Groups that are not mounted anywhere cannot be asked."""
    tree.proc("4:memory:/a\n0::/a\n")
    assert memory_cgroups(str(tree.root)) == ()


def test_a_group_that_was_removed(tree: Tree) -> None:
    """The kernel marks its path as deleted; its ancestors still bind."""
    tree.proc("0::/a/b (deleted)\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup/a", memory__max=64 * MIB, memory__current=0)
    assert [figure[1:3] for figure in tree.figures()] == [("/sys/fs/cgroup/a", 64)]


def test_a_mount_point_with_blanks(tree: Tree) -> None:
    """mountinfo writes a blank as backslash 040."""
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/my\\040groups"))
    tree.group("/my groups", memory__max=64 * MIB, memory__current=0)
    assert [figure[1:3] for figure in tree.figures()] == [("/my groups", 64)]


def test_of_two_mounts_the_one_that_shows_the_group_is_used(tree: Tree) -> None:
    """A bind mount of some other group elsewhere does not hide the limit."""
    tree.proc(
        "0::/a/b\n",
        V2_MOUNT.format(root="/other", point="/mnt/other"),
        V2_MOUNT.format(root="/", point="/sys/fs/cgroup"),
    )
    tree.group("/mnt/other", memory__max=1 * MIB, memory__current=0)
    tree.group("/sys/fs/cgroup/a/b", memory__max=64 * MIB, memory__current=0)
    assert [figure[1:3] for figure in tree.figures()] == [("/sys/fs/cgroup/a/b", 64)]


def test_more_used_than_allowed_leaves_nothing(tree: Tree) -> None:
    """After a limit was lowered its use may be above it: available is 0, never negative."""
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.group("/sys/fs/cgroup", memory__max=64 * MIB, memory__current=80 * MIB)
    assert [limit.available_bytes for limit in tree.limits()] == [0]


@needs_cgroups
def test_a_real_group_is_found_with_its_limit_and_use() -> None:
    """In a group of 96 MiB, a block of 32 MiB is used memory, and 32 MiB of a file that was read are not."""
    before, after = run_limited(
        """
        import tempfile
        from mlup_stream.memory.cgroup import cgroup_limits
        def tightest():
            limit = min(cgroup_limits(), key=lambda limit: limit.limit_bytes)
            return [limit.limit_bytes, limit.used_bytes]
        first = tightest()
        block = b"x" * (32 << 20)
        with tempfile.TemporaryFile() as file:
            for _ in range(32):
                file.write(block[: 1 << 20])
            file.flush()
            _os.fsync(file.fileno())
            answer([first, tightest()])
        """,
        limit_bytes=96 * MIB,
    )
    assert before[0] == after[0] == 96 * MIB
    assert 31 * MIB <= after[1] - before[1] <= 40 * MIB


@needs_cgroups
def test_a_group_is_removed_after_a_test() -> None:
    """The helper leaves nothing behind."""
    with cgroup_limit(64 * MIB) as (folder, _):
        assert Path(folder).is_dir()
    assert not Path(folder).exists()
