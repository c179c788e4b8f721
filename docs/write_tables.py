"""Writes what the documents say of every format, from the rows of the registry, between the marks that they have for it.

    python docs/write_tables.py            # writes
    python docs/write_tables.py --check    # says which documents are stale, and exits with 1 if any is

A mark is a comment of its own line, `<!-- formats: written by docs/write_tables.py -->`, and ends at `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from mlup_stream.extras import LIBRARIES
from mlup_stream.formats.kinds import FormatSpec, function_at
from mlup_stream.registry import ROWS

_ROOT = Path(__file__).resolve().parent.parent
_DOCUMENTS = ("README.md", "docs/formats.md", "docs/security.md", "docs/api.md")
_BLOCK = re.compile(r"(<!-- (\w+): written by docs/write_tables\.py -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH = 150


def _formats() -> str:
    return _wrapped("Recognised by content, not by name: " + ", ".join(row.title for row in ROWS) + ".")


def _extras() -> str:
    extras = sorted({f"`{each.extra}`" for each in LIBRARIES.values()})
    told = "Without the extra that a file needs, the error has the line to paste."
    return _wrapped(f"The extras are {', '.join(extras)}, and `all`. {told}")


def _table() -> str:
    rows = [_cells(row) for row in ROWS]
    return _markdown(("format", "files", "`binarization_type`", "deliveries, best first", "extra", "libraries", "`pack`"), rows)


def _cells(row: FormatSpec) -> tuple[str, ...]:
    deliveries = [each.value for each in function_at(row.binarizers[0].at).deliveries]
    libraries = [f"{each.module} {'.'.join(map(str, each.minimum))}" for each in row.libraries]
    return (
        row.title,
        " ".join(f"`{suffix}`" for suffix in row.suffixes) or "a folder",
        ", ".join(f'`"{name}"`' for binarizer in row.binarizers for name in binarizer.names),
        ", ".join(deliveries),
        f"`{row.libraries[0].extra}`" if row.libraries else "none",
        ", ".join(libraries) or "none",
        "yes" if row.packer else f"no: {row.nothing_to_gain}",
    )


def _code() -> str:
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in ROWS:
        grouped.setdefault(row.runs_code, []).append(row.name)
    heads = ("format", "loading runs code that the file chooses", "why")
    return _markdown(heads, [(", ".join(names), *said) for said, names in grouped.items()])


def _options() -> str:
    rows = []
    for binarizer in (each for row in ROWS for each in row.binarizers):
        kind = function_at(binarizer.at)
        names = ", ".join(f"`{name}`" for name in sorted(getattr(kind, "option_names", ()))) or "none"
        rows.append((", ".join(f'`"{name}"`' for name in binarizer.names), kind.__name__, names))
    return _markdown(("`binarization_type`", "binarizer", "options"), rows)


_WRITERS: dict[str, Callable[[], str]] = {
    "formats": _formats,
    "extras": _extras,
    "table": _table,
    "code": _code,
    "options": _options,
}


def _markdown(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("| --- ", "|---").replace("|--- |", "|---|") for line in lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def written(text: str) -> str:
    """The document with what the registry says today."""
    return _BLOCK.sub(lambda found: found[1] + _WRITERS[found[2]]() + found[3], text)


def stale() -> list[str]:
    """The documents that say something else than the registry, or have no mark."""
    texts = {name: (_ROOT / name).read_text() for name in _DOCUMENTS}
    return [name for name, text in texts.items() if not _BLOCK.search(text) or written(text) != text]


def main() -> None:
    if "--check" in sys.argv[1:]:
        found = stale()
        sys.exit(f"stale: {', '.join(found)}; run: python docs/write_tables.py" if found else 0)
    for name in _DOCUMENTS:
        path = _ROOT / name
        path.write_text(written(path.read_text()))


if __name__ == "__main__":
    main()
