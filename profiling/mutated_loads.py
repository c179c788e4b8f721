"""Does a damaged file ever end the process, hang it, or raise something untyped, and is one refused that its library loads?

Small real files of each kind, with bits flipped, cut, spliced and their lengths lied about (`fuzz_mutations`), go through the
public `load` in a child that answers file after file, under a limit on memory and 10 seconds for each. What is refused is given
to the library alone too, in a child of its own. What loads predicts once, where the model is of trees.

    python profiling/mutated_loads.py [KIND ...] [--mutations 2000] [--seed 1]

The exit code is 1 if a file of ours ended a process, hung it, or raised something untyped; such files are kept (--keep FOLDER).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import common
from fuzz_mutations import mutate

__all__ = ["KINDS", "Outcome", "Worker", "outcomes"]

SECONDS = 10.0
DATA_BYTES = 2 << 30
"""RLIMIT_DATA of a child: by a number found in a file nothing of that size may be allocated."""


def _arrays() -> dict[str, Any]:
    import numpy

    return {"a": numpy.arange(120, dtype="f4").reshape(10, 12), "b": numpy.arange(40, dtype="i8")}


def _npy(path: str) -> None:
    import numpy

    numpy.save(path, _arrays()["a"])


def _npz(path: str) -> None:
    import numpy

    numpy.savez(path, **_arrays())


def _safetensors(path: str) -> None:
    from safetensors.numpy import save_file

    save_file(_arrays(), path)


def _gguf(path: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("n", 3)
    writer.add_tensor("a", _arrays()["a"])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()


def _arrow(compression: str | None = None) -> Callable[[str], None]:
    def write(path: str) -> None:
        import pyarrow

        text = [f"row {i}" if i % 3 else None for i in range(40)]
        columns = {
            **{name: array.reshape(-1)[:40] for name, array in _arrays().items()},
            "text": text,
            "words": pyarrow.array(["u", "v"] * 20).dictionary_encode(),
            "views": pyarrow.array([f"{each} and more of it" for each in text], pyarrow.string_view()),
            "lists": [[1.0, i] for i in range(40)],
            "structs": [{"p": 1, "q": "z"}] * 40,
            "maps": pyarrow.array([[("k", 1)]] * 40, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "runs": pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([20, 40], pyarrow.int32()), pyarrow.array([1.0, 2.0])),
        }
        table = pyarrow.table(columns)
        with pyarrow.ipc.new_file(path, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table, max_chunksize=25)

    return write


def _skops(path: str) -> None:
    import skops.io
    from sklearn.linear_model import LogisticRegression

    rows = _arrays()["a"]
    skops.io.dump({**_arrays(), "model": LogisticRegression().fit(rows, [0, 1] * 5), "bytes": b"some"}, path)


def _onnx(path: str) -> None:
    import writers

    writers.onnx_inside(path, 4096)


def _ort(path: str) -> None:
    import writers

    writers.ort(path, 4096)


def _torch(path: str) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in _arrays().items()}, path)


def _xgboost(**parameters: Any) -> Callable[[str], None]:
    def write(path: str) -> None:
        import numpy
        import xgboost

        numbers = numpy.random.default_rng(7)
        rows = numbers.random((120, 4))
        outputs = parameters.pop("outputs", 1)
        labels = numbers.random((120, outputs)) if outputs > 1 else (rows[:, 0] * 3).astype(int) % parameters.get("num_class", 2)
        categories = {}
        if parameters.pop("categories", False):
            rows[:, 1] = (rows[:, 1] * 5).astype(int)
            categories = {"feature_types": ["q", "c", "q", "q"], "enable_categorical": True}
        data = xgboost.DMatrix(rows, labels, **categories)
        settings = {"tree_method": "hist", "max_depth": 3, "nthread": 1, **parameters}
        if settings.get("booster") == "gblinear":
            settings = {"booster": "gblinear", "nthread": 1}
        xgboost.train(settings, data, 4).save_model(path)

    return write


def _lightgbm(**parameters: Any) -> Callable[[str], None]:
    def write(path: str) -> None:
        import lightgbm
        import numpy

        numbers = numpy.random.default_rng(7)
        rows = numbers.random((160, 4))
        labels = (rows[:, 0] * 3).astype(int) % parameters.get("num_class", 2)
        categories = parameters.pop("categories", [])
        for column in categories:
            rows[:, column] = (rows[:, column] * 6).astype(int)
        settings = {"verbosity": -1, "num_leaves": 5, "min_data_in_leaf": 3, "num_threads": 1, **parameters}
        lightgbm.train(settings, lightgbm.Dataset(rows, labels, categorical_feature=categories), 3).save_model(path)

    return write


def _catboost(kind: str = "CatBoostRegressor", categories: bool = False, **parameters: Any) -> Callable[[str], None]:
    def write(path: str) -> None:
        import catboost
        import numpy

        rows = numpy.random.default_rng(7).random((240, 4))
        labels = (rows[:, 0] * 3).astype(int) if kind == "CatBoostClassifier" else rows[:, 0] + rows[:, 2]
        settings = {"iterations": 4, "depth": 3, "verbose": 0, "thread_count": 1, "allow_writing_files": False, **parameters}
        if categories:
            settings["cat_features"] = [1, 2]
            words = [f"c{each * 12:.0f}" for each in rows[:, 0]], [f"d{each * 2:.0f}" for each in rows[:, 2]]
            rows = numpy.array([rows[:, 0], *words, rows[:, 3]], object).T
        getattr(catboost, kind)(**settings).fit(rows, labels).save_model(path)

    return write


def _faiss(factory: str) -> Callable[[str], None]:
    def write(path: str) -> None:
        import faiss
        import numpy

        vectors = numpy.random.default_rng(7).standard_normal((24, 8)).astype("f4")
        index = faiss.index_factory(8, factory)
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, path)

    return write


def _usearch(path: str) -> None:
    import numpy
    from usearch.index import Index

    index = Index(ndim=4, dtype="f32", connectivity=4)
    index.add(numpy.arange(60), numpy.random.default_rng(7).standard_normal((60, 4)).astype("f4"))
    index.save(path)


def _tflite(path: str) -> None:
    import writers

    writers.tflite(path, 2048)


class Kind(NamedTuple):
    """One kind of file: its name's ending, what writes it, and what its library is called."""

    suffix: str
    write: Callable[[str], None]
    library: str


KINDS: dict[str, Kind] = {
    "npy": Kind(".npy", _npy, "numpy"),
    "npz": Kind(".npz", _npz, "numpy"),
    "safetensors": Kind(".safetensors", _safetensors, "safetensors"),
    "gguf": Kind(".gguf", _gguf, "gguf"),
    "arrow": Kind(".arrow", _arrow(), "pyarrow"),
    **{f"faiss {name}": Kind(".faiss", _faiss(name), "faiss") for name in ("Flat", "IVF4,PQ4x4", "HNSW8,SQ8", "PCA4,IVF4,Flat")},
    "tflite": Kind(".tflite", _tflite, "ai_edge_litert"),
    "usearch": Kind(".usearch", _usearch, "usearch"),
    "catboost": Kind(".cbm", _catboost(), "catboost"),
    "catboost classes": Kind(".cbm", _catboost("CatBoostClassifier"), "catboost"),
    "catboost lossguide": Kind(".cbm", _catboost(grow_policy="Lossguide"), "catboost"),
    "catboost categories": Kind(".cbm", _catboost("CatBoostClassifier", categories=True), "catboost"),
    "arrow lz4": Kind(".arrow", _arrow("lz4"), "pyarrow"),
    "skops": Kind(".skops", _skops, "skops"),
    "onnx": Kind(".onnx", _onnx, "onnxruntime"),
    "ort": Kind(".ort", _ort, "onnxruntime"),
    "torch": Kind(".pt", _torch, "torch"),
    "lightgbm": Kind(".txt", _lightgbm(), "lightgbm"),
    "lightgbm classes": Kind(".txt", _lightgbm(objective="multiclass", num_class=3), "lightgbm"),
    "lightgbm categories": Kind(".txt", _lightgbm(categories=[1]), "lightgbm"),
    "lightgbm linear": Kind(".txt", _lightgbm(linear_tree=True), "lightgbm"),
    "xgboost ubj": Kind(".ubj", _xgboost(), "xgboost"),
    "xgboost json": Kind(".json", _xgboost(), "xgboost"),
    "xgboost classes": Kind(".ubj", _xgboost(objective="multi:softprob", num_class=3), "xgboost"),
    "xgboost categories": Kind(".ubj", _xgboost(categories=True), "xgboost"),
    "xgboost dart": Kind(".ubj", _xgboost(booster="dart", rate_drop=0.5), "xgboost"),
    "xgboost linear": Kind(".ubj", _xgboost(booster="gblinear"), "xgboost"),
    "xgboost outputs": Kind(".ubj", _xgboost(multi_strategy="multi_output_tree", outputs=2), "xgboost"),
    "xgboost outputs json": Kind(".json", _xgboost(multi_strategy="multi_output_tree", outputs=2), "xgboost"),
}

# The child: a path a line, an outcome a line. What a library prints goes to standard error.
_CHILD = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
way, kind, limit_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
import mutated_loads
use = mutated_loads.use_of(kind)
if way == "ours":
    import mlup_stream as mlup
    load, typed = mlup.load, mlup.errors.MLupError
else:
    load, typed = mutated_loads.library_of(kind), ()
mutated_loads.import_of(kind)
import resource
resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
for line in sys.stdin:
    try:
        use(load(json.loads(line)))
        outcome = "loads"
    except typed as error:
        outcome = "refused: " + type(error).__name__
    except Exception as error:
        outcome = "untyped: " + type(error).__name__ + ": " + str(error)[:200]
    answers.write(json.dumps(outcome) + chr(10))
    answers.flush()
"""


def import_of(kind: str) -> None:
    import importlib

    importlib.import_module(KINDS[kind].library)


def _listed(table: Any) -> None:
    for column in table.columns:
        with contextlib.suppress(Exception):  # an exception is an answer
            column.to_pylist()


def use_of(kind: str) -> Callable[[Any], None]:
    """What is done with a model that was loaded: one of trees predicts, which follows its indices; a table becomes a list."""
    library = KINDS[kind].library
    if library == "ai_edge_litert":
        return _invoke
    if library in ("faiss", "usearch"):
        return _search
    if library == "pyarrow":
        return _listed
    if library not in ("xgboost", "lightgbm", "catboost"):
        return lambda model: None
    import numpy

    rows = numpy.random.default_rng(3).random((8, 4))
    if kind == "catboost categories":
        rows = numpy.array([[each[0], f"c{each[1] * 12:.0f}", f"d{each[2] * 2:.0f}", each[3]] for each in rows], object)

    def predict(model: Any) -> None:
        try:
            if library == "xgboost":
                import xgboost

                model.predict(xgboost.DMatrix(rows), validate_features=False)
            elif library == "lightgbm":
                model.predict(rows, predict_disable_shape_check=True)
            else:
                model.predict(rows)
        except Exception:
            pass  # an exception is an answer

    return predict


def _search(index: Any) -> None:
    import numpy

    dimensions = index.d if hasattr(index, "d") else index.ndim
    if dimensions < 1 << 16:
        with contextlib.suppress(Exception):  # which is an answer
            index.search(numpy.ones((2, dimensions), "f4"), 3)


def _invoke(interpreter: Any) -> None:
    with contextlib.suppress(Exception):  # which is an answer
        interpreter.invoke()


def library_of(kind: str) -> Callable[[str], Any]:
    """The library's own call."""
    import formats

    library = KINDS[kind].library
    names = {"onnxruntime": "onnx", "pyarrow": "arrow", "skops": "skops-arrays", "safetensors": "safetensors-numpy"}
    names["ai_edge_litert"] = "tflite"
    return formats.case_named(kind if library == "numpy" else names.get(library, library)).library


class Worker:
    """A child that answers, started again after one that died."""

    def __init__(self, kind: str, way: str) -> None:
        self._arguments = [sys.executable, "-c", _CHILD, way, kind, str(DATA_BYTES)]
        self._child: Any = None

    def ask(self, path: str) -> str:
        if self._child is None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(common.HERE), os.environ.get("PYTHONPATH", "")))}
            self._child = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**environment, "MLUP_STREAM_LEARNED": "0"},
            )
            self._is_first = True
        child, hung = self._child, threading.Event()

        def kill() -> None:
            hung.set()
            child.kill()

        timer = threading.Timer(SECONDS + (60 if self._is_first else 0), kill)  # the first waits for the imports
        timer.start()
        try:
            child.stdin.write(json.dumps(path) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        self._is_first = False
        if line:
            return str(json.loads(line))
        self.end()
        return "hang" if hung.is_set() else f"signal {-child.returncode}" if child.returncode < 0 else f"exit {child.returncode}"

    def end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stdin.close()
            child.wait()
            child.stdout.close()


class Outcome(NamedTuple):
    """What became of one mutation, with us and, where we refused it, with the library alone."""

    data: bytes
    ours: str
    library: str

    @property
    def is_fault(self) -> bool:
        return self.ours.partition(":")[0] not in ("loads", "refused")


def outcomes(kind: str, mutations: int, seed: int, *, beside: bool = True, worker: Worker | None = None) -> Iterator[Outcome]:
    """The outcomes of so many mutations of one kind.

    Args:
        kind: A key of `KINDS`.
        mutations: How many.
        seed: Of the random numbers.
        beside: Whether the library is asked too.
        worker: What loads them, made for any kind of the same library; by default one that ends with this.
    """
    random = Random(f"{seed} {kind}")
    ours, library = worker or Worker(kind, "ours"), Worker(kind, "library")
    with tempfile.TemporaryDirectory(prefix="mlup-stream-mutated-") as folder:
        path = os.path.join(folder, "model" + KINDS[kind].suffix)
        KINDS[kind].write(path)
        good = Path(path).read_bytes()
        try:
            for _ in range(mutations):
                data = mutate(random, good, (good,))
                # A new name each time: a map of the one before may be there still.
                Path(path).unlink()
                Path(path).write_bytes(data)
                found = ours.ask(path)
                yield Outcome(data, found, library.ask(path) if beside and found.startswith("refused") else "")
        finally:
            library.end()
            if worker is None:
                ours.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="*", help=f"which; all by default: {', '.join(KINDS)}")
    parser.add_argument("--mutations", type=int, default=2000, help="of each kind (default: 2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="without the library beside it, which takes most of the time")
    parser.add_argument("--keep", type=Path, help="where to write faults, and what is refused though the library loads it")
    arguments = parser.parse_args()
    rows, faults = [], 0
    for kind in arguments.kind or KINDS:
        counts: Counter[str] = Counter()
        for number, each in enumerate(
            outcomes(kind, arguments.mutations, arguments.seed, beside=not arguments.alone)
        ):
            kinds = [each.ours.partition(":")[0].partition(" ")[0]]
            if each.library == "loads":
                kinds.append("refused though the library loads")
            counts.update(kinds)
            faults += each.is_fault
            if arguments.keep is not None and (each.is_fault or each.library == "loads"):
                arguments.keep.mkdir(parents=True, exist_ok=True)
                name = f"{kind.replace(' ', '-')}-{number}{KINDS[kind].suffix}"
                (arguments.keep / name).write_bytes(each.data)
                print(f"{name}: {each.ours}", file=sys.stderr)
        columns = ("loads", "refused", "untyped", "signal", "exit", "hang", "refused though the library loads")
        rows.append([kind, *(str(counts[column]) for column in columns)])
    print(common.table(("kind", *columns), rows))
    print(f"\n{arguments.mutations} mutations of each, seed {arguments.seed}. {common.machine(('numpy', 'xgboost', 'lightgbm'))}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
