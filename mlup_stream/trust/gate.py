"""Whether a file may be loaded under a policy, found out before anything that it names is imported.

A pickle is followed from its first opcode to its last by stand-ins (`formats.pickles.globals_of`). What passed is remembered by
the file's identity and by what was allowed, so that a later load walks it no more. While it is loaded, the unpicklers hold every
name against the policy once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.checked_once import checked_once
from mlup_stream.errors import CorruptModelError, TrustError
from mlup_stream.formats.kinds import Format, FormatSpec
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.pickles.compressed_head import unpacked_head
from mlup_stream.formats.pickles.dry_unpickler import CannotFollow
from mlup_stream.formats.pickles.globals_of import Abused, follow_globals
from mlup_stream.registry import spec_of
from mlup_stream.trust.policy import IF_YOU_TRUST, Policy, Trust, in_python_3, refused

__all__ = ["audit", "check_trust"]

_VERSION = 1
_GOVERNED = (Format.PICKLE, Format.JOBLIB)


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
    _check_format(artifact, None if format is None else spec_of(format), binarizer, options, policy)
    if format in _GOVERNED:
        checked_once(artifact, f"trust {_VERSION} {policy.digest}", lambda: _check_pickle(artifact, policy))


def audit(artifact: Artifact, format: str, policy: Policy) -> dict[str, Any]:
    """What a file would import and call, and whether the policy allows it; for people and for CI.

    Returns:
        `trust`: the policy's level; `safe`: whether a load under it would begin; `refused`: why not, empty if it would; `names`:
        of a pickle, each name in it with the byte at which it is first and whether it is listed.
    """
    names: dict[tuple[str, str], int] = {}
    refusal = _refusal_of(lambda: _check_format(artifact, spec_of(format), format, {}, policy))
    if format in _GOVERNED:
        walked = _refusal_of(lambda: _check_pickle(artifact, policy, names))  # for the names, whatever the format is
        refusal = refusal or walked
    if policy.is_full:
        refusal = ""
    listed = [
        {"name": f"{module}.{name}", "position": at, "listed": policy.is_listed(module, name)}
        for (module, name), at in names.items()
    ]
    return {"trust": policy.level.value, "safe": not refusal, "refused": refusal, "names": listed}


def _refusal_of(check: Callable[[], None]) -> str:
    try:
        check()
    except (TrustError, CorruptModelError) as error:
        return str(error)
    return ""


def _check_format(
    artifact: Artifact, spec: FormatSpec | None, binarizer: str, options: Mapping[str, Any], policy: Policy
) -> None:
    level = policy.level.value
    for name, value in spec.code_options if spec is not None else ():
        if options.get(name) is not None and (value is None or options[name] == value):
            raise TrustError(
                f"{artifact.name}: {name}={options[name]!r} lets the file run code, which trust={level!r} does not; leave it out,"
                f" or {IF_YOU_TRUST}",
                path=artifact.path,
            )
    is_governed = spec is not None and spec.format in _GOVERNED
    if (spec is not None and not spec.is_program) or (is_governed and policy.level is not Trust.NONE):
        return
    what = f"of the format {spec.name}" if spec is not None else f"built by {binarizer}"
    to_do = 'trust="listed" (--trust listed), which loads what names only known classes, or ' if is_governed else ""
    raise TrustError(
        f"{artifact.name}: it is {what}, which can run code that the file chooses, and trust={level!r} loads none such;"
        f" set {to_do}{IF_YOU_TRUST}",
        path=artifact.path,
        format=None if spec is None else spec.format,
    )


def _check_pickle(artifact: Artifact, policy: Policy, names: dict[tuple[str, str], int] | None = None) -> None:
    """Follows the file.

    Args:
        artifact: The file.
        policy: What it may name.
        names: Filled with all that it names, each with the byte at which it is first; without, the first that may not be ends it.
    """
    if not artifact.is_rewindable:
        raise TrustError(f"{artifact.name}: a stream that cannot go back cannot be checked before it is loaded; give a file")
    first: list[TrustError] = []

    def named(module: str, name: str, at: int) -> None:
        module, name = in_python_3(module, name)
        if names is not None:
            names.setdefault((module, name), at)
        if not policy.allows(module, name):
            first.append(refused(artifact.name, module, name, at))
            if names is None:
                raise first[0]

    with artifact.open() as file:
        with Peek(file) as peek:
            is_compressed = unpacked_head(peek) is not None
        if is_compressed:
            raise TrustError(
                f"{artifact.name}: it is compressed, and is checked before anything is built only where it is not; unpack it with"
                f" `mlup-stream pack`, or {IF_YOU_TRUST}",
                path=artifact.path,
            )
        file.seek(0)
        try:
            follow_globals(file, named, artifact.name)
        except Abused as error:
            what, at = error.args
            first.append(
                TrustError(
                    f"{artifact.name}: at byte {at} it has {what}, which trust={policy.level.value!r} does not load;"
                    f" set {IF_YOU_TRUST}",
                    path=artifact.path,
                    position=at,
                )
            )
            raise first[0] from error
        except CannotFollow as error:
            first.append(
                TrustError(
                    f"{artifact.name}: what it does cannot be followed without doing it ({error or 'unusual'}), so that it cannot"
                    f" be checked; set {IF_YOU_TRUST}",
                    path=artifact.path,
                )
            )
            raise first[0] from error
    if first:
        raise first[0]
