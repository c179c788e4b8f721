"""Formats of other distributions: detected, planned, inspected, packed and loaded like ours; a broken one is skipped."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from child import run_child

ROWS = """
    from mlup_stream.registry import Binarizer, Detector, FormatSpec, Library

    STONE = FormatSpec(
        "stone",
        "stone tablets",
        binarizers=(Binarizer("quarry.stone:StoneBinarizer", ("stone", "stone-tablet")),),
        detectors=(Detector("quarry.stone:detect", (b"STN1",)),),
        inspector="quarry.stone:inspect",
        packer="quarry.stone:pack",
        suffixes=(".stone",),
        libraries=(Library("chisel", (3, 0), distribution="chisel-tools"),),
    )

    def several():
        builds = Binarizer("quarry.stone:StoneBinarizer", ("clay",))
        return [
            FormatSpec("clay", "clay", (builds,), (Detector("quarry.stone:fails"),)),
            FormatSpec("mud", "mud", (builds,), (Detector("quarry.stone:detect", ("no bytes",)),)),
            FormatSpec("sand", "sand", (builds,), (Detector("quarry.stone:detect", (b"STN1",)),), "quarry.stone:fails2"),
        ]
"""
STONE = """
    from mlup_stream.constants import Delivery
    from mlup_stream.delivery.terms import Built
    from mlup_stream.extras import require
    from mlup_stream.memory.estimate import Certainty, Estimate
    from mlup_stream.ml.binarization.base import FormatBinarizer
    from mlup_stream.pack.packed import Gain

    class StoneBinarizer(FormatBinarizer):
        format = "stone"
        deliveries = (Delivery.STREAM, Delivery.BYTES)

        @classmethod
        def estimate(cls, artifact, terms):
            return Estimate.private(artifact.size_bytes, certainty=Certainty.EXACT, why="its size")

        @classmethod
        def from_file(cls, file, artifact, terms):
            data = file.read()
            if not data.endswith(b"."):
                raise ValueError("no full stop")
            return Built(data[4:-1].decode())

    def detect(peek):
        return "the mark STN1"

    def fails(peek):
        raise RuntimeError("no clay today")

    def fails2(given, name):
        raise RuntimeError("no sand today")

    def inspect(given, name):
        return {"letters": 5}

    def pack(view, destination):
        with view.open() as source:
            destination.write(source.read())
        return Gain(5, 0, 5, "not at all")
"""
BROKEN = """
    absent = no_such_package.rows:ROW
    no_row = quarry.rows:textless
    of_ours = quarry.ours:ROW
    twice = quarry.rows:STONE
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder as `pip install` leaves it, with a distribution that declares formats."""
    site = tmp_path / "site"
    for name, text in (("__init__", ""), ("rows", ROWS), ("stone", STONE)):
        path = site / "quarry" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    (site / "quarry" / "ours.py").write_text(
        textwrap.dedent(ROWS).replace('"stone",\n    "stone tablets"', '"pickle",\n    "p"').replace("STONE", "ROW")
    )
    declare(site, "stone = quarry.rows:STONE\n")
    (tmp_path / "tablet").write_bytes(b"STN1granite.")
    return site


def declare(site: Path, points: str) -> None:
    info = site / "quarry-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quarry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mlup_stream.formats]\n{textwrap.dedent(points)}")


def in_child(site: Path, code: str, **values: Any) -> Any:
    prologue = "import sys, warnings\nsys.path.append(site)\nimport mlup_stream as mlup\n"
    return run_child(prologue + textwrap.dedent(code), site=str(site), path=str(site.parent / "tablet"), **values)


def test_a_foreign_format_is_detected_and_loaded(site: Path) -> None:
    """By content and by its short name; the report has its format; what detection found is an import path, which is read back."""
    found = in_child(
        site,
        """
        up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}))
        up.ml.load()
        chosen = up.conf.binarization_type
        again = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}, binarization_type=chosen))
        again.ml.load()
        named = mlup.load(path, binarization_type="stone-tablet")
        answer([named, up.ml.report.format, chosen, again.ml.report.format])
        """,
    )
    assert found == ["granite", "stone", "quarry.stone.StoneBinarizer", "stone"]


def test_a_foreign_format_is_planned_inspected_and_packed(site: Path) -> None:
    """The plan weighs its deliveries by its own estimate; `inspect` has its headers; `pack` calls its packer."""
    found = in_child(
        site,
        """
        from mlup_stream.ml.inspection import inspect
        from mlup_stream.pack import pack
        from click.testing import CliRunner
        from mlup_stream.cli.plan import command
        plan = CliRunner().invoke(command, [path, "--json"])
        packed = pack(path, path + ".packed")
        answer([plan.output, inspect(path), packed.format, open(path + ".packed").read()])
        """,
    )
    plan, said, packed, content = found
    assert [each["delivery"] for each in json.loads(plan)["deliveries"]] == ["stream", "bytes"]
    assert (packed, content) == ("stone", "STN1granite.")
    assert said == {
        "file": str(site.parent / "tablet"),
        "format": "stone",
        "size_bytes": 12,
        "evidence": "the mark STN1",
        "letters": 5,
    }


def test_damage_of_a_foreign_format_is_a_typed_error(site: Path) -> None:
    """Its name stands in the message; its library that is not there is told with the line that installs it."""
    (site.parent / "tablet").write_bytes(b"STN1gran")
    found = in_child(
        site,
        """
        from mlup_stream.extras import require
        said = []
        for act in (lambda: mlup.load(path), lambda: require("chisel.edge", "stone tablets")):
            try:
                act()
            except mlup.errors.MLupError as error:
                said.append([type(error).__name__, str(error)])
        answer(said)
        """,
    )
    (damaged, message), (missing, line) = found
    assert damaged == "CorruptModelError"
    assert "expected a whole stone file" in message
    assert missing == "MissingDependencyError"
    assert "chisel 3.0 or newer, which is not installed; run: pip install chisel-tools" in line


def test_a_broken_entry_point_is_named_and_skipped(site: Path) -> None:
    """One that cannot be imported, holds no row, takes a name of ours or one that is taken: each is named, and the rest works."""
    declare(site, "stone = quarry.rows:STONE\n" + BROKEN)
    warned, model, formats = in_child(
        site,
        """
        from mlup_stream.plugins import plugged_in
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = mlup.load(path)
        answer([[str(each.message) for each in caught], model, [row.name for row in plugged_in()]])
        """,
    )
    assert (model, formats) == ("granite", ["stone"])
    said = sorted(message.partition("the entry point quarry: ")[2].partition(" ")[0] for message in warned)
    assert said == ["absent", "no_row", "of_ours", "twice"]
    assert all("\n" not in message and "is left out (" in message for message in warned)


def test_a_detector_that_fails_is_named_and_skipped(site: Path) -> None:
    """The file is of the format that claims it, as if the detectors and the inspector that fail had not been there."""
    declare(site, "clay = quarry.rows:several\n")
    warned, said = in_child(
        site,
        """
        from mlup_stream.ml.inspection import inspect
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said = inspect(path)
        answer([[str(each.message) for each in caught], said])
        """,
    )
    assert len(warned) == 3
    reasons = [("stone:fails of", "no clay today"), ("stone:detect of", "TypeError"), ("stone:fails2 of", "no sand today")]
    for message, parts in zip(warned, reasons, strict=True):
        assert all(part in message for part in (*parts, "quarry: clay", "left out"))
    assert said["format"] == "sand"


def test_who_declares_nothing_pays_nothing(site: Path) -> None:
    """A file with a mark of ours asks for no entry point; without a declaration `importlib.metadata` is not imported at all."""
    (site / "quarry-1.0.dist-info" / "entry_points.txt").unlink()
    asked, imported = in_child(
        site,
        """
        import pickle
        from mlup_stream import plugins
        with open(path + ".pkl", "wb") as file:
            pickle.dump([1], file)
        mlup.load(path + ".pkl")
        asked = plugins.plugged_in.cache_info().misses
        try:
            mlup.load(path)
        except mlup.errors.FormatNotRecognizedError:
            pass
        answer([asked, "importlib.metadata" in sys.modules])
        """,
    )
    assert (asked, imported) == (0, False)
