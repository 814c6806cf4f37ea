"""`docward gate`: a folder and thresholds in; a table, files for CI and an exit code out."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from docward.cli.showing import console
from docward.evaluation.gate import Held, hold, junit, markdown, read_metrics
from docward.records import write_text
from docward.types import Label

STYLES = {True: "green", False: "red", None: "dim"}


def run_gate(run: Path, thresholds: dict[Label, float], *, max_unjudged: float, model: str | None, junit_file: Path | None, markdown_file: Path | None) -> bool:
    """Hold the thresholds, print and write what was found; True where all are met."""
    name, metrics = read_metrics(run, model)
    held = hold(metrics, thresholds, max_unjudged=max_unjudged)
    if junit_file:
        write_text(junit_file, junit(held, name))
    if markdown_file:
        write_text(markdown_file, markdown(held, name))
    out = console()
    out.print(_table(held, name))
    for one in held:
        out.print(Text(f"{one.measure}: {one.result}: {one.says}."), soft_wrap=True)
    return all(one.passed is not False for one in held)


def _table(held: list[Held], model: str) -> Table:
    table = Table(title=Text(f"Gate, {model}"), title_justify="left")
    for name in ("measure", "documents", "found (95% interval)", "wanted", "result"):
        table.add_column(name)
    for one in held:
        table.add_row(one.measure, str(one.set), one.found, one.wanted, Text(one.result, style=STYLES[one.passed]))
    return table
