"""The README's table of ratios, from `ratios.jsonl` beside this file, where the scripts here `--record` their rows.

Run by `make ratios` after the benchmarks. A row is known by its work and its peer; the last record for a number of
threads counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = Path(__file__).with_name("ratios.jsonl")
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- ratios -->\n", "<!-- end of ratios -->"


def record(file: str, **row: Any) -> None:
    """Append a row; nowhere, if there is no file."""
    if file:
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each work and peer, in the order they were first recorded."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["work"], row["peer"]), {})[row["threads"]] = row
    lines = ["| work | against | one thread | two threads | aim |", "|---|---|---|---|---|"]
    for (work, peer), by_threads in found.items():
        cells = [f"{by_threads[n]['below']}{by_threads[n]['ratio']:.3g}" if n in by_threads else "" for n in (1, 2)]
        target = next(iter(by_threads.values()))["target"]
        lines.append(f"| {work} | {peer} | {cells[0]} | {cells[1]} | {target:g} |")
    return "\n".join(lines) + "\n"


def written(readme: str, rows: list[dict[str, Any]]) -> str:
    """The README with this table between its marks."""
    head, rest = readme.split(BEGIN)
    return head + BEGIN + table(rows) + END + rest.split(END)[1]


def recorded() -> list[dict[str, Any]]:
    """All rows on file."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8"), recorded()), encoding="utf-8")
