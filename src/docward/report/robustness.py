"""The robustness part of the report: what suites.json holds, level by level.

In: the folder of an evaluation. Out: what the page shows: suites, each with its judges and levels, their rates by set and what the paired tests against the
unchanged documents say. One real level: `{"name": "OCR noise 5%", "curve": "OCR noise", "rates": {"malicious": {...}, ...},
"differences": {"malicious": "−20.0 points (−31.1 to −8.9): fewer refusals", ...}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from docward.errors import DocumentError, RunError
from docward.evaluation.suites.summing import SUITES_FILE, SuiteRate, read_suites
from docward.records import typed
from docward.report import deciding, values
from docward.report.figures import RATE_NAMES, SETS

WIDE = 8  # levels; a figure of more takes a row of its own


def view(folder: Path) -> list[dict[str, Any]]:
    """The suites of an evaluation; empty where none was run.

    Raises:
        RunError: suites.json is broken.
    """
    path = folder / SUITES_FILE
    try:
        return [_suite(one, path) for one in read_suites(path)]
    except (DocumentError, KeyError, TypeError) as error:
        raise RunError(f"{path} is broken ({error}). Make it again: docward evaluate --suite NAME --output-dir {folder}.") from error


def _suite(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    rows = [asdict(typed(SuiteRate, row, where=f"{path}, {found['name']}, row {number}")) for number, row in enumerate(found["rows"], 1)]
    levels = []
    for name in dict.fromkeys(row["level"] for row in rows):
        there = [row for row in rows if row["level"] == name]
        rates = {label: next((row for row in there if row["set"] == label), None) for label in SETS}
        levels.append({"name": name, "curve": there[0]["curve"], "rates": rates, "differences": {label: _difference(rate) for label, rate in rates.items()}})
    told = {name: str(found[name]) for name in ("name", "what", "axis")}
    left_out = [str(name) for name in found["left_out"]]
    lacks = {"missing": deciding.missing(found), "withheld": deciding.withheld(found)}
    judges = [(values.shown(name, 80), many) for name, many in values.counts(found.get("judges")).items()]  # none in a file of before
    return {**told, **lacks, "judges": judges, "left_out": left_out, "levels": levels, "wide": len(levels) > WIDE, "decided": _decided(levels)}


def _difference(rate: Mapping[str, Any] | None) -> str:
    test = rate and rate["against_unchanged"]
    if not test:
        return ""
    value, low, high = (values.points(test[name]) for name in ("value", "low", "high"))
    return f"{value} points ({low} to {high}): {test['says']}"


def _decided(levels: list[dict[str, Any]]) -> list[str]:
    """What is decided, a phrase for each set: the levels and their differences in points."""
    found = []
    for label in SETS:
        tests = [(level["name"], rate["against_unchanged"]) for level in levels if (rate := level["rates"][label])]
        if said := [f"{name} {values.points(test['value'])}" for name, test in tests if test and test["decided"]]:
            found.append(f"{RATE_NAMES[label].lower()}: {', '.join(said)}")
    return found
