"""What a load trusts its file with, and whether a name that the file wants is among it.

Exact names only: module and name have to stand on a list together, as the file says them. No prefix, no attribute of what is
listed, no name that a listed module has imported from elsewhere. What is not listed is not even imported.
"""

from __future__ import annotations

import _compat_pickle
import enum
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlup_stream.errors import ConfigError, TrustError
from mlup_stream.trust.ready import ready_globals

__all__ = ["FULL", "IF_YOU_TRUST", "Policy", "Trust", "in_python_3", "parse_global", "refused"]

IF_YOU_TRUST = 'trust="full" (--trust full), if you trust whoever made the file'
"""How the messages end."""

_GLOBAL = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Trust(str, enum.Enum):
    """How far a file is trusted."""

    FULL = "full"
    """It may import and call whatever it names: `pickle.load`'s own behaviour."""
    LISTED = "listed"
    """It may name what stands on the ready lists and on `trusted_globals`."""
    NONE = "none"
    """Only formats that carry no code are loaded."""


@dataclass(frozen=True)
class Policy:
    """The trust of one load.

    Attributes:
        level: How far the file is trusted.
        globals: What it may name beside the ready lists: module and name.
    """

    level: Trust = Trust.FULL
    globals: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def of(cls, level: Trust | str, trusted_globals: Iterable[str] = ()) -> Policy:
        return cls(Trust(level), frozenset(map(parse_global, trusted_globals)))

    @property
    def is_full(self) -> bool:
        return self.level is Trust.FULL

    def allows(self, module: str, name: str) -> bool:
        """Whether a file may name it."""
        return self.is_full or self.is_listed(module, name)

    def is_listed(self, module: str, name: str) -> bool:
        """Whether it stands on a list."""
        return (module, name) in self.globals or (module, name) in ready_globals()

    def allows_module(self, module: str) -> bool:
        """Whether something of the module is listed, so that importing it is nothing that a file could choose."""
        return self.is_full or any(module == each for each, _ in (*self.globals, *ready_globals()))


    @property
    def digest(self) -> str:
        """Of all that it allows."""
        text = "\n".join(sorted(f"{module} {name}" for module, name in (*self.globals, *ready_globals())))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


FULL = Policy()


def parse_global(text: str) -> tuple[str, str]:
    """Module and name of `"package.module.Name"`, or of `"package.module:Outer.Name"`.

    Raises:
        ConfigError: It is neither.
    """
    module, _, name = text.partition(":") if ":" in text else text.rpartition(".")
    if not _GLOBAL.fullmatch(module) or not _GLOBAL.fullmatch(name):
        raise ConfigError(
            f"trusted_globals: {text!r} is not a name; expected 'package.module.Name', or 'package.module:Outer.Name'",
            field="trusted_globals",
            value=text,
        )
    return module, name


_WITHOUT_PACKAGE = {"_loss": "sklearn._loss._loss"}
"""What scikit-learn up to 1.7 calls a compiled module of its own. By that name a file in the working folder could be meant."""


def in_python_3(module: str, name: str) -> tuple[str, str]:
    """What Python 3 calls what Python 2 wrote, as the unpickler translates it, and a module by its whole name."""
    module = _WITHOUT_PACKAGE.get(module, module)
    found = _compat_pickle.NAME_MAPPING.get((module, name))
    if found is not None:
        return found
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


def refused(file: str, module: str, name: str, position: int | None = None) -> TrustError:
    """The error for a name that is not listed."""
    where = f" at byte {position}" if position is not None else ""
    return TrustError(
        f"{file}: it names {module}.{name}{where}, which is on no list of what a model may import and call; nothing of it was"
        f' imported. If you trust it, set trusted_globals=["{module}:{name}"] (--trusted-global {module}:{name}), or'
        f" {IF_YOU_TRUST}",
        path=file,
        module=module,
        qualname=name,
        position=position,
    )
