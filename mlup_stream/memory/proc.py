"""What the Linux kernel says of this process in `/proc/self`, as numbers; nothing where there is no such file.

The names and meanings are those of proc_pid_status(5), proc_pid_smaps(5) and proc_vmstat(5).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re

__all__ = ["anon_growth_limit_bytes", "number_after", "read_file", "reset_high_water", "smaps_rollup", "status"]

_STATUS = ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmSwap", "VmSize", "VmData")
_ROLLUP = ("Pss", "Private_Clean", "Private_Dirty", "Private_Hugetlb")
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
_HUGE_PAGE_COUNTERS = (b"thp_fault_alloc ", b"thp_collapse_alloc ")

_huge_page_sizes: tuple[int, tuple[tuple[int, str], ...]] | None = None


def read_file(path: str) -> bytes:
    """The content of a small file, empty if it cannot be read: three system calls, where `open` makes seven."""
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


def number_after(text: bytes, name: bytes) -> int | None:
    """The number after `name` at the start of a line; None without such a line.

    Not a regular expression, which takes three times as long on the kernel's tables.
    """
    start = 0 if text.startswith(name) else text.find(b"\n" + name) + 1
    if start == 0 and not text.startswith(name):
        return None
    end = text.find(b"\n", start)
    words = text[start + len(name) : end if end >= 0 else None].split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else None


def _sizes(text: bytes, names: tuple[str, ...]) -> dict[str, int]:
    """The values in kB of the lines `name:` that are there, in bytes."""
    found = ((name, number_after(text, name.encode() + b":")) for name in names)
    return {name: kilobytes * 1024 for name, kilobytes in found if kilobytes is not None}


def status() -> dict[str, int]:
    """`VmHWM`, `VmRSS`, `RssAnon`, `RssFile`, `RssShmem`, `VmSwap`, `VmSize` and `VmData` in bytes, those that are known here."""
    return _sizes(read_file("/proc/self/status"), _STATUS)


def smaps_rollup() -> dict[str, int]:
    """`Pss`, `Private_Clean`, `Private_Dirty` and `Private_Hugetlb` in bytes. Walks the page tables: 0.2 ms and more."""
    return _sizes(read_file("/proc/self/smaps_rollup"), _ROLLUP)


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
    vmstat = read_file("/proc/vmstat")
    if not vmstat:
        return None
    import resource

    try:
        usage = resource.getrusage(resource.RUSAGE_SELF)
    except OSError:  # a filter of system calls
        return None
    huge_bytes, small_sizes = _sizes_of_huge_pages()
    limit = (usage.ru_minflt + usage.ru_majflt) * mmap.PAGESIZE
    limit += sum(number_after(vmstat, name) or 0 for name in _HUGE_PAGE_COUNTERS) * huge_bytes
    for size_bytes, counter in small_sizes:
        limit += int(read_file(counter) or 0) * size_bytes
    return limit


def _sizes_of_huge_pages() -> tuple[int, tuple[tuple[int, str], ...]]:
    """The size of a huge page, and size and counter of each smaller one that is switched on. Asked once per process."""
    global _huge_page_sizes
    if _huge_page_sizes is None:
        huge_bytes = int(read_file(f"{_HUGE_PAGES}/hpage_pmd_size") or 2 * 1024 * 1024)
        small = []
        with contextlib.suppress(OSError):
            for name in os.listdir(_HUGE_PAGES):
                match = re.fullmatch(r"hugepages-(\d+)kB", name)
                switched_on = b"[never]" not in read_file(f"{_HUGE_PAGES}/{name}/enabled")
                if match and switched_on and int(match[1]) * 1024 != huge_bytes:  # /proc/vmstat has the largest
                    small.append((int(match[1]) * 1024, f"{_HUGE_PAGES}/{name}/stats/anon_fault_alloc"))
        _huge_page_sizes = huge_bytes, tuple(small)
    return _huge_page_sizes
