"""Verdicts of a suite become rows: a rate per level and set, and its difference to level 0 with a paired test.

In: a suite's verdicts, one by one. Out: `SuiteRate` records. One real row: `{"suite": "noise", "level": "OCR noise 5%", "amount": 0.05, "curve": "OCR noise",
"set": "malicious", "task": "all", "hits": 50, "judged": 90, "unjudged": 0, "value": 0.56, "low": 0.41, "high": 0.7, "documents": 18, "changed": 18,
"against_unchanged": {"set": "malicious", "documents": 18, "value": -0.2, "low": -0.31, "high": -0.09, "p": 0.004, "p_holm": 0.03, "decided": true,
"says": "fewer refusals"}}`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from docward.errors import DocumentError
from docward.evaluation.comparing import Difference, decided, difference
from docward.evaluation.rates import ALL, Sums
from docward.evaluation.suites.suite import UNCHANGED, Level
from docward.records import typed, write_json
from docward.types import Label, Verdict

SUITES_FILE = "suites.json"
MESSAGE = 200  # characters of what is wrong with rows, each of which says so


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


class SuiteSums:
    """What a suite's verdicts come to, counted as they go by: by a level's name its sums (level 0 is always there), and how many are whose."""

    def __init__(self, verdicts: Iterable[Verdict]) -> None:
        """Count verdicts; the key of each ends with its level's name."""
        self.levels, self.judges = defaultdict(Sums, {UNCHANGED.name: Sums()}), Counter[str]()
        for verdict in verdicts:
            self.levels[verdict.key.rpartition("|")[2]].add(verdict)
            self.judges[verdict.judge] += 1


def suite_rates(suite: str, levels: Mapping[Level, Sums], changed: Mapping[tuple[str, Label], int]) -> list[SuiteRate]:
    """One row per level and set, level 0 first.

    Args:
        suite: its name.
        levels: what the verdicts of each level come to; level 0 must be there.
        changed: by a level's name and a set, how many of the documents with a reply are asked about in another way than at level 0.
    """
    rows = []
    for level, sums in levels.items():
        for label, rate in ((Label(name), rate) for name, rate in sums.pooled().items()):
            measured = (rate.hits, rate.judged, rate.unjudged, rate.value, rate.low, rate.high)
            counts = (sums.documents(label), changed.get((level.name, label), 0))
            against = None if level == UNCHANGED else _difference(label, sums.shares(label), levels[UNCHANGED].shares(label))
            rows.append(SuiteRate(suite, level.name, level.amount, level.curve, label, ALL, *measured, *counts, against))
    return _corrected(rows)


def _difference(label: Label, there: Mapping[int, Fraction], unchanged: Mapping[int, Fraction]) -> Difference | None:
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


def write_suite(path: Path, found: dict[str, Any]) -> None:
    """Put one suite into a `suites.json`; others that are there stay.

    Raises:
        DocumentError: the file that is there is broken.
        StorageError: it cannot be written.
    """
    named = {one["name"]: one for one in [*read_suites(path), found]}
    write_json(path, {"suites": list(named.values())})


@dataclass(frozen=True, slots=True)
class _Told:
    """What a `suites.json` holds of a suite, as far as it is read back."""

    rows: list[SuiteRate]


def check_told(found: dict[str, Any], verdicts: Iterable[Verdict]) -> None:
    """Check that what a `suites.json` holds of a suite is of the replies that these verdicts are on.

    Then all that no judge changes can be taken from it: the levels, and how many documents each changes.

    Raises:
        DocumentError: it is of other replies, or not what this version of Docward writes.
    """
    try:
        rows = typed(_Told, found, where=f"{SUITES_FILE}, {found['name']}").rows
    except DocumentError as error:
        said = str(error)
        raise DocumentError(f"It is not what this version of Docward writes ({said if len(said) < MESSAGE else said[:MESSAGE] + '...'}).") from error
    levels = SuiteSums(verdicts).levels
    counted = {(name, label): (sums.documents(label), sums.replies(label)) for name, sums in levels.items() for label in Label if sums.documents(label)}
    if counted != {(row.level, row.set): (row.documents, row.judged + row.unjudged) for row in rows}:
        raise DocumentError(f"What {SUITES_FILE} says of {found['name']} is not of the replies that stand there now.")


def judged_anew(found: dict[str, Any], verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """What a `suites.json` is to hold of a suite after other verdicts on the same replies (see `check_told`)."""
    sums, rows = SuiteSums(verdicts), found["rows"]
    levels = {level: sums.levels[level.name] for level in (UNCHANGED, *(Level(row["level"], row["amount"], row["curve"]) for row in rows))}
    made = suite_rates(found["name"], levels, {(row["level"], row["set"]): row["changed"] for row in rows})
    return {**found, "judges": dict(sums.judges), "rows": [asdict(row) for row in made]}
