"""Makes a model of a given size in each format. Random float32 weights: what they say does not matter, how they lie does.

Each function writes to `path` a model of `size_bytes` and a little more, and runs in a process of its own.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from typing import Any

_ITEM_BYTES = 4  # float32
_LAYERS = 4
_BYTES_PER_DICT = 61  # of the pickle of pickled_dicts
_COPIED_TREES = 4
_BOOSTED_ROWS = 10_000
_LARGE_BYTES = 1 << 20  # below that, small trees: there are four of them at least


def _arrays(size_bytes: int) -> dict[str, Any]:
    """As many square matrices as a network has layers."""
    import numpy

    generator = numpy.random.default_rng(0)
    width = math.ceil(math.sqrt(size_bytes / _LAYERS / _ITEM_BYTES))
    scale = numpy.float32(1 / math.sqrt(width))
    return {f"layer{i}.weight": generator.standard_normal((width, width), numpy.float32) * scale for i in range(_LAYERS)}


def pickled_arrays(path: str, size_bytes: int) -> None:
    with open(path, "wb") as file:
        pickle.dump(_arrays(size_bytes), file, protocol=5)


def pickled_dicts(path: str, size_bytes: int) -> None:
    """Many small objects: what takes ten times its file's size in any process."""
    count = max(1, size_bytes // _BYTES_PER_DICT)
    with open(path, "wb") as file:
        pickle.dump([{"id": i, "name": f"row {i}", "score": i * 0.5, "tags": ("a", i)} for i in range(count)], file, protocol=5)


def _forest(size_bytes: int) -> Any:
    import numpy
    from sklearn.ensemble import ExtraTreesClassifier

    generator = numpy.random.default_rng(0)
    rows = generator.standard_normal((20_000, 16), numpy.float32)
    classes = generator.integers(0, 2, 20_000)
    forest = ExtraTreesClassifier(2, random_state=0, n_jobs=2, warm_start=True).fit(rows, classes)
    forest.n_estimators = max(3, math.ceil(size_bytes / len(pickle.dumps(forest, protocol=5)) * 2))
    forest.fit(rows, classes)
    forest.n_jobs = 1
    return forest


def pickled_forest(path: str, size_bytes: int) -> None:
    with open(path, "wb") as file:
        pickle.dump(_forest(size_bytes), file, protocol=5)


def joblib_forest(path: str, size_bytes: int) -> None:
    import joblib

    joblib.dump(_forest(size_bytes), path)


def joblib_arrays(path: str, size_bytes: int) -> None:
    import joblib

    joblib.dump(_arrays(size_bytes), path)


def joblib_zlib(path: str, size_bytes: int) -> None:
    import joblib

    joblib.dump(_arrays(size_bytes), path, compress=("zlib", 3))


def npy(path: str, size_bytes: int) -> None:
    import numpy

    numpy.save(path, _arrays(size_bytes * _LAYERS)["layer0.weight"])


def npz(path: str, size_bytes: int) -> None:
    import numpy

    numpy.savez(path, **_arrays(size_bytes))


def _onnx(size_bytes: int) -> Any:
    import onnx
    from onnx import helper, numpy_helper

    arrays = _arrays(size_bytes)
    width = len(arrays["layer0.weight"])
    nodes, flows = [], "X"
    for i, name in enumerate(arrays):
        nodes += [helper.make_node("MatMul", [flows, name], [f"sum{i}"]), helper.make_node("Relu", [f"sum{i}"], [f"layer{i}"])]
        flows = f"layer{i}"
    number = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("X", number, ["rows", width])],
        [helper.make_tensor_value_info(flows, number, ["rows", width])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    # The oldest versions that every onnxruntime of the last years reads.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def onnx_inside(path: str, size_bytes: int) -> None:
    import onnx

    onnx.save(_onnx(size_bytes), path)


def onnx_external(path: str, size_bytes: int) -> None:
    import onnx

    onnx.save(_onnx(size_bytes), path, save_as_external_data=True, location=os.path.basename(path) + ".data", size_threshold=1024)


def ort(path: str, size_bytes: int) -> None:
    """The model of `onnx_inside` in onnxruntime's own format, as its converter writes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = path
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.disable_prepacking", "1")
    model = f"{path}.onnx"
    onnx_inside(model, size_bytes)
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    finally:
        os.remove(model)


def skops_arrays(path: str, size_bytes: int) -> None:
    import skops.io

    skops.io.dump(_arrays(size_bytes), path)


def skops_forest(path: str, size_bytes: int) -> None:
    import skops.io

    skops.io.dump(_forest(size_bytes), path)


def arrow(path: str, size_bytes: int) -> None:
    """A column for each layer's weights, in batches of 64 Ki rows."""
    import pyarrow

    columns = {name: array.reshape(-1) for name, array in _arrays(size_bytes).items()}
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1 << 16)


def safetensors(path: str, size_bytes: int) -> None:
    from safetensors.numpy import save_file

    save_file(_arrays(size_bytes), path)


def _torch_module(size_bytes: int) -> Any:
    import torch

    width = math.ceil(math.sqrt(size_bytes / _LAYERS / _ITEM_BYTES))
    layers = [layer for _ in range(_LAYERS) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers).eval()


def torch_state_dict(path: str, size_bytes: int) -> None:
    import torch

    torch.save(_torch_module(size_bytes).state_dict(), path)


def torchscript(path: str, size_bytes: int) -> None:
    import torch

    torch.jit.save(torch.jit.script(_torch_module(size_bytes)), path)


def lightgbm(path: str, size_bytes: int) -> None:
    """A few large trees, trained, then repeated: a text file of hundreds of MB takes LightGBM an hour to train."""
    import lightgbm
    import numpy

    generator = numpy.random.default_rng(0)
    rows, values = generator.standard_normal((_BOOSTED_ROWS, 16)), generator.standard_normal(_BOOSTED_ROWS)
    # One thread each: threads that wait for each other on a busy machine take minutes instead of seconds.
    settings = {"num_leaves": 2048 if size_bytes >= _LARGE_BYTES else 16, "min_data_in_leaf": 2, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, values), num_boost_round=_COPIED_TREES)
    text = booster.model_to_string()
    head, _, rest = text.partition("Tree=0\n")
    trees, end, tail = rest.partition("end of trees")
    each = [f"\n{tree}" for tree in ("\n" + "Tree=0\n" + trees).split("\nTree=")[1:]]
    bodies = [tree.partition("\n")[2].partition("\n")[2].rstrip("\n") + "\n\n\n" for tree in each]
    count = max(_COPIED_TREES, size_bytes // (sum(map(len, bodies)) // _COPIED_TREES))
    blocks = [f"Tree={i}\n{bodies[i % _COPIED_TREES]}" for i in range(count)]
    before, _, after = head.partition("tree_sizes=")
    sizes = " ".join(str(len(block)) for block in blocks)
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{before}tree_sizes={sizes}{after[after.index(chr(10)):]}")
        file.writelines(blocks)
        file.write(end + tail)


def xgboost(path: str, size_bytes: int) -> None:
    """A few large trees, trained, then repeated: hundreds of MB take XGBoost half an hour to train."""
    import numpy
    import xgboost

    generator = numpy.random.default_rng(0)
    data = xgboost.DMatrix(generator.standard_normal((_BOOSTED_ROWS, 16)), generator.standard_normal(_BOOSTED_ROWS))
    settings = {"max_depth": 15 if size_bytes >= _LARGE_BYTES else 4, "min_child_weight": 0, "tree_method": "hist", "nthread": 1}
    model = bytes(xgboost.train(settings, data, num_boost_round=_COPIED_TREES).save_raw("ubj"))
    head, _, rest = model.partition(_ubj_key("trees") + b"[#" + _ubj_length(_COPIED_TREES))
    # Each tree begins with the first of its keys in the order of the alphabet, and ends where the next begins.
    begins = b"{" + _ubj_key("base_weights")
    bodies = [begins + body for body in rest.split(begins)[1:]]
    end = bodies[-1].index(b"}}", bodies[-1].index(_ubj_key("size_leaf_vector"))) + 2
    bodies[-1], tail = bodies[-1][:end], bodies[-1][end:]
    count = max(_COPIED_TREES, size_bytes // (sum(map(len, bodies)) // _COPIED_TREES))
    numbers = b"".join(b"l" + struct.pack(">i", i) for i in range(count + 1))
    before, _, _ = head.partition(_ubj_key("iteration_indptr"))
    each, text = b"S" + _ubj_length(1) + b"%d", str(count).encode()
    before = before.replace(
        _ubj_key("num_trees") + each % _COPIED_TREES, _ubj_key("num_trees") + b"S" + _ubj_length(len(text)) + text
    )
    with open(path, "wb") as file:
        file.write(before + _ubj_key("iteration_indptr") + b"[#" + _ubj_length(count + 1) + numbers)
        file.write(_ubj_key("tree_info") + b"[#" + _ubj_length(count) + b"i\0" * count)
        file.write(_ubj_key("trees") + b"[#" + _ubj_length(count))
        for i in range(count):
            old = _ubj_key("id") + b"i" + bytes([i % _COPIED_TREES])
            file.write(bodies[i % _COPIED_TREES].replace(old, _ubj_key("id") + b"l" + struct.pack(">i", i), 1))
        file.write(tail)


def _ubj_length(count: int) -> bytes:
    return b"L" + struct.pack(">q", count)


def _ubj_key(name: str) -> bytes:
    """A key of an object in UBJSON, as XGBoost writes it."""
    return _ubj_length(len(name)) + name.encode()


def catboost(path: str, size_bytes: int) -> None:
    """A few large trees, trained, then repeated by CatBoost itself."""
    import catboost
    import numpy

    generator = numpy.random.default_rng(0)
    rows, values = generator.standard_normal((2000, 16), numpy.float32), generator.standard_normal(2000)
    settings = {"iterations": _COPIED_TREES, "depth": 14 if size_bytes >= _LARGE_BYTES else 5, "thread_count": 1}
    model = catboost.CatBoostRegressor(**settings, verbose=0, allow_writing_files=False).fit(rows, values)
    copies = max(1, size_bytes // (model.get_leaf_values().nbytes * 2))  # a leaf has a value and a weight
    catboost.sum_models([model] * copies).save_model(path)


def faiss(path: str, size_bytes: int) -> None:
    """Vectors in inverted lists, which is what large indexes are."""
    import faiss
    import numpy

    count = max(1000, size_bytes // (64 * _ITEM_BYTES + 8))  # a vector and its id
    vectors = numpy.random.default_rng(0).standard_normal((count, 64), numpy.float32)
    index = faiss.index_factory(64, f"IVF{max(4, count // 4000)},Flat")
    index.cp.niter = 2
    index.train(vectors[: max(1000, index.nlist * 40)])
    index.add(vectors)
    faiss.write_index(index, path)


def usearch(path: str, size_bytes: int) -> None:
    """Vectors of 768 numbers, as of a text model."""
    import numpy
    from usearch.index import Index

    count = max(50, size_bytes // (768 * _ITEM_BYTES + 100))
    index = Index(ndim=768, dtype="f32", connectivity=8, expansion_add=8)
    vectors = numpy.random.default_rng(0).standard_normal((count, 768), numpy.float32)
    index.add(numpy.arange(count), vectors, threads=1)
    index.save(path)


def tflite(path: str, size_bytes: int) -> None:
    """A chain of products with square matrices, by hand: the converter is a part of TensorFlow."""
    import numpy
    from fuzz_seeds import flatbuffer

    width = 1024 if size_bytes >= _LARGE_BYTES else 16
    layers = max(2, size_bytes // (width * width * _ITEM_BYTES))
    weights = numpy.random.default_rng(0).standard_normal((layers, width, width), numpy.float32) / numpy.float32(math.sqrt(width))

    def numbers(*given: int) -> tuple[int, bytes]:
        return len(given), struct.pack(f"<{len(given)}i", *given)

    rows = [{0: numbers(1, width), 2: bytes(4), 3: f"h{layer}"} for layer in range(layers + 1)]
    matrices = [{0: numbers(width, width), 2: struct.pack("<I", layer + 1), 3: f"w{layer}"} for layer in range(layers)]
    nodes = [
        {1: numbers(layer, layers + 1 + layer, -1), 2: numbers(layer + 1), 3: b"\x08", 4: {0: b"\1"}} for layer in range(layers)
    ]
    graph = {0: rows + matrices, 1: numbers(0), 2: numbers(layers), 3: nodes, 4: "main"}
    buffers = [{}, *({0: (each.nbytes, each.tobytes())} for each in weights)]
    fully_connected = {0: b"\x09", 2: struct.pack("<i", 1), 3: struct.pack("<i", 9)}
    with open(path, "wb") as file:
        model = {0: struct.pack("<I", 3), 1: [fully_connected], 2: [graph], 3: "by hand", 4: buffers}
        file.write(flatbuffer(model, b"TFL3"))


def gensim(path: str, size_bytes: int) -> None:
    """Vectors of words; where they are many, in a file beside the pickle."""
    import numpy
    from gensim.models import KeyedVectors

    count = max(10, size_bytes // (600 * _ITEM_BYTES))
    vectors = KeyedVectors(600)
    numbers = numpy.random.default_rng(0).standard_normal((count, 600), numpy.float32)
    vectors.add_vectors([f"word{i}" for i in range(count)], numbers)
    vectors.save(path, sep_limit=0)


def _keras_model(size_bytes: int) -> Any:
    import keras

    width = math.ceil(math.sqrt(size_bytes / _LAYERS / _ITEM_BYTES))
    return keras.Sequential([keras.Input((width,)), *(keras.layers.Dense(width, "relu") for _ in range(_LAYERS))])


def keras(path: str, size_bytes: int) -> None:
    _keras_model(size_bytes).save(path)


def saved_model(path: str, size_bytes: int) -> None:
    # An export holds each variable twice: as the model's, and as one of the list of all.
    _keras_model(size_bytes // 2).export(path, verbose=False)


def gguf(path: str, size_bytes: int) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for name, array in _arrays(size_bytes).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
