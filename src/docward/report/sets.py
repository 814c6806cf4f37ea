"""Rates of single sets for the page: of documents set by set, of short prompts set by set, and of the categories of both; and of documents by length.

In: what `metrics.json` holds of each model under `sets`, `prompts`, `categories` and `lengths`, and the surface baseline's `sets`; older files have none.
Out: a table for each label. One real row: `{"source": "xstest", "category": "", "documents": 250, "cells": [{"hits": 12, "judged": 249, ...}, None]}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docward.errors import DocumentError, RunError
from docward.evaluation.sets import DOCUMENT, LENGTHS, SetRate
from docward.records import typed
from docward.report import values
from docward.report.figures import RATE_NAMES, SETS
from docward.types import PROMPT

PARTS = ("sets", "prompts", "categories", "lengths")
MOST = 40  # rows of a table: a file may name a source or a category for each of its rows

PROMPT_NAMES = {"malicious": "harmful prompts", "sensitive": "safe prompts", "ordinary": "ordinary prompts"}
"""By label, what short prompts are called."""

PROMPT_RATES = {"malicious": "Block rate", "sensitive": "False refusal", "ordinary": "False refusal"}
"""What the share refused is called among them."""

SURFACE = "surface"


def checked(metrics: Mapping[str, Any], where: str, remedy: str) -> dict[str, list[dict[str, Any]]]:
    """The rates of single sets as they stand in a model's metrics, as far as they are there.

    Raises:
        RunError: one of them is no such rate; the message names `where`, and says `remedy`.
    """
    found = {}
    for part in PARTS:
        rows = metrics.get(part, [])
        if not isinstance(rows, list):
            raise RunError(f"{where}: `{part}` must be a list. {remedy}")
        try:
            for number, row in enumerate(rows, 1):
                typed(SetRate, row, where=f"{where}, {part}, row {number}")
        except DocumentError as error:
            raise RunError(f"{error}. {remedy}") from error
        found[part] = rows
    return found


def documents(models: Mapping[str, Mapping[str, Any]], surface: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A table for each label with several sets, or one with categories; a column for each model and, last, one for the baseline."""
    tables = (_table(models, "sets", DOCUMENT, label, surface) | {"title": RATE_NAMES[label], "what": f"{label} documents"} for label in SETS)
    return [table for table in tables if table["count"] > 1 or table["categories"]]


def prompts(models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table for each label of short prompts; the baseline does not apply to them."""
    tables = (_table(models, "prompts", PROMPT, label) | {"title": PROMPT_RATES[label], "what": PROMPT_NAMES[label]} for label in SETS)
    return [table for table in tables if table["count"]]


def lengths(models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table for each label, the shortest documents first; none where all documents, of whatever label, are about as long."""
    order = list(LENGTHS.values())
    tables: list[dict[str, Any]] = []
    for label in SETS:
        rows = sorted(_rows(models, "lengths", DOCUMENT, label), key=lambda row: order.index(row["category"]) if row["category"] in order else len(order))
        about = {"set": label, "title": RATE_NAMES[label], "what": f"{label} documents", "columns": list(models), "categories": [], "more": 0}
        tables.append({**about, "better": _better(label), "rows": [{**row, "name": row["category"]} for row in rows]})
    several = len({row["category"] for table in tables for row in table["rows"]}) > 1  # malicious ones all short and ordinary ones all long are two
    return [table for table in tables if table["rows"]] if several else []


def _better(label: str) -> str:
    return "high" if label == "malicious" else "low"


def prompt_count(metrics: Mapping[str, Any]) -> int:
    """How many short prompts a model was asked."""
    return sum(row["documents"] for row in metrics.get("prompts", ()))


def _table(models: Mapping[str, Mapping[str, Any]], part: str, form: str, label: str, surface: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The sets of a label, the largest first, and their categories, which the baseline does not tell apart; what is over MOST is counted."""
    columns = {**models, SURFACE: surface} if surface else dict(models)
    rows = [row for row in _rows(columns, part, form, label) if any(row["cells"][: len(models)])]
    order = {row["source"]: place for place, row in enumerate(rows)}
    parts = sorted(_rows(models, "categories", form, label), key=lambda row: order.get(row["source"], len(order)))  # stable: the largest stays first
    about = {"set": label, "columns": list(columns), "better": _better(label), "count": len(rows)}
    more = {"more": max(0, len(rows) - MOST), "more_categories": max(0, len(parts) - MOST)}
    return {**about, **more, "rows": rows[:MOST], "categories": parts[:MOST]}


def _rows(columns: Mapping[str, Mapping[str, Any]], part: str, form: str, label: str) -> list[dict[str, Any]]:
    """A row for each set, or category of one, with a cell for each column, the largest first."""
    of_label = ([row for row in metrics.get(part, ()) if (row["form"], row["set"]) == (form, label)] for metrics in columns.values())
    cells = [{(row["source"], row["category"]): row for row in rows} for rows in of_label]
    places = dict.fromkeys(place for found in cells for place in found)
    rows = [_row(*place, [found.get(place) for found in cells]) for place in places]
    return sorted(rows, key=lambda row: -int(row["documents"]))


def _row(source: str, category: str, cells: list[dict[str, Any] | None]) -> dict[str, Any]:
    many = max(cell["documents"] for cell in cells if cell)
    return {"source": source, "name": values.shown(source) or "(no source given)", "category": values.shown(category), "documents": many, "cells": cells}
