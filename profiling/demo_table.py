"""The demo's table, for a terminal."""

from __future__ import annotations

from typing import Any

from demo_loads import LIBRARY
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlup_stream.constants import Delivery
from mlup_stream.units import format_bytes

__all__ = ["print_results"]

_HEADINGS = ("peak\nRSS", "\nanon", "settled\nRSS", "\nanon", "in use\nRSS", "\nanon", "\nseconds", "differs\nby")
_FIGURES = ("settled_rss", "settled_anon", "use_rss", "use_anon")

_PIPED_WIDTH = 120  # a file has no width; without one rich assumes 80

_LEGEND = (
    "Ratios to the file's size, above what the imports take.",
    "RSS is all memory of the process; anon the part that nobody can take back (its peak is the highest of samples from",
    "outside, every 2 ms). The rest are pages of the file: the kernel drops them when memory is needed, processes share them.",
    "peak: of the load. settled: after it. in use: peak of a first prediction, of 100 images. seconds: of the load, without",
    "imports, the file cached.",
    "differs by: the largest difference of a probability from what the trained model said.",
)


def print_results(results: list[dict[str, Any]], *, agree: bool, seconds: float, folder: str | None) -> None:
    """Prints one table of every model and load, what its words mean, and whether all answers agree.

    Args:
        results: A dictionary per model, as `demo` makes them.
        agree: Whether all do.
        seconds: How long the whole demo took.
        folder: Where the models were left; None when they are gone.
    """
    table = Table(
        title="Each load in a fresh process", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("\nmodel, delivery", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for result in results:
        table.add_section()
        table.add_row(Text(f"{result['file']}, {format_bytes(result['size_bytes'])}", style="bold"))
        for load in result["loads"]:
            table.add_row(*_cells(load, result["size_bytes"]), style="dim" if load["way"] == LIBRARY else None)
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table)
    for result in results:
        trained = f"trained in {result['training_seconds']:.0f} s, {result['accuracy']:.0%} of 100 unseen digits right"
        console.print(f"{result['file']}: {result['model']}; {trained}", highlight=False)
        for load in result["loads"]:
            if load["way"] == Delivery.AUTO.value and load.get("reason"):
                console.print(f"  auto chose {load['delivery']}: {load['reason']}", highlight=False)
        failures: dict[str, list[str]] = {}
        for load in result["loads"]:
            if "failure" in load:
                failures.setdefault(load["failure"], []).append(load["label"])
        for failure, labels in failures.items():
            console.print(f"  {', '.join(labels)}: {failure}", style="red", highlight=False, markup=False)
    for line in _LEGEND:
        console.print(line, highlight=False, style="dim")
    if not all(load.get("peak_exact", True) for result in results for load in result["loads"]):
        console.print("*: at least; this system keeps no mark of the peak that could be set back.", style="dim", highlight=False)
    if any(load.get("peak_anon", 0) is None for result in results for load in result["loads"]):
        console.print("?: this system does not tell anonymous memory from the rest.", style="dim", highlight=False)
    if folder is not None:
        console.print(f"The models are in {folder}.", highlight=False)
    verdict = "all predictions agree with the trained models'" if agree else "NOT ALL PREDICTIONS AGREE"
    console.print(f"{verdict} ({seconds:.0f} s)", style="green" if agree else "bold red", highlight=False)


def _cells(load: dict[str, Any], size_bytes: int) -> list[str]:
    label = f"auto: {load['delivery']}" if load["way"] == Delivery.AUTO.value and "delivery" in load else load["label"]
    if "failure" in load:
        return [label, "failed"]

    def ratio(name: str) -> str:
        return "?" if load[name] is None else f"{max(0, load[name]) / size_bytes:.2f}"

    difference = f"{load['difference']:.0e}" if load["difference"] else "0"
    return [
        label,
        ratio("peak_rss") + ("" if load["peak_exact"] else "*"),
        ratio("peak_anon"),
        *(ratio(name) for name in _FIGURES),
        f"{load['seconds']:.2f}",
        difference if load["agrees"] else f"{difference} WRONG",
    ]
