"""ONNX: the model without its weights, and one file of external data beside it in which each of them is aligned.

External data rather than padding inside the model, although one file would be replaced in one step. A model with its weights
inside is parsed whole by every other loader (onnxruntime's own takes 1.3 to 2 times its size), has at most 2 GiB (protobuf), and
nothing promises where its weights lie. External data is mapped by onnxruntime itself, and aligned as ONNX recommends
(https://github.com/onnx/onnx/blob/main/docs/ExternalData.md): to a page, and what is large to 64 KiB, the granularity of maps on
Windows.

The data file carries a digest of its content in its name. So a model never meets another model's data, whichever of the two is
replaced first, and the model, which is renamed last, decides which data counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from mlup_stream.delivery.files import explain_os_error
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, LoadError, MissingDependencyError, PackError
from mlup_stream.formats.onnx.external import Place, without_payloads
from mlup_stream.formats.onnx.layout import MIN_PAYLOAD_BYTES, Layout, Tensor, walk
from mlup_stream.formats.onnx.ort import is_ort
from mlup_stream.formats.source import Source
from mlup_stream.ml.binarization.onnx_runtime.external_files import check_external_files
from mlup_stream.pack.destination import Destination
from mlup_stream.pack.packed import Gain
from mlup_stream.pack.pieces import compare, differs, pieces
from mlup_stream.units import KIB, MIB, format_bytes

__all__ = ["pack_onnx"]

_PAGE_BYTES = 4 * KIB
_GRANULARITY_BYTES = 64 * KIB
_LARGE_BYTES = 1 * MIB
_DIGEST_BYTES = 8


class _Weight(NamedTuple):
    """A tensor that is to lie in the data file: in which file its elements lie now, and from where on."""

    tensor: Tensor
    path: str
    start: int

    @property
    def size_bytes(self) -> int:
        return self.tensor.size_bytes


def pack_onnx(view: View, destination: Destination) -> Gain:
    """Writes the model in `view` and, beside it, its weights.

    Peak memory: the model without its weights, three times, and two pieces of 1 MiB; and what predictions of it take.

    Raises:
        PackError: It has no weights that could lie elsewhere.
    """
    name = str(view.path)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Source(view))
        if is_ort(source):
            raise PackError(f"{name}: only onnxruntime reads its own format; pack the .onnx that it was made from", path=name)
        layout = walk(source)
        weights = _weights(name, layout)
        if not weights:
            found = ", ".join(_why_they_stay(list(layout.tensors))) or "none"
            least = format_bytes(MIN_PAYLOAD_BYTES)
            raise PackError(
                f"{name}: expected tensors of {least} and more that may lie in another file, found {found}: nothing to gain",
                path=name,
            )
        files = {each.path: stack.enter_context(_opened(each.path)) for each in weights if each.path != name}
        sources = {name: source, **files}
        destination.refuse_same(files)
        destination.reserve(sum(each.size_bytes + _GRANULARITY_BYTES for each in weights) + layout.structure_bytes)
        superseded = [path for path in _superseded(destination.path) if not _is_any_of(path, files)]
        data_path, places = _write_data(destination, weights, sources)
        location = os.path.basename(data_path)
        moved = {each.tensor.field: Place(location, start) for each, start in zip(weights, places, strict=True)}
        destination.write(without_payloads(source, layout, lambda tensor: moved.get(tensor.field)))
        destination.sync()
        _verify(name, source, layout, weights, sources, destination, data_path)
        stays = [tensor for tensor in layout.tensors if tensor.field not in moved]
    verified, notes = _predictions(name, destination.part)
    destination.superseded += [path for path in superseded if path != data_path]
    inside_bytes = sum(tensor.size_bytes for tensor in stays)
    return Gain(
        sum(each.size_bytes for each in weights) + inside_bytes,
        sum(each.size_bytes for each in weights if each.start % each.tensor.alignment_bytes == 0),
        sum(each.size_bytes for each in weights),
        f"{len(weights)} tensors were mapped from what was written and compared with the source bit for bit{verified}",
        (*_why_they_stay(stays), *notes),
        tuple(files),
    )


def _weights(name: str, layout: Layout) -> list[_Weight]:
    """What can lie in another file: tensors of the main graph, and whatever lies in another file already."""
    folder = os.path.dirname(name)
    check_external_files(layout, folder, name)
    found = []
    for tensor in layout.tensors:
        if tensor.external:
            length = int(tensor.external.get("length", tensor.size_bytes))
            if length != tensor.size_bytes:
                raise CorruptModelError(
                    f"{name}: expected {tensor.size_bytes} bytes of {tensor.name!r}, as its shape says, found {length};"
                    " export it again",
                    path=name,
                )
            path = os.path.join(folder, tensor.external["location"])
            found.append(_Weight(tensor, path, int(tensor.external.get("offset", "0"))))
        elif tensor.payload and not tensor.stays_because and not tensor.home.depth and not tensor.home.in_function:
            found.append(_Weight(tensor, name, tensor.payload.body))
    return found


def _opened(path: str) -> Source:
    try:
        return Source(path)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _write_data(destination: Destination, weights: list[_Weight], sources: dict[str, Source]) -> tuple[str, list[int]]:
    """Writes the data file; returns its path, which is its own by now, and where each weight begins."""
    folder, model_name = os.path.split(destination.path)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    starts = []
    end = 0
    with Destination(os.path.join(folder, model_name + ".data"), force=True, mode=destination.mode) as data:

        def write(piece: bytes) -> None:
            data.write(piece)
            digest.update(piece)

        for weight in weights:
            gap_bytes = -end % _alignment(weight.size_bytes)
            write(bytes(gap_bytes))
            starts.append(end + gap_bytes)
            end += gap_bytes + weight.size_bytes
            for piece in pieces(sources[weight.path], weight.start, weight.size_bytes, weight.tensor.name):
                write(piece)
        data.path = os.path.join(folder, f"{model_name}.{digest.hexdigest()}.data")
        destination.beside.append(data.path)
        if not os.path.lexists(data.path):
            destination.made.append(data.path)
        data.commit()
        return data.path, starts


def _alignment(size_bytes: int) -> int:
    return _GRANULARITY_BYTES if size_bytes >= _LARGE_BYTES else _PAGE_BYTES


def _verify(
    name: str,
    source: Source,
    layout: Layout,
    weights: list[_Weight],
    sources: dict[str, Source],
    destination: Destination,
    data_path: str,
) -> None:
    """Makes sure that the model says the same of everything but where its weights lie, and that they lie there."""
    location = os.path.basename(data_path)
    moved = {each.tensor.field for each in weights}
    nowhere = Place("", 0)
    data = View(data_path)
    try:
        with Source(destination.part) as written:
            after = walk(written)
            check_external_files(after, os.path.dirname(data_path), destination.part)
            found = {tensor.field for tensor in after.tensors if tensor.external.get("location") == location}
            without = without_payloads(source, layout, lambda tensor: nowhere if tensor.field in moved else None)
            if without_payloads(written, after, lambda tensor: nowhere if tensor.field in found else None) != without:
                raise differs(name, "another model")
            for weight, tensor in zip(weights, [each for each in after.tensors if each.field in found], strict=True):
                expected = pieces(sources[weight.path], weight.start, weight.size_bytes, weight.tensor.name)
                compare(data, int(tensor.external["offset"]), expected, name)
    finally:
        data.release()


def _predictions(name: str, written: str) -> tuple[str, tuple[str, ...]]:
    """What to say of predictions by both models: that they are the same, or why that is not known."""
    try:
        from mlup_stream.pack.onnx_predictions import compare_predictions

        why_not = compare_predictions(name, written)
    except MissingDependencyError:
        why_not = "onnxruntime is not installed"
    return (", and both models predict the same", ()) if not why_not else ("", (f"predictions were not compared: {why_not}",))


def _why_they_stay(tensors: list[Tensor]) -> tuple[str, ...]:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.stays_because or "in a graph within another, or a function"] += tensor.size_bytes
    return tuple(f"{format_bytes(size)} stay in the model: {why}" for why, size in sorted(sizes.items()))


def _superseded(path: str) -> list[str]:
    """The data files of the model that is there, if packing made them."""
    folder, name = os.path.split(path)
    try:
        locations = walk(path).external_locations if os.path.isfile(path) else ()
    except (LoadError, OSError):
        return []  # no model
    own = re.compile(re.escape(name) + r"\.[0-9a-f]{16}\.data")
    return [os.path.join(folder, each) for each in locations if own.fullmatch(each)]


def _is_any_of(path: str, others: Iterable[str]) -> bool:
    return os.path.exists(path) and any(os.path.samefile(path, other) for other in others)
