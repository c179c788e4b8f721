"""The table of formats: complete, every string in it leads somewhere, and every list of formats is a view of it."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from child import run_child

from mlup_stream import extras
from mlup_stream.constants import BinarizationType
from mlup_stream.errors import ConfigError, MissingDependencyError
from mlup_stream.formats.kinds import Format, FormatSpec, Library, function_at
from mlup_stream.formats.peek import END_BYTES
from mlup_stream.memory import imports
from mlup_stream.registry import KNOWN_SUFFIXES, ROWS, binarization_type_of, binarizer_class, spec_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlup_stream"


def test_every_format_has_one_row() -> None:
    """No format is missing, and none is there twice."""
    assert sorted(row.format for row in ROWS) == sorted(Format)
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_string_of_a_row_resolves(row: FormatSpec) -> None:
    """Each "module:name" leads to what it should, and each row says whether packing helps or why not, and what loading runs."""
    for detector in row.detectors:
        assert callable(function_at(detector.at))
        assert all(isinstance(each, bytes) and detector.offset + len(each) <= END_BYTES for each in detector.begins)
    assert row.detectors
    assert callable(function_at(row.inspector))
    assert bool(row.packer) is not bool(row.nothing_to_gain)
    if row.packer:
        assert callable(function_at(row.packer))
    for binarizer in row.binarizers:
        assert function_at(binarizer.at).format == row.format
        assert BinarizationType[binarizer.member].value == binarizer.import_path
        assert {binarizer_class(name) for name in (*binarizer.names, binarizer.member, binarizer.import_path)} == {
            function_at(binarizer.at)
        }
    assert binarization_type_of(row.format) is BinarizationType[row.binarizers[0].member]
    assert all(row.runs_code)
    assert row.title


def test_marks_are_asked_first() -> None:
    """Protobuf and pickles of protocol 0 and 1 have no mark, usearch's index has it far behind; all others begin with one."""
    assert [detector.at for row in ROWS for detector in row.detectors if not detector.marked] == [
        "mlup_stream.formats.pickles.detection:detect_bare_pickle",
        "mlup_stream.formats.onnx.head:detect",
        "mlup_stream.formats.arrays.usearch:detect",
    ]


def test_names_and_suffixes_are_nobody_elses() -> None:
    """A short name means one binarizer; a suffix one format."""
    names = [name for row in ROWS for binarizer in row.binarizers for name in (*binarizer.names, binarizer.member)]
    assert len({name.lower() for name in names} | {"memory"}) == len({*map(str.lower, names)}) + 1
    assert len(set(KNOWN_SUFFIXES)) == len(KNOWN_SUFFIXES)
    assert {".bin", ".txt", ".lgb", ".npy", ".gguf", ".ubj", ".json"} <= set(KNOWN_SUFFIXES)


def test_what_libraries_cost_is_known_for_every_row() -> None:
    """The first library of each row, which builds its models, is weighed before its first import."""
    for row in ROWS:
        assert {each.module for each in row.libraries[:1]} <= imports.KNOWN, row.name


def _requirement(library: Library) -> str:
    return f"{library.distribution or library.module}>={'.'.join(map(str, library.minimum))}"


def test_the_extras_of_the_distribution_are_those_of_the_rows() -> None:
    """pyproject.toml installs, for each extra, what the rows say, with the oldest version that they say."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    bodies = dict(re.findall(r"^(\w+) = \[(.*?)\]$", section, re.M))
    declared = {
        extra: {each.partition(";")[0].strip() for each in re.findall(r'"([^"]+)"', body)} for extra, body in bodies.items()
    }
    named = {each.extra for each in extras.LIBRARIES.values()}
    known = set(map(_requirement, extras.LIBRARIES.values()))
    for extra in named:
        needed = {each for row in ROWS if row.libraries and row.libraries[0].extra == extra for each in row.libraries}
        needed |= {each for each in extras.LIBRARIES.values() if each.extra == extra}
        wanted = set(map(_requirement, needed))
        assert wanted <= declared[extra] <= known, extra
    (everything,) = declared["all"]
    assert set(everything.partition("[")[2].rstrip("]").split(",")) == named
    assert set(declared) - {"test", "test-formats", "test-serving"} == {*named, "all", "lint"}


def test_an_unknown_format_or_library_is_a_typed_error() -> None:
    """No bare KeyError: an unknown format is told with those that are known, an unknown library with what to install."""
    with pytest.raises(ConfigError, match="'nonsense' is not known; expected one of pickle"):
        spec_of("nonsense")
    with pytest.raises(MissingDependencyError, match="Nonsense models need no_such_library, which is not installed; run: pip"):
        extras.require("no_such_library.part", "Nonsense models")
    assert extras.library("keras.saving") == Library("keras", (3, 0), extra="tensorflow")


def test_the_table_imports_nothing_that_it_names() -> None:
    """Importing the registry imports no parser, no binarizer and no library."""
    code = """
        import sys
        import mlup_stream.registry
        answer(sorted(name for name in sys.modules if name.startswith("mlup_stream")))
    """
    layers = ["errors", "formats", "formats.kinds", "plugins", "registry", "_version"]
    assert set(run_child(code)) == {"mlup_stream", *(f"mlup_stream.{name}" for name in layers)}


ALLOWED = {"formats": {"formats", "errors", "units"}, "memory": {"memory", "entries", "errors", "units", "_version"}}


@pytest.mark.parametrize("room", ALLOWED)
def test_no_arrow_runs_back(room: str) -> None:
    """`formats` and `memory` import nothing of the rest but errors, units and, for what is remembered, entries."""
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            rooms = {module.split(".")[1] for module in modules if module.startswith("mlup_stream.")}
            assert rooms <= ALLOWED[room], path


WINGS = {"gguf": "arrays", "safetensors": "arrays", "lightgbm": "trees"}


def _places() -> list[str]:
    """The numbered places of CONTRIBUTING.md."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## To add a format")[1].split("\n## ")[0]
    found = re.findall(r"^(\d)\. `([^`]+)`: ", section, re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [place for _, place in found]


@pytest.mark.parametrize("name", WINGS)
def test_the_places_of_a_format_are_those_that_contributing_names(name: str) -> None:
    """At most nine; each is there for a format that is there, and no other module of the package names it."""
    places = [place.replace("WING", WINGS[name]).replace("NAME", name) for place in _places()]
    assert len(places) <= 9
    for place in places:
        assert re.search(name, (ROOT / place).read_text(), re.IGNORECASE), place
    named = re.compile(
        rf"Format\.{name.upper()}\b|formats\.\w+\.{name}\b|binarization\.{name}\b|BinarizationType\.{name.upper()}\b"
    )
    elsewhere = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py") if named.search(path.read_text())} - set(places)
    assert {path for path in elsewhere if not path.startswith(PARTS)} == set()


PARTS = (
    "mlup_stream/formats/trees/",
    "mlup_stream/ml/binarization/arrays/",
    "mlup_stream/ml/binarization/trees/",
    "mlup_stream/pack/",
)
"""What a format's parser, binarizer and packer are divided into, where they are long."""


def test_the_documents_say_what_the_registry_says() -> None:
    """The tables and lists of formats, extras and what runs code are written from the rows."""
    spec = importlib.util.spec_from_file_location("write_tables", ROOT / "docs" / "write_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.stale() == [], "run: python docs/write_tables.py"
