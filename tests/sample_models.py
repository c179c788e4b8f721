"""Small real models of every format, each written by its own library in a child process.

A child, because the frameworks warn when they are imported, and warnings are errors here; and because a process that has imported
one cannot show that something else did not.
"""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path

from child import run_child

__all__ = ["FORMAT_OF", "write_models"]

_PROFILING = str(Path(__file__).resolve().parent.parent / "profiling")

_WRITERS = {
    "numpy": """
        import pickle, numpy
        weights = numpy.arange(1000.0)
        model = {"weights": weights, "names": ["a", "b"]}
        for protocol in range(6):
            with open(folder + f"/protocol{protocol}.pickle", "wb") as file:
                pickle.dump(model, file, protocol)
        numpy.save(folder + "/array.npy", weights)
        numpy.savez(folder + "/arrays.npz", weights=weights, more=weights[:3])
        numpy.savez_compressed(folder + "/deflated.npz", weights=weights)
    """,
    "joblib": """
        import joblib, numpy
        model = {"weights": numpy.arange(1000.0), "names": ["a", "b"]}
        joblib.dump(model, folder + "/plain.joblib")
        joblib.dump(model, folder + "/protocol2.joblib", protocol=2)
        for compressor in ("zlib", "gzip", "bz2", "lzma", "xz", "lz4"):
            joblib.dump(model, folder + f"/{compressor}.joblib", compress=(compressor, 3))
    """,
    "torch": """
        import torch
        model = torch.nn.Linear(3, 2)
        torch.save(model.state_dict(), folder + "/state_dict.pt")
        torch.save(model, folder + "/module.pt")
        torch.save(model.state_dict(), folder + "/legacy_state_dict.pt", _use_new_zipfile_serialization=False)
        torch.save(model, folder + "/legacy_module.pt", _use_new_zipfile_serialization=False)
        torch.jit.save(torch.jit.script(model), folder + "/script.pt")
    """,
    "safetensors": """
        import json, numpy
        from safetensors.numpy import save_file
        save_file({"weight": numpy.arange(6.0, dtype="f4").reshape(2, 3)}, folder + "/model.safetensors")
        with open(folder + "/shards.safetensors.index.json", "w") as file:
            json.dump({"metadata": {"total_size": 24}, "weight_map": {"weight": "model.safetensors"}}, file, indent=2)
    """,
    "lightgbm": """
        import lightgbm, numpy
        values = numpy.random.default_rng(0).random((100, 3))
        data = lightgbm.Dataset(values, values.sum(axis=1))
        lightgbm.train({"verbose": -1, "min_data_in_leaf": 1}, data, 3).save_model(folder + "/lightgbm.txt")
    """,
    "xgboost": """
        import numpy, xgboost
        values = numpy.random.default_rng(0).random((100, 3))
        booster = xgboost.train({}, xgboost.DMatrix(values, values.sum(axis=1)), 3)
        booster.save_model(folder + "/xgboost.ubj")
        booster.save_model(folder + "/xgboost.json")
    """,
    "onnx": """
        import numpy, onnx
        weights = onnx.numpy_helper.from_array(numpy.arange(6, dtype="f4").reshape(3, 2), "w")
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
            [onnx.helper.make_tensor_value_info("x", 1, [None, 3])], [onnx.helper.make_tensor_value_info("y", 1, [None, 2])],
            [weights],
        )
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), folder + "/model.onnx")
    """,
    "gguf": """
        import gguf, numpy
        writer = gguf.GGUFWriter(folder + "/model.gguf", "llama")
        writer.add_uint32("answer", 42)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        writer.add_tensor("weight", numpy.arange(6, dtype="f4").reshape(2, 3))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    """,
    "pyarrow": """
        import pyarrow
        table = pyarrow.table({"weight": [1.0, 2.0, 3.0], "name": ["a", None, "b"]})
        for name, codec in (("model.arrow", None), ("lz4.feather", "lz4"), ("zstd.feather", "zstd")):
            options = pyarrow.ipc.IpcWriteOptions(compression=codec)
            with pyarrow.ipc.new_file(folder + "/" + name, table.schema, options=options) as writer:
                writer.write_table(table)
        with pyarrow.ipc.new_stream(folder + "/model.arrows", table.schema) as writer:
            writer.write_table(table)
    """,
    "skops": """
        import numpy, skops.io
        from sklearn.linear_model import LogisticRegression
        rows = numpy.eye(4)
        skops.io.dump(LogisticRegression().fit(rows, [0, 1, 0, 1]), folder + "/model.skops")
        skops.io.dump({"weights": numpy.arange(1000.0)}, folder + "/deflated.skops", compression=8)
    """,
    "ai_edge_litert": """
        import sys
        sys.path.append(profiling)
        import writers
        writers.tflite(folder + "/model.tflite", 2048)
    """,
    "usearch": """
        import numpy
        from usearch.index import Index
        index = Index(ndim=8, dtype="f16", metric="ip")
        index.add(numpy.arange(50), numpy.random.default_rng(0).random((50, 8)).astype("f4"))
        index.save(folder + "/index.usearch")
    """,
    "faiss": """
        import faiss, numpy
        vectors = numpy.random.default_rng(0).random((100, 8)).astype("f4")
        for name, factory in (("flat", "Flat"), ("hnsw", "HNSW8,Flat"), ("lists", "IVF2,Flat")):
            index = faiss.index_factory(8, factory)
            index.train(vectors)
            index.add(vectors)
            faiss.write_index(index, folder + f"/{name}.faiss")
        bits = faiss.IndexBinaryFlat(64)
        bits.add(numpy.zeros((3, 8), "u1"))
        faiss.write_index_binary(bits, folder + "/bits.faiss")
    """,
    "catboost": """
        import catboost, numpy
        values = numpy.random.default_rng(0).random((100, 3))
        model = catboost.CatBoostRegressor(iterations=3, depth=3, verbose=0, allow_writing_files=False)
        model.fit(values, values.sum(axis=1)).save_model(folder + "/model.cbm")
    """,
    "tensorflow": """
        import os
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow
        model = tensorflow.keras.Sequential([tensorflow.keras.layers.Input((3,)), tensorflow.keras.layers.Dense(2)])
        model.compile(loss="mse", optimizer="adam")
        model.save(folder + "/model.keras")
        model.save(folder + "/model.h5")
        model.save_weights(folder + "/only.weights.h5")
        model.export(folder + "/saved_model")
    """,
}

FORMAT_OF = {
    **{f"protocol{protocol}.pickle": "pickle" for protocol in range(6)},
    "array.npy": "npy",
    "arrays.npz": "npz",
    "deflated.npz": "npz",
    **{f"{name}.joblib": "joblib" for name in ("plain", "protocol2", "zlib", "gzip", "bz2", "lzma", "xz", "lz4")},
    "state_dict.pt": "torch",
    "module.pt": "torch",
    "legacy_state_dict.pt": "torch",
    "legacy_module.pt": "torch",
    "script.pt": "torchscript",
    "model.safetensors": "safetensors",
    "shards.safetensors.index.json": "safetensors",
    "lightgbm.txt": "lightgbm",
    "xgboost.ubj": "xgboost",
    "xgboost.json": "xgboost",
    "model.onnx": "onnx",
    "model.gguf": "gguf",
    **dict.fromkeys(("model.arrow", "lz4.feather", "zstd.feather", "model.arrows"), "arrow"),
    "model.skops": "skops",
    "deflated.skops": "skops",
    **dict.fromkeys(("flat.faiss", "hnsw.faiss", "lists.faiss", "bits.faiss"), "faiss"),
    "model.tflite": "tflite",
    "index.usearch": "usearch",
    "model.cbm": "catboost",
    "model.keras": "keras",
    "model.h5": "keras",
    "saved_model": "savedmodel",
}
"""What each of the files is."""


def write_models(folder: Path, *frameworks: str) -> None:
    """Writes the models of the named frameworks, of every one by default, into `folder`; leaves out what is not installed."""
    for framework, code in _WRITERS.items():
        if (not frameworks or framework in frameworks) and importlib.util.find_spec(framework):
            quietly = "import warnings\nwarnings.simplefilter('ignore')\n"
            run_child(quietly + textwrap.dedent(code) + "\nanswer(True)", folder=str(folder), profiling=_PROFILING)

