"""What the Linux kernel says of this process in `/proc/self`, as numbers; nothing where there is no such file.

The names and meanings are those of proc_pid_status(5), proc_pid_smaps(5) and proc_vmstat(5).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re

__all__ = ["anon_growth_limit_bytes", "reset_high_water", "smaps_rollup", "status"]

_STATUS = re.compile(rb"^(VmHWM|VmRSS|RssAnon|RssFile|RssShmem|VmSwap|VmData):\s+(\d+) kB$", re.MULTILINE)
_ROLLUP = re.compile(rb"^(Pss|Private_Clean|Private_Dirty|Private_Hugetlb):\s+(\d+) kB$", re.MULTILINE)
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
_HUGE_PAGE_COUNTERS = (b"\nthp_fault_alloc ", b"\nthp_collapse_alloc ")

_huge_page_sizes: tuple[int, tuple[tuple[int, str], ...]] | None = None


def _read(path: str) -> bytes:
    """The file's content, empty if it cannot be read. Unbuffered: one system call to read it."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _in_bytes(found: list[tuple[bytes, bytes]]) -> dict[str, int]:
    return {name.decode(): int(kilobytes) * 1024 for name, kilobytes in found}


def status() -> dict[str, int]:
    """`VmHWM`, `VmRSS`, `RssAnon`, `RssFile`, `RssShmem`, `VmSwap` and `VmData` in bytes, without those that are not known here."""
    return _in_bytes(_STATUS.findall(_read("/proc/self/status")))


def smaps_rollup() -> dict[str, int]:
    """`Pss`, `Private_Clean`, `Private_Dirty` and `Private_Hugetlb` in bytes. Walks the page tables: 0.2 ms and more."""
    return _in_bytes(_ROLLUP.findall(_read("/proc/self/smaps_rollup")))


def reset_high_water() -> bool:
    """Sets `VmHWM` back to the present RSS. False where that cannot be done (no `/proc`, or one that may not be written)."""
    try:
        fd = os.open("/proc/self/clear_refs", os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        return os.write(fd, b"5") == 1
    except OSError:
        return False
    finally:
        os.close(fd)


def anon_growth_limit_bytes() -> int | None:
    """A counter whose growth over an interval is at least the growth of anonymous memory, swap included, at any moment in it.

    An anonymous page comes into being in a page fault of this process, which the kernel counts, and is one page, unless the
    fault gave a huge page or khugepaged made one, which it counts too, for the whole machine (others' huge pages make
    the limit looser, never wrong). Pages of files are mapped 16 and more to a fault, so a load that leaves its payload in a map
    shows as few faults. Two things escape it, and neither is in a loader's power: userfaultfd copies and another process that
    writes into this one's memory.

    Returns:
        Bytes, meaningful only as a difference; None where the kernel does not count.
    """
    vmstat = _read("/proc/vmstat")
    if not vmstat:
        return None
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    huge_bytes, small_sizes = _sizes_of_huge_pages()
    limit = (usage.ru_minflt + usage.ru_majflt) * mmap.PAGESIZE
    limit += sum(_counter(vmstat, name) for name in _HUGE_PAGE_COUNTERS) * huge_bytes
    for size_bytes, counter in small_sizes:
        limit += int(_read(counter) or 0) * size_bytes
    return limit


def _counter(vmstat: bytes, name: bytes) -> int:
    """The number after `name`; 0 in a kernel without huge pages. Not a regular expression: 150 lines, read twice per load."""
    start = vmstat.find(name)
    return 0 if start < 0 else int(vmstat[start + len(name) : vmstat.index(b"\n", start + len(name))])


def _sizes_of_huge_pages() -> tuple[int, tuple[tuple[int, str], ...]]:
    """The size of a huge page, and size and counter of each smaller one that is switched on. Asked once per process."""
    global _huge_page_sizes
    if _huge_page_sizes is None:
        huge_bytes = int(_read(f"{_HUGE_PAGES}/hpage_pmd_size") or 2 * 1024 * 1024)
        small = []
        with contextlib.suppress(OSError):
            for name in os.listdir(_HUGE_PAGES):
                match = re.fullmatch(r"hugepages-(\d+)kB", name)
                switched_on = b"[never]" not in _read(f"{_HUGE_PAGES}/{name}/enabled")
                if match and switched_on and int(match[1]) * 1024 != huge_bytes:  # /proc/vmstat has the largest
                    small.append((int(match[1]) * 1024, f"{_HUGE_PAGES}/{name}/stats/anon_fault_alloc"))
        _huge_page_sizes = huge_bytes, tuple(small)
    return _huge_page_sizes
