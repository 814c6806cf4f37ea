"""Rates corrected for the judge's errors, on request and beside the plain ones.

In: `<FILE>.validation.json`, which `docward judge FILE --validate` writes, and the metrics of an evaluation by the same judge. Out: what `metrics.json` holds
under `corrected`. One real row of its `rates`:
`{"set": "malicious", "task": "case", "judged": 80, "unjudged": 0, "value": 0.913, "low": 0.79, "high": 1.0}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from docward.errors import DocumentError
from docward.evaluation.statistics import Interval, Table, corrected_rate
from docward.records import write_json

PASSED_ON = ("set", "task", "judged", "unjudged")


@dataclass(frozen=True, slots=True)
class JudgeError:
    """How often a judge errs: its verdicts against labels, and where they are from."""

    judge: str
    table: Table
    source: str


def read_validation(path: Path, *, judge: str) -> JudgeError:
    """Read a validation file that rates by `judge` can be corrected with.

    Raises:
        DocumentError: the file is missing or no validation, is another judge's, or says nothing on declining or on complying replies, or shows a judge that
            is no better than chance, so that no correction is defined.
    """
    told = "Make one with: docward judge FILE --validate"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DocumentError(f"Cannot read the validation {path}: {error.strerror}. {told}") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise DocumentError(f"{path} is no validation of a judge (not JSON: {error}). {told}") from error
    counts = found.get("table") if isinstance(found, dict) else None
    names = list(asdict(Table()))
    if not isinstance(counts, dict) or not all(type(counts.get(name)) is int and counts[name] >= 0 for name in names) or "judge" not in found:
        raise DocumentError(f"{path} is no validation of a judge: it wants `judge`, and `table` with the counts {', '.join(names)}. {told}")
    if found["judge"] != judge:
        raise DocumentError(f"{path} validates the judge {found['judge']!r}, the verdicts are by {judge!r}. {told} --judge {judge}")
    table = Table(*(counts[name] for name in names))
    for many, kind in ((table.both + table.label_only, "declining (refused or partial)"), (table.neither + table.verdict_only, "complied")):
        if not many:
            raise DocumentError(f"{path} holds no judged reply labelled {kind}: how often the judge errs on those is not known. Label some of both.")
    if corrected_rate(Interval(0.5, 0.4, 0.6), table) is None:
        raise DocumentError(f"{path} shows a judge that is no better than chance on its labels: no correction is defined. Use another judge.")
    return JudgeError(judge, table, path.name)


def corrected(metrics: Mapping[str, Any], error: JudgeError) -> dict[str, Any]:
    """One model's rates, corrected (see `statistics.corrected_rate`). It holds as far as the judge errs on these replies as on the labelled ones."""
    table = error.table
    return {
        "judge": error.judge,
        "validation": error.source,
        "labels": table.n,
        "sensitivity": table.both / (table.both + table.label_only),
        "specificity": table.neither / (table.neither + table.verdict_only),
        "rates": [_corrected(rate, table) for rate in metrics["rates"]],
        "pooled": {name: _corrected(rate, table) for name, rate in metrics["pooled"].items()},
    }


def _corrected(rate: Mapping[str, Any], table: Table) -> dict[str, Any]:
    plain = None if rate["value"] is None else Interval(rate["value"], rate["low"], rate["high"])
    found = corrected_rate(plain, table) if plain else None
    ends = asdict(found) if found else dict.fromkeys(("value", "low", "high"))
    return {name: rate[name] for name in PASSED_ON} | ends


def correct_folder(folder: Path, metrics: dict[str, Any], error: JudgeError) -> dict[str, Any]:
    """Add `corrected` to the metrics of an evaluation and write its `metrics.json` anew; every other field stays as it is."""
    both = metrics | {"corrected": corrected(metrics, error)}
    write_json(folder / "metrics.json", both)
    return both
