"""What a plan decides of a load, and what building returns: the two values that pass between the plan and a binarizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.reader import OnWindow
from mlup_stream.trust.policy import FULL, Policy

__all__ = ["Built", "Terms"]


@dataclasses.dataclass(frozen=True)
class Terms:
    """How a model is to be built. Whoever is handed one changes nothing in it.

    Attributes:
        delivery: How the bytes travel; None leaves it to the binarizer.
        mapping: Whether mapped payloads are writable.
        optimize: What to prefer where a format lets one choose.
        options: The binarizer's options: `binarization_kwargs`.
        on_window: Called with the number of bytes that have passed, once per window of whatever is read; what it raises ends the
            load.
        trust: What the file may import and call, beyond what the format's library refuses by itself.
        planned: Whether a plan made these, rather than a direct call of the binarizer: defaults that a plan makes stricter.
    """

    delivery: Delivery | None = None
    mapping: MappingMode = MappingMode.AUTO
    optimize: Optimize = Optimize.MEMORY
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    on_window: OnWindow | None = None
    trust: Policy = FULL
    planned: bool = False

    @property
    def writable(self) -> bool:
        """Whether the model's arrays may be written to: those of a map are copy-on-write then."""
        return self.mapping is not MappingMode.READ_ONLY

    @property
    def maps_unaligned(self) -> bool:
        """Whether arrays stay in the map that are not aligned to their items, whoever has them: where mapping was asked for.

        Code in C may refuse such arrays, and a program that did not ask gets those that its library would give.
        """
        return self.mapping is not MappingMode.AUTO and self.optimize is not Optimize.SPEED

    @property
    def drops_behind(self) -> bool:
        """Whether a reader gives the page cache behind it back."""
        return self.delivery is Delivery.STREAM and self.optimize is Optimize.MEMORY


class Built(NamedTuple):
    """What building a model gave.

    Attributes:
        model: The model object.
        placement: Where its payload went; None where that is not known.
        arrays_writable: Whether its arrays may be written to; None where a format has no arrays to give.
    """

    model: Any
    placement: Placement | None = None
    arrays_writable: bool | None = None
