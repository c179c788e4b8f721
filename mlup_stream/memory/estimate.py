"""What a load will cost, said before it starts: values and their arithmetic. Who knows a format makes them from its headers.

    weights = Estimate.in_place(payload_bytes, private_bytes=rest_bytes, certainty=Certainty.EXACT, why="the zip's directory")
    estimate.with_raw(size)     # delivery `bytes`: the file lies in memory too until the release
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

from mlup_stream.memory.limit import Counts

__all__ = ["Certainty", "Estimate", "by_size"]


class Certainty(str, Enum):
    """How sure an estimate is."""

    EXACT = "exact"
    """From the file's headers: within 5% of what will be measured."""
    CONSERVATIVE = "conservative"
    """An upper bound: the load takes this or less."""
    LEARNED = "learned"
    """What an earlier load of this very file took."""
    UNKNOWN = "unknown"
    """A guess. A load is not refused for it, only for `at_least_bytes`."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The memory that one delivery of one file takes on top of what the process has, in bytes.

    Attributes:
        peak_anon_bytes: Private memory at the highest point.
        peak_file_bytes: Pages of mapped files that will be touched at most: they can be taken back, so budgets do not count them.
        settled_anon_bytes: Private memory once the model is there and the rest was given back.
        settled_file_bytes: Pages of mapped files then.
        certainty: How sure this is.
        why: What it follows from, in a few words.
        mapped_bytes: Address space of maps of files, touched or not; RLIMIT_AS counts it. At least `peak_file_bytes`.
        copy_on_write_bytes: How much of that is writable; RLIMIT_DATA counts it, and a commit limit does.
        at_least_bytes: Of a guess, the part that is none: private memory that the load will take whatever the format turns out
            to need. A load is refused for that.

    Raises:
        ValueError: A size is negative, or more is settled than there was at the peak.
    """

    peak_anon_bytes: int
    peak_file_bytes: int
    settled_anon_bytes: int
    settled_file_bytes: int
    certainty: Certainty
    why: str
    mapped_bytes: int = 0
    copy_on_write_bytes: int = 0
    at_least_bytes: int = 0

    def __post_init__(self) -> None:
        sizes = [value for name, value in vars(self).items() if name.endswith("_bytes")]
        if min(sizes) < 0:
            raise ValueError(f"an estimate has no negative sizes, found {min(sizes)}")
        if self.settled_anon_bytes > self.peak_anon_bytes or self.settled_file_bytes > self.peak_file_bytes:
            raise ValueError("an estimate's settled memory is part of its peak; raise the peak to at least the settled size")
        object.__setattr__(self, "mapped_bytes", max(self.mapped_bytes, self.peak_file_bytes, self.copy_on_write_bytes))

    @classmethod
    def private(cls, peak_bytes: int, settled_bytes: int | None = None, *, certainty: Certainty, why: str) -> Estimate:
        """A load into private memory; without `settled_bytes` all of it stays."""
        return cls(peak_bytes, 0, peak_bytes if settled_bytes is None else settled_bytes, 0, certainty, why)

    @classmethod
    def in_place(
        cls,
        mapped_bytes: int,
        *,
        certainty: Certainty,
        why: str,
        private_bytes: int = 0,
        touched_bytes: int = 0,
        copy_on_write: bool = False,
    ) -> Estimate:
        """A load that leaves `mapped_bytes` in the file, touches `touched_bytes` of them, and copies `private_bytes`."""
        writable_bytes = mapped_bytes if copy_on_write else 0
        return cls(
            private_bytes, touched_bytes, private_bytes, touched_bytes, certainty, why, mapped_bytes, writable_bytes
        )

    @property
    def peak_bytes(self) -> int:
        """RSS at the highest point: an upper bound where the two peaks do not fall together."""
        return self.peak_anon_bytes + self.peak_file_bytes

    @property
    def settled_bytes(self) -> int:
        """RSS once settled."""
        return self.settled_anon_bytes + self.settled_file_bytes

    def needed_bytes(self, counts: Counts) -> int:
        """How much of a limit that counts this the load needs."""
        if counts is Counts.PRIVATE:
            return self.peak_anon_bytes
        if counts is Counts.DATA:
            return self.peak_anon_bytes + self.copy_on_write_bytes
        return self.peak_anon_bytes + self.mapped_bytes

    def with_raw(self, size_bytes: int) -> Estimate:
        """The same load out of a copy of the file in memory, which is released at the end."""
        return dataclasses.replace(
            self,
            peak_anon_bytes=self.peak_anon_bytes + size_bytes,
            at_least_bytes=self.at_least_bytes + size_bytes,
            why=f"{self.why}, and the raw bytes until they are released",
        )

    def at_least(self, size_bytes: int) -> Estimate:
        """The same guess, of which `size_bytes` of private memory are none; what is no guess stays what it is."""
        if self.certainty is not Certainty.UNKNOWN or size_bytes <= self.at_least_bytes:
            return self
        return dataclasses.replace(
            self, peak_anon_bytes=max(self.peak_anon_bytes, size_bytes), at_least_bytes=size_bytes
        )

    @property
    def certain(self) -> Estimate:
        """The part of a guess that is none."""
        return Estimate.private(
            self.at_least_bytes, 0, certainty=Certainty.EXACT, why="what is sure of it: the raw bytes, or the model as it was"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "certainty": self.certainty.value,
            "peak_bytes": self.peak_bytes,
            "settled_bytes": self.settled_bytes,
        }


def by_size(size_bytes: int, delivery: str) -> Estimate:
    """What the size alone says: a model is as large as its file, and a copy of the file lies beside it for delivery `bytes`.

    A guess. Objects can take ten times their pickled size, and compressed files more than that.
    """
    guess = Estimate.private(size_bytes, certainty=Certainty.UNKNOWN, why="the size of the file; its format says no more")
    return guess.with_raw(size_bytes) if delivery == "bytes" else guess
