"""Pickles, protocols 0 to 5.

Which unpickler reads a file is decided by what the file is made of, which its frame lengths tell at once (`formats.pickle`):

- nearly all payload: ours in Python, which leaves the arrays in the map (`view`) or reads them straight to where they stay
  (`path`, `stream`), and does not keep what estimators have already copied;
- otherwise the standard library's in C, over a bounded reader, with the cyclic collector paused.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, LoadError, MissingClassError, MLupError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.pickles.frames import PickleStructure, scan
from mlup_stream.formats.pickles.named_libraries import named_modules
from mlup_stream.memory.estimate import Estimate
from mlup_stream.memory.imports import KNOWN
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.pickles.checked_input import CheckedFile, FindsClasses
from mlup_stream.ml.binarization.pickles.collector import collector_paused
from mlup_stream.ml.binarization.pickles.failure import explained
from mlup_stream.ml.binarization.pickles.gensim_files import with_side_files, with_side_files_estimated
from mlup_stream.ml.binarization.pickles.structure import structure_of
from mlup_stream.units import KIB

__all__ = ["PickleBinarizer"]

# How many bytes of payload there must be for each byte of structure. Measured on one machine: our unpickler takes 1.0 us for a
# byte of structure, the one in C 0.06 us, and reading a byte of payload takes 0.7 ns. So from 1300 on leaving the payload in the
# map is never slower; memory is worth more than that to who prefers it.
_PAYLOAD_SHARE = {Optimize.SPEED: 1300, Optimize.MEMORY: 300}

# Small enough to be looked at opcode by opcode first: the unpickler in C allocates by a memo index that it finds in the file.
_SCANNED_BYTES = 32 * KIB


class PickleBinarizer(FormatBinarizer):
    """Whatever `pickle.dump` wrote.

    Loading a pickle runs code that the file chooses: load only files that you trust, as with `pickle.load` itself.
    """

    format = Format.PICKLE
    calls_what_it_names = True
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)
    option_names: ClassVar[frozenset[str]] = frozenset({"encoding", "errors", "fix_imports", "buffers"})

    @classmethod
    def prepare(cls) -> None:
        # What leaves arrays in the file imports NumPy: not for a process that has done without so far, and not later for others.
        if "numpy" in sys.modules:
            from mlup_stream.ml.binarization.pickles import in_place_unpickler as unpickler
            from mlup_stream.ml.binarization.pickles import placing

            del placing, unpickler

    @classmethod
    def named_modules(cls, artifact: Artifact) -> tuple[str, ...]:
        try:
            return artifact.header(_named_libraries)
        except (LoadError, OSError):
            return ()  # the load will say what is wrong

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        from mlup_stream.ml.binarization.pickles.pickle_estimate import estimate_of

        found = estimate_of(artifact, terms, in_place=lambda structure: _is_mostly_payload(structure, terms))
        return found and with_side_files_estimated(found, artifact.header(structure_of).names, artifact, terms)

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        structure = artifact.header(structure_of).structure
        if _is_mostly_payload(structure, terms):
            return with_side_files(load_payload(file, artifact, terms, None), artifact, terms)
        return with_side_files(_built_of_objects(file, artifact, terms, structure), artifact, terms)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        structure = artifact.header(structure_of).structure
        if _is_mostly_payload(structure, terms):
            with view.open_structure() as file:
                return with_side_files(load_payload(file, artifact, terms, view), artifact, terms)
        with view.open() as file:
            return with_side_files(_built_of_objects(file, artifact, terms, structure), artifact, terms)

    @classmethod
    def arrays_writable(cls, terms: Terms) -> bool | None:
        return terms.writable

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        if isinstance(error, ImportError):
            return MissingClassError(
                f"{artifact.name}: the {cls.format.value} needs something that cannot be imported here ({error});"
                " install or import its package, in the version that wrote the file",
                path=artifact.path,
                format=cls.format.value,
                module=getattr(error, "name", None),
            )
        if isinstance(error, OSError) or not artifact.is_rewindable:
            return super().explain(error, artifact)
        return cls.looked_into(error, artifact) or super().explain(error, artifact)

    @classmethod
    def looked_into(cls, error: Exception, artifact: Artifact) -> MLupError | None:
        """The typed error for what the unpickler or a class of the model raised, after another look; None if it shows nothing."""
        with artifact.open() as file:
            return explained(error, file, artifact.name, path=artifact.path, format=cls.format.value)

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        # Of what cannot be looked at again: an unpickler says no more.
        return isinstance(error, (EOFError, pickle.UnpicklingError))


def _named_libraries(file: BinaryIO, name: str) -> tuple[str, ...]:
    return named_modules(file, KNOWN)


def _is_mostly_payload(structure: PickleStructure, terms: Terms) -> bool:
    share = _PAYLOAD_SHARE[terms.optimize]
    return structure.whole and structure.payloads > 0 and structure.payload_bytes >= structure.structure_bytes * share


def load_payload(file: BinaryIO, artifact: Artifact, terms: Terms, view: View | None) -> Built:
    from mlup_stream.ml.binarization.pickles.in_place_unpickler import InPlaceUnpickler
    from mlup_stream.ml.binarization.pickles.placing import Placer

    class Unpickler(FindsClasses, InPlaceUnpickler):
        model_name = artifact.name
        trust = terms.trust

    structure = scan(file, artifact.name)
    file.seek(0)
    placer = Placer(terms, view, file)
    unpickler = Unpickler(file, placer, fetched=structure.fetched, **terms.options)
    try:
        with collector_paused():
            model = unpickler.load()
    finally:
        unpickler.forget()
    placer.drop_unused()
    return Built(model, placer.placement() if placer.maps else Placement(0, structure.payload_bytes))


def _built_of_objects(file: BinaryIO, artifact: Artifact, terms: Terms, structure: PickleStructure) -> Built:
    # What few arrays there are, `pickle` makes itself.
    return Built(_load_objects(file, artifact, terms), Placement(0, structure.payload_bytes), arrays_writable=True)


def _load_objects(file: BinaryIO, artifact: Artifact, terms: Terms) -> Any:
    class Unpickler(FindsClasses, pickle.Unpickler):
        model_name = artifact.name
        trust = terms.trust

    checked = CheckedFile(file)
    if checked.size_bytes is not None and checked.size_bytes <= _SCANNED_BYTES:
        scan(file, artifact.name)
        file.seek(0)
    try:
        with collector_paused():
            return Unpickler(checked, **terms.options).load()
    except MemoryError as error:
        # Either there is too little memory, or a length within a frame lies: the C code allocates by it before it reads.
        _refuse_lies(file, artifact, error)
        raise


def _refuse_lies(file: BinaryIO, artifact: Artifact, error: MemoryError) -> None:
    try:
        scan(file, artifact.name)
    except CorruptModelError as lie:
        raise lie from error
