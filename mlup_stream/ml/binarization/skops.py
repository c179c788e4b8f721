"""skops files: the objects that skops builds after its own audit, their arrays left in the file.

skops reads each member into memory and then copies it into an array: 2.00x for arrays, 2.86x for a forest, which keeps it all.
Here skops makes its tree of nodes from the schema alone, audits it with its own code, and builds the objects; the arrays are
given to it from the view. What is deflated, or not aligned and not an estimator's, is copied, as in `.npz` files; `pack` aligns
them.

Nothing is imported or called before the audit has passed, and what may be trusted beside skops's own list is what the
configuration says, never what the file says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, CorruptModelError, LoadError, MissingClassError, MLupError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.npz import NpzMember, open_member
from mlup_stream.formats.frameworks.skops import SkopsFile, read_skops
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.arrays.skops_nodes import Members, Nodes
from mlup_stream.ml.binarization.base import FormatBinarizer, one_line
from mlup_stream.ml.binarization.numpy import dtype_of, unpacked_array
from mlup_stream.ml.binarization.pickles.collector import collector_paused
from mlup_stream.ml.binarization.pickles.placing import Placer
from mlup_stream.units import KIB

__all__ = ["SkopsBinarizer"]

_NODE_BYTES = 4 * KIB
"""A node of skops's tree, with the list of what it trusts; all are gone when the objects are built."""
_OBJECT_BYTES = 1 * KIB
"""What a node becomes."""
_PARSED = 6
"""The parsed schema over its text."""
_SHOWN_TYPES = 20
_COPYING_LOADERS = ("TreeNode",)
"""Kinds of nodes whose objects copy their arrays."""


class SkopsBinarizer(FormatBinarizer):
    """What was given to `skops.io.dump`.

    Options: `trusted`, a list of the types, by their full names, that may be built beside those that skops trusts, as
    `skops.io.load` has it. A file that needs others is refused with their names. scikit-learn's own trees are not among those
    that skops trusts: a damaged one can end the process when it predicts.
    """

    format = Format.SKOPS
    libraries = ("skops",)
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)
    option_names: ClassVar[frozenset[str]] = frozenset({"trusted"})
    corrupt = ()  # what an estimator says of its own state is no damage: other versions have other attributes

    @classmethod
    def prepare(cls) -> None:
        require("skops.io", "skops files")

    @classmethod
    def prepare_for(cls, options: Mapping[str, Any]) -> None:
        _trusted(options)
        cls.prepare()

    @classmethod
    def arrays_writable(cls, terms: Terms) -> bool | None:
        return terms.writable

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            found = artifact.header(read_skops)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        is_mapped = terms.delivery is Delivery.VIEW and not artifact.has_content
        copies = any(each in found.loaders for each in _COPYING_LOADERS)
        mapped_bytes = copied_bytes = 0
        for name, count in found.references.items():
            member = found.members.get(name)
            if member is None:
                continue
            stays = is_mapped and member.stored and member.header is not None
            mapped_bytes += member.payload_bytes if stays else 0
            if not stays or copies or not (member.header and (member.header.aligned or terms.maps_unaligned)):
                copied_bytes += count * member.payload_bytes
        settled_bytes = copied_bytes + _OBJECT_BYTES * found.nodes
        schema_bytes = found.schema.place.size_bytes
        peak_bytes = settled_bytes + (1 + _PARSED) * schema_bytes + _NODE_BYTES * found.nodes
        writable_bytes = mapped_bytes if terms.writable else 0
        certainty, why = Certainty.CONSERVATIVE, "the schema of the skops file and the headers of its arrays"
        estimate = Estimate(peak_bytes, mapped_bytes, settled_bytes, 0, certainty, why, mapped_bytes, writable_bytes)
        has_raw = terms.delivery is Delivery.BYTES and not artifact.has_content
        return estimate.with_raw(artifact.size_bytes) if has_raw else estimate

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        return _load(file, artifact, terms, None)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        with view.open_structure() as file:
            return _load(file, artifact, terms, view)

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        if isinstance(error, ImportError):
            return MissingClassError(
                f"{artifact.name}: needs {error.name or 'a module'}, which cannot be imported here ({one_line(str(error))});"
                " install what the model was trained with",
                path=artifact.path,
                format=cls.format.value,
                module=error.name,
            )
        return super().explain(error, artifact)


def _load(file: BinaryIO, artifact: Artifact, terms: Terms, view: View | None) -> Built:
    found = artifact.header(read_skops)
    placer = Placer(terms, view, file)

    def array(member: NpzMember, owner: Any) -> Any:
        name = f"{artifact.name}: {member.place.name}"
        header = member.header
        assert header is not None
        if header.has_objects:
            raise _corrupt(artifact, "an array of numbers or text, as skops writes it", f"Python objects in {member.place.name}")
        if placer.maps and member.stored:
            order = "F" if header.fortran_order else "C"
            return placer.array(header.data_start, dtype_of(header, name), header.shape, order, owner=owner)
        return unpacked_array(file, member, placer, artifact.name, {})

    def read(member: NpzMember) -> bytes:
        with open_member(file, member.place, artifact.name) as stream:
            return stream.read()

    with collector_paused():
        with _nodes(Members(found, read, artifact.name), found, artifact, _trusted(terms.options)) as nodes:
            placer.check()
            model = nodes.construct(array, placer.drop_unused)
        placer.drop_unused()
    return Built(model, placer.placement())


def _nodes(members: Members, found: SkopsFile, artifact: Artifact, trusted: list[Any]) -> Nodes:
    """skops's tree of nodes, audited. Nothing was imported or called that the file names.

    Raises:
        CorruptModelError: The schema is not as skops writes it.
        ModelBinarizationError: It needs what is not trusted, or a newer skops.
    """
    try:
        nodes = Nodes(members, trusted)
        untrusted = nodes.audit()
    except (MLupError, MemoryError, OSError):
        raise
    except Exception as error:  # of whatever type: the schema's values are not what skops takes them for
        said = f"{type(error).__name__}: {one_line(str(error))}"
        if "update skops" not in said:
            raise _corrupt(artifact, "a schema as skops writes it", said) from error
        raise ModelBinarizationError(
            f"{artifact.name}: was written by skops {found.version or 'of an unknown version'}, which is newer than the one here"
            f" ({said}); run: pip install --upgrade skops",
            path=artifact.path,
            format=Format.SKOPS.value,
        ) from error
    if untrusted:
        shown = [*untrusted[:_SHOWN_TYPES], *(["..."] if len(untrusted) > _SHOWN_TYPES else [])]
        raise ModelBinarizationError(
            f"{artifact.name}: expected types that skops trusts, found {', '.join(shown)}; if you trust them and the file, set"
            f""" binarization_kwargs={{"trusted": {json.dumps(shown)}}} (--option 'trusted={json.dumps(shown)}')""",
            path=artifact.path,
            format=Format.SKOPS.value,
            untrusted=tuple(untrusted),
        )
    return nodes


def _trusted(options: Mapping[str, Any]) -> list[Any]:
    trusted = options.get("trusted") or []
    if not isinstance(trusted, (list, tuple)) or not all(isinstance(each, (str, type)) for each in trusted):
        raise ConfigError(
            f'binarization_kwargs: trusted={trusted!r} is not valid; expected a list such as ["sklearn.tree._tree.Tree"]',
            field="binarization_kwargs",
            value=trusted,
            allowed="a list of types by their full names",
        )
    return list(trusted)


def _corrupt(artifact: Artifact, expected: str, found: str) -> CorruptModelError:
    return CorruptModelError(
        f"{artifact.name}: expected {expected}, found {found}; the file may be damaged: copy it or write it again",
        path=artifact.path,
        format=Format.SKOPS.value,
    )
