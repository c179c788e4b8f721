"""Whether a file may be loaded under a policy, found out before anything that it names is imported.

A pickle is followed from its first opcode to its last by stand-ins (`formats.pickles.globals_of`). What passed is remembered by
the file's identity and by what was allowed, so that a later load walks it no more. While it is loaded, the unpicklers hold every
name against the policy once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.checked_once import checked_once
from mlup_stream.errors import CorruptModelError, TrustError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.pickles.compressed_head import unpacked_head
from mlup_stream.formats.pickles.dry_unpickler import CannotFollow
from mlup_stream.formats.pickles.globals_of import Abused, follow_globals
from mlup_stream.registry import spec_of
from mlup_stream.trust.policy import IF_YOU_TRUST, Policy, Trust, in_python_3, refused

__all__ = ["audit", "check_trust"]

_VERSION = 1
_GOVERNED = (Format.PICKLE, Format.JOBLIB)
_SWITCHES: dict[str, Any] = {"allow_pickle": True, "weights_only": False, "safe_mode": False, "custom_objects": ...}
"""The options by which a library is told to run what a file brings; `...` is any value."""


def check_trust(artifact: Artifact, format: str | None, binarizer: str, options: Mapping[str, Any], policy: Policy) -> None:
    """Makes sure that the file may be loaded. Does nothing under full trust.

    Args:
        artifact: The file.
        format: Its format; None for a binarizer of somebody else's, of which nobody knows what it does.
        binarizer: What it is called.
        options: `binarization_kwargs`.
        policy: What the file is trusted with.

    Raises:
        TrustError: It may not: it names what is not listed, its format runs code and there is no list for it, or an option asks
            for that.
    """
    if policy.is_full or artifact.is_model:
        return
    level = policy.level.value
    for name, value in _SWITCHES.items():
        if name in options and (value is ... or options[name] == value) and options[name] is not None:
            raise TrustError(
                f"{artifact.name}: {name}={options[name]!r} lets the file run code, which trust={level!r} does not; leave it out,"
                f"{IF_YOU_TRUST}",
                path=artifact.path,
            )
    runs_code = spec_of(format).runs_code[0] if format is not None else f"yes, for all that is known of {binarizer}"
    if not runs_code.startswith("yes"):
        return
    if policy.level is Trust.NONE or format not in _GOVERNED:
        what = f"of the format {spec_of(format).name}" if format is not None else f"built by {binarizer}"
        listed = ' set trust="listed" (--trust listed), which loads what names only known classes,' if format in _GOVERNED else ""
        raise TrustError(
            f"{artifact.name}: it is {what}, which can run code that the file chooses, and trust={level!r} loads none such;"
            f"{listed}{IF_YOU_TRUST if listed else ' set' + IF_YOU_TRUST[3:]}",
            path=artifact.path,
            format=format,
        )
    checked_once(artifact, f"trust {_VERSION} {policy.digest}", lambda: _check_pickle(artifact, policy))


def audit(artifact: Artifact, format: str, policy: Policy) -> dict[str, Any]:
    """What a file would import and call, and whether the policy allows it; for people and for CI.

    Returns:
        `trust`: the policy's level; `safe`: whether a load under it would begin; `refused`: why not, empty if it would; `names`:
        of a pickle, each name in it with the byte at which it is first and whether it is listed.
    """
    names: dict[tuple[str, str], int] = {}

    def note(module: str, name: str, at: int) -> None:
        names.setdefault(in_python_3(module, name), at)

    refusal = ""
    if format in _GOVERNED and artifact.is_rewindable:
        with contextlib.suppress(Abused, CannotFollow, CorruptModelError), artifact.open() as file:
            follow_globals(file, note, artifact.name)
    try:
        check_trust(artifact, format, format, {}, policy)
    except (TrustError, CorruptModelError) as error:
        refusal = str(error)
    listed = [
        {"name": f"{module}.{name}", "position": at, "listed": policy.is_listed(module, name)}
        for (module, name), at in names.items()
    ]
    return {"trust": policy.level.value, "safe": not refusal, "refused": refusal, "names": listed}


def _check_pickle(artifact: Artifact, policy: Policy) -> None:
    if not artifact.is_rewindable:
        raise TrustError(f"{artifact.name}: a stream that cannot go back cannot be checked before it is loaded; give a file")
    with artifact.open() as file:
        with Peek(file) as peek:
            is_compressed = unpacked_head(peek) is not None
        if is_compressed:
            raise TrustError(
                f"{artifact.name}: it is compressed, and is checked before anything is built only where it is not; unpack it with"
                f" `mlup-stream pack`,{IF_YOU_TRUST}",
                path=artifact.path,
            )

        def named(module: str, name: str, at: int) -> None:
            if not policy.allows(*in_python_3(module, name)):
                raise refused(artifact.name, *in_python_3(module, name), at)

        file.seek(0)
        try:
            follow_globals(file, named, artifact.name)
        except Abused as error:
            what, at = error.args
            raise TrustError(
                f"{artifact.name}: at byte {at} it has {what}, which trust={policy.level.value!r} does not load;"
                f" set{IF_YOU_TRUST[3:]}",
                path=artifact.path,
                position=at,
            ) from error
        except CannotFollow as error:
            raise TrustError(
                f"{artifact.name}: what it does cannot be followed without doing it ({error or 'unusual'}), so that it cannot be"
                f" checked; set{IF_YOU_TRUST[3:]}",
                path=artifact.path,
            ) from error
