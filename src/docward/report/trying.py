"""Attempts at the task for the page: read with care from metrics, which may be older than they are.

In: what `metrics.json` holds of each model. Out: cells by set and task. One real row, of one model:
`("ordinary", "translate", [{"complied": 18, "attempted": 11, "value": 0.61, "low": 0.39, "high": 0.8, "reasons": {"wrong language": 7}}])`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docward.report import values
from docward.report.figures import SETS

Cell = dict[str, Any]


def tried(metrics: Mapping[str, Any]) -> dict[tuple[str, str], Cell]:
    """What is known of attempts, by set and task; nothing where a file has none."""
    found = metrics.get("attempts")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return {
        (str(row.get("set")), str(row.get("task"))): {
            **{name: values.count(row.get(name)) for name in ("complied", "attempted")},
            **{name: values.share(row.get(name)) for name in ("value", "low", "high")},
            "reasons": {values.shown(why): many for why, many in values.counts(row.get("reasons")).items()},
        }
        for row in rows
    }


def idle(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[Cell | None]]]:
    """Set, task and a cell a model, where some complied reply of some model is no attempt; a set's tasks together stand last."""
    known = [tried(metrics) for metrics in models.values()]
    places = list(dict.fromkeys(place for found in known for place in found))
    rows = []
    for label in SETS:
        for place in sorted((one for one in places if one[0] == label), key=lambda one: one[1] == "all"):
            cells = [found.get(place) for found in known]
            if any(cell and cell["attempted"] < cell["complied"] for cell in cells):
                rows.append((*place, cells))
    return rows
