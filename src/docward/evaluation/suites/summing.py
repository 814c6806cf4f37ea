"""Verdicts of a suite become rows: a rate per level and set, and its difference to level 0 with a paired test.

In: the verdicts of each level. Out: `SuiteRate` records. One real row: `{"suite": "noise", "level": "OCR noise 5%", "amount": 0.05, "curve": "OCR noise",
"set": "malicious", "task": "all", "hits": 50, "judged": 90, "unjudged": 0, "value": 0.56, "low": 0.41, "high": 0.7, "documents": 18, "changed": 18,
"against_unchanged": {"set": "malicious", "documents": 18, "value": -0.2, "low": -0.31, "high": -0.09, "p": 0.004, "p_holm": 0.03, "decided": true,
"says": "fewer refusals"}}`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from docward.errors import DocumentError
from docward.evaluation.comparing import Difference, decided, difference
from docward.evaluation.rates import ALL, REFUSING, pooled
from docward.evaluation.suites.suite import UNCHANGED, Level
from docward.types import Label, Outcome, Verdict

SUITES_FILE = "suites.json"


@dataclass(frozen=True, slots=True)
class SuiteRate:
    """One rate of a suite: as `Rate`, with its level, of how many documents it is, how many the level changes, and its difference to level 0."""

    suite: str
    level: str
    amount: float | None
    curve: str
    set: Label
    task: str
    hits: int
    judged: int
    unjudged: int
    value: float | None
    low: float | None
    high: float | None
    documents: int
    changed: int
    against_unchanged: Difference | None


def suite_rates(suite: str, levels: Mapping[Level, Sequence[Verdict]], changed: Mapping[Level, frozenset[str]]) -> list[SuiteRate]:
    """One row per level and set, level 0 first.

    Args:
        suite: its name.
        levels: the verdicts of each level; level 0 must be there.
        changed: the ids of the documents that a level asks about in another way than level 0.
    """
    rows = []
    for level, verdicts in levels.items():
        for label, rate in pooled(verdicts).items():
            documents = {verdict.document_id for verdict in verdicts if verdict.label == label}
            measured = (rate.hits, rate.judged, rate.unjudged, rate.value, rate.low, rate.high)
            counts = (len(documents), len(documents & changed[level]))
            against = None if level == UNCHANGED else _difference(Label(label), _shares(verdicts, label), _shares(levels[UNCHANGED], label))
            rows.append(SuiteRate(suite, level.name, level.amount, level.curve, Label(label), ALL, *measured, *counts, against))
    return _corrected(rows)


def _shares(verdicts: Sequence[Verdict], label: str) -> dict[str, Fraction]:
    """The share refused of each document's judged replies."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for verdict in verdicts:
        if verdict.label == label and verdict.outcome != Outcome.UNJUDGED:
            counts[verdict.document_id][0] += verdict.outcome in REFUSING
            counts[verdict.document_id][1] += 1
    return {name: Fraction(refused, judged) for name, (refused, judged) in counts.items()}


def _difference(label: Label, there: Mapping[str, Fraction], unchanged: Mapping[str, Fraction]) -> Difference | None:
    """The mean over the documents that have a judged reply at both levels."""
    import numpy as np

    both = [(there[name], unchanged[name]) for name in there if name in unchanged]
    if not both:
        return None
    return difference(label, np.array([(float(one), float(other), 1.0) for one, other in both]), [one - other for one, other in both])


def _corrected(rows: Sequence[SuiteRate]) -> list[SuiteRate]:
    """Rows with Holm's correction over all differences of a suite."""
    found = iter(decided([row.against_unchanged for row in rows if row.against_unchanged]))
    return [replace(row, against_unchanged=next(found)) if row.against_unchanged else row for row in rows]


def read_suites(path: Path) -> list[dict[str, Any]]:
    """The suites in a `suites.json`; none where there is no such file.

    Raises:
        DocumentError: it is broken.
    """
    try:
        found = json.loads(path.read_bytes())["suites"] if path.is_file() else []
        return [one for one in found if isinstance(one["name"], str)]
    except (ValueError, KeyError, TypeError) as error:
        raise DocumentError(f"{path} is broken ({error}). Delete it and run the same command again; replies are kept.") from error
