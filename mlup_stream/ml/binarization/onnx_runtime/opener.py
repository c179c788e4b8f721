"""Opens an onnxruntime session with the weights where a delivery wants them.

In place: the model is written anew without its payloads (some KiB), and each tensor says that its data is *external*, in the very
file that it came from. onnxruntime maps external data, so nothing is copied.

Copied: the same, with a buffer of our own instead of the file. What onnxruntime does not take in either way it reads itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

import numpy
import onnxruntime

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.pinned import PinnedFile
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.errors import ModelBinarizationError, ModelNotFoundError
from mlup_stream.formats.onnx.external import Place, without_payloads
from mlup_stream.formats.onnx.layout import Layout
from mlup_stream.formats.onnx.ort import OrtModel
from mlup_stream.formats.onnx.tensor import Tensor
from mlup_stream.formats.onnx.wire import Field
from mlup_stream.formats.source import Source
from mlup_stream.memory.watch import is_out_of_memory
from mlup_stream.ml.binarization.onnx_runtime.abilities import Abilities
from mlup_stream.ml.binarization.onnx_runtime.external_files import external_files, prepacked_pieces
from mlup_stream.ml.binarization.onnx_runtime.messages import plain_words
from mlup_stream.ml.binarization.onnx_runtime.pinned_name import Names, own_names, pinned_names
from mlup_stream.ml.binarization.onnx_runtime.placement import NewMaps, Placed, placement_of
from mlup_stream.ml.binarization.onnx_runtime.policy import policy_for, policy_for_ort
from mlup_stream.ml.binarization.onnx_runtime.session import (
    PredictSession,
    as_providers,
    config_entry,
    configured,
    session_options,
)
from mlup_stream.units import MIB

__all__ = ["Opener"]

logger = logging.getLogger("mlup_stream")

_ABILITIES = Abilities.of(onnxruntime.__version__)
_READS_UNALIGNED = platform.machine().lower() in ("x86_64", "amd64", "aarch64", "arm64")
"""Where the processor reads a number from any address. Protobuf aligns nothing: three of four float32 payloads are off."""

_FOLDER = "session.model_external_initializers_file_folder_path"
_BORROW = "session.use_external_initializer_file_buffers_directly"
_SAVE_CONTEXT = "ep.context_enable"
_MAP_ORT = {"session.use_memory_mapped_ort_model": "1", "session.use_ort_model_bytes_for_initializers": "1"}
_PACKED = "packed for its kernels, which optimize='memory' leaves out where it does not cost a prediction its speed"

_MAX_SHAPE_ELEMENTS = {"int32": 64, "int64": 64}
_MAX_SCALE_ELEMENTS = 10
"""What operators read to infer shapes are vectors with an element or two for each dimension or part: integers, and scales."""
_MAX_MAPS = 16384
"""A quarter of what Linux allows a process (vm.max_map_count). The largest tensors get them."""
_FIRST_IR_VERSION_THAT_HOISTS = 4
"""Before it an initializer of the main graph has to be an input too."""
_ALIGNMENT_BYTES = 64  # what onnxruntime's own allocator gives
_CHUNK_BYTES = 8 * MIB
_BUFFER_NAME = "payload"


class Opener:
    """One model about to be opened.

    Args:
        kind: The class of the session.
        layout: The walk of it, or what a model in onnxruntime's own format says of itself.
        source: The model.
        artifact: Where it came from.
        terms: What to prefer; the options are the user's keyword arguments for `InferenceSession`.

    Raises:
        CorruptModelError: A file that it refers to is too short.
        ModelNotFoundError: A file that it refers to is not there.
    """

    def __init__(
        self, kind: type[PredictSession], layout: Layout | OrtModel, source: Source, artifact: Artifact, terms: Terms
    ) -> None:
        self._kind = kind
        self._source = source
        self._artifact = artifact
        self._keywords = {**terms.options, "providers": as_providers(terms.options.get("providers"))}
        self._options = session_options(terms.options.get("sess_options"))
        self._users_own = self._options is terms.options.get("sess_options")
        self._ort = layout if isinstance(layout, OrtModel) else None
        self._layout = layout if isinstance(layout, Layout) else None
        beside = os.path.dirname(os.path.abspath(artifact.path)) if artifact.path else ""
        # What onnxruntime saves has to hold the weights: one made from a model without them would refer to names of ours.
        saves_context = config_entry(self._options, _SAVE_CONTEXT) == "1"
        self._saves = bool(self._options.optimized_model_filepath) or saves_context
        self._users_folder = config_entry(self._options, _FOLDER)
        self._folder = self._users_folder or beside
        self._movable: dict[Field, Tensor] = {}
        self._staying: list[Tensor] = []
        self._files: dict[str, Artifact] = {}
        self._missing: list[ModelNotFoundError] = []
        if isinstance(layout, OrtModel):
            self._policy = policy_for_ort(terms.optimize, layout)
        else:
            self._policy = policy_for(terms.optimize, layout)
            self._sort(layout)
            self._files = self._external_files(layout)

    def _sort(self, layout: Layout) -> None:
        """Tells what onnxruntime can be given as external data from what has to stay in the model."""
        for tensor in layout.tensors:
            if tensor.external:
                continue
            why = tensor.stays_because or _why_it_stays(tensor, layout)
            if why:
                self._staying.append(replace(tensor, stays_because=why))
            else:
                self._movable[tensor.field] = tensor
        for tensor in sorted(self._movable.values(), key=lambda each: -each.size_bytes)[_MAX_MAPS:]:
            self._staying.append(replace(tensor, stays_because="a process may have only so many maps"))
            del self._movable[tensor.field]

    def by_path(self, why: str = "onnxruntime reads the file itself") -> Built:
        """A session over the file, which onnxruntime opens and reads as it always does; `why` is for the placement.

        Raises:
            ModelFileChanged: The file's name, or that of one beside it, leads to another file by now.
        """
        own = bool(self._files) or not (self._artifact.is_snapshot or self._ort)
        with self._artifact.by_name(own=own) as path:
            built = self._unaided(path, why, {})
        if own:
            self._artifact.check_names()
        return built

    def _unaided(self, model: str | bytes, why: str, entries: dict[str, str]) -> Built:
        external = [] if self._layout is None else self._external(self._layout)
        model_says = self._layout or self._ort
        inside_bytes = 0 if model_says is None else model_says.payload_bytes
        maps = NewMaps({each.path for each in external})
        try:
            session = self._open(model, entries)
        except Exception as error:
            if self._missing:
                raise self._missing[0] from error
            raise
        found = placement_of(external, (), maps.ranges())
        reasons = found.reasons + ((why,) if inside_bytes else ())
        return Built(session, Placement(found.mapped_bytes, found.copied_bytes + inside_bytes, reasons))

    def in_place(self) -> Built:
        """A session whose weights are mapped from the files that they lie in.

        Peak memory: the model without its payloads, twice, and what onnxruntime makes of it. The weights are pages of the files.

        Raises:
            ModelFileChanged: A file changed, or its name led to another one where it had to be opened by name.
        """
        if self._ort is not None:
            return self._mapped(self._ort)
        layout, movable, file = self._layout, self._movable, self._artifact.file
        if layout is None or file is None or not (movable or self._files):
            return self.by_path()
        # An object of the user's may have tensors or files of the user's own instead of those that the model names.
        may_replace = self._users_own and layout.external_locations
        if not _ABILITIES.reads_inside_files or self._users_folder or self._saves or may_replace:
            return self.by_path()
        placed = [Placed(each, _seen_as(file), each.payload.body) for each in movable.values() if each.payload]
        placed += self._external(layout)
        maps = NewMaps({each.path for each in placed})
        try:
            with contextlib.ExitStack() as stack:
                model, names = self._model_in(stack, layout, file)
                session = self._open(model, {_FOLDER: names.folder})
        except Exception as error:
            return self._not_in_place(self._why_not(error))
        if not names.are_pinned:
            self._artifact.check_names()
        return Built(session, placement_of(placed, self._staying, maps.ranges()))

    def _mapped(self, model: OrtModel) -> Built:
        """A session over a model in onnxruntime's own format, which it maps and uses from there.

        Peak memory: what it makes of the graph; the weights are pages of the file.
        """
        if not _ABILITIES.maps_ort:
            return self.by_path(f"onnxruntime {onnxruntime.__version__} reads .ort models into memory, 1.26 and newer map them")
        if self._saves:
            return self.by_path()
        try:
            with self._artifact.by_name() as path:
                session = self._open(path, _MAP_ORT)
        except Exception as error:
            return self._not_in_place(self._why_not(error))
        session.can_be_built_again = False  # by then the name may lead elsewhere
        stays = "session.disable_prepacking" in self._policy.entries
        payload_bytes = model.payload_bytes
        return Built(session, Placement(payload_bytes, 0) if stays else Placement(0, payload_bytes, (_PACKED,)))

    def _model_in(self, stack: contextlib.ExitStack, layout: Layout, file: PinnedFile) -> tuple[bytes, Names]:
        """The model with its payloads where they lie, under names that `stack` holds, and these."""
        pinned = self._pinned(stack, layout, file)
        if pinned is not None:
            return pinned
        own = own_names(file.path, follow=not self._files)
        location = own.locations[file.path]
        inside = self._model_with(
            lambda tensor: Place(location, tensor.payload.body) if tensor.payload and not tensor.external else None
        )
        return inside, own

    def _pinned(
        self, stack: contextlib.ExitStack, layout: Layout, file: PinnedFile | None
    ) -> tuple[bytes, Names] | None:
        """The same with every file under a name that leads to the open one; None where the model or the system has to do without.

        Without `file` the payloads inside stay there.
        """
        if any(each.external and _cannot_hoist(each, layout) for each in layout.tensors):
            return None
        others = {location: each.file for location, each in self._files.items() if each.file is not None}
        names = stack.enter_context(pinned_names([*others.values(), *([file] if file is not None else [])]))
        if names is None:
            return None

        def place(tensor: Tensor) -> Place | None:
            if tensor.external:
                found = others[tensor.external["location"]]
                return Place(names.locations[found.path], int(tensor.external.get("offset", "0")), tensor.prepacked)
            return Place(names.locations[file.path], tensor.payload.body) if file is not None and tensor.payload else None

        model = self._model_with(place)
        rewritten = sum(1 for each in layout.tensors if each.external or (file is not None and each.field in self._movable))
        # Something else may be called so: a tensor perhaps, or a reference that hides. The model's folder confines it.
        return (model, names) if not names.open_everything or model.count(b"location") == rewritten else None

    def _not_in_place(self, why: str) -> Built:
        """A session over the file as onnxruntime reads it; over a copy if no name leads to it any more."""
        file = self._artifact.file
        assert file is not None
        self._options = session_options(self._keywords.get("sess_options"))
        if self._artifact.is_snapshot or file.leads_here():
            return self.by_path(why)
        with self._artifact.open() as content:
            return self.copied(content)

    def copied(self, file: BinaryIO) -> Built:
        """A session whose weights are copied once, in pieces, into private memory that onnxruntime uses as it is.

        Peak memory: the payload, the model without it twice, and 8 MiB.
        """
        layout = self._layout
        # An object of the user's would keep pointing to our memory when that is gone.
        if layout is None or self._users_own or self._files or self._saves or not _ABILITIES.borrows_buffers:
            return self._as_it_is(file, "onnxruntime copies it itself")
        # Functions are expanded after onnxruntime has looked for its buffers.
        self._movable = {field: tensor for field, tensor in self._movable.items() if not tensor.home.in_function}
        places, size_bytes = _side_by_side(list(self._movable.values()))
        model = self._model_with(lambda tensor: places[tensor.field])
        buffer = numpy.empty(size_bytes, numpy.uint8)
        target = memoryview(buffer)  # type: ignore[arg-type]  # an array is a buffer, which numpy declares from 3.12 on
        for field, tensor in self._movable.items():
            offset = places[field].offset
            if tensor.payload:
                file.seek(tensor.payload.body)
                self._fill(target[offset : offset + tensor.size_bytes], file)
        if size_bytes:
            self._options.add_session_config_entry(_BORROW, "1")
            self._options.add_external_initializers_from_files_in_memory([_BUFFER_NAME], [buffer], [size_bytes])
        try:
            session = self._open(model, {})
        except Exception as error:
            why = self._why_not(error)
            del target, buffer, error
            self._options = session_options(self._keywords.get("sess_options"))
            return self._as_it_is(file, why)
        session.payload = buffer
        return Built(session, Placement(0, layout.payload_bytes, ("the delivery copies it into private memory",)))

    def _as_it_is(self, file: BinaryIO, why: str) -> Built:
        """A session over the file's name if there is one, or over all its bytes."""
        if self._artifact.file is not None:
            return self.by_path(why)
        with contextlib.ExitStack() as stack:
            # onnxruntime refuses links out of the folder that it is told, by content alone.
            if self._layout is not None and self._files and not self._users_folder and not self._users_own:
                pinned = self._pinned(stack, self._layout, None)
                if pinned is not None:
                    return self._unaided(pinned[0], why, {_FOLDER: pinned[1].folder})
            file.seek(0)
            return self._unaided(file.read(), why, {_FOLDER: self._folder})

    def _why_not(self, error: Exception) -> str:
        """The reason for doing without external data; raises `error` if it is none."""
        if is_out_of_memory(error):
            raise error
        said = plain_words(error)
        logger.info("%s: onnxruntime does not take its weights as external data (%s)", self._artifact.name, said)
        return f"onnxruntime does not take it as external data: {said}"

    def _fill(self, target: memoryview, file: BinaryIO) -> None:
        position = 0
        while position < len(target):
            count = file.readinto(target[position : position + _CHUNK_BYTES])  # type: ignore[attr-defined]  # typeshed: BinaryIO
            if not count:
                raise self._source.corrupt(f"{len(target)} bytes of a tensor", f"the end of the file after {position}")
            position += count

    def _open(self, model: str | bytes, entries: dict[str, str]) -> PredictSession:
        policy = self._policy
        keywords = {**self._keywords, "sess_options": self._options}
        disabled = policy.disabled_optimizers.union(keywords.get("disabled_optimizers") or ())
        if disabled:
            keywords["disabled_optimizers"] = set(disabled)
        with configured(self._options, {**policy.entries, **entries}, policy.log_severity_level, restored=self._users_own):
            session = self._kind(model, **keywords)
        if isinstance(model, bytes):
            session._model_bytes = None  # which onnxruntime's object would keep for as long as it lives
            session.can_be_built_again = False
        return session

    def _model_with(self, place: Callable[[Tensor], Place | None]) -> bytes:
        """The model with the payloads that can be moved, and those that lie elsewhere already, where `place` says."""
        assert self._layout is not None
        movable = self._movable
        return without_payloads(
            self._source, self._layout, lambda tensor: place(tensor) if tensor.field in movable or tensor.external else None
        )

    def _external(self, layout: Layout) -> list[Placed]:
        files = {location: _seen_as(each.file) for location, each in self._files.items() if each.file is not None}
        return [
            Placed(each, files[each.external["location"]], start)
            for each in layout.tensors
            if each.external.get("location") in files
            for start in (int(each.external.get("offset", "0")), *self._prepacked_starts(each))
        ]

    def _prepacked_starts(self, tensor: Tensor) -> list[int]:
        return [start for start, _ in prepacked_pieces(tensor, self._artifact.name)]

    def _external_files(self, layout: Layout) -> dict[str, Artifact]:
        if not layout.external_locations:
            return {}
        if not self._folder:
            if self._users_own:
                return {}
            raise ModelBinarizationError(
                f"{self._artifact.name}: its weights lie in {layout.external_locations[0]!r}, and content without a path has no"
                f' folder to look in; give the path, or sess_options={{"{_FOLDER}": "the folder"}}',
                path=None,
                format="onnx",
            )
        return external_files(layout, self._folder, self._artifact, self._missing if self._users_own else None)


def _seen_as(file: PinnedFile) -> str:
    """A name by which the file is found among the maps of this process, wherever its own name leads by now."""
    return file.pinned_name or file.path


def _why_it_stays(tensor: Tensor, layout: Layout) -> str:
    """Why onnxruntime cannot be given the tensor as external data; empty if it can."""
    if len(tensor.dims) <= 1 and math.prod(tensor.dims) <= _MAX_SHAPE_ELEMENTS.get(tensor.type_name, _MAX_SCALE_ELEMENTS):
        return "onnxruntime reads shapes, axes and the like before it maps anything"
    if _cannot_hoist(tensor, layout):
        return "it is in a graph within another, and cannot be moved to the outermost"
    if not _READS_UNALIGNED and tensor.payload and tensor.payload.body % tensor.alignment_bytes:
        return "it is not aligned, and this processor needs it to be"
    return ""


def _cannot_hoist(tensor: Tensor, layout: Layout) -> bool:
    home = tensor.home
    at_all = not home.in_function and layout.ir_version >= _FIRST_IR_VERSION_THAT_HOISTS and "" in layout.opsets
    return bool(home.depth) and not at_all


def _side_by_side(tensors: list[Tensor]) -> tuple[dict[Field, Place], int]:
    """Places one after the other in a buffer, each aligned, and the size of the buffer."""
    places = {}
    end = 0
    for tensor in tensors:
        places[tensor.field] = Place(_BUFFER_NAME, end)
        end += -(-tensor.size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return places, end
