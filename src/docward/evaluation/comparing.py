"""Two models' verdicts on the same prompts become paired tests, and rates become advice on how many documents a question takes.

In: `Verdict` records of two models, one after another. Out: `Paired` records, one a set and task, and `Difference` records, one a set. One real row:
`{"set": "malicious", "documents": 18, "value": 0.12, "low": 0.03, "high": 0.25, "p": 0.06, "p_holm": 0.19, "decided": false, "says": "undecided"}`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from docward.evaluation import sizes
from docward.evaluation.rates import REFUSING, DocumentCounts, Sums
from docward.evaluation.statistics import ALPHA, Interval, holm, mcnemar, paired_difference, sign_flips
from docward.keyed import KeyTable
from docward.types import PROMPT, Label, Outcome, Verdict

if TYPE_CHECKING:
    import numpy as np

UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same prompts of one cell.

    `only_first` of `pairs` are refused by the first model alone, `only_second` by the second alone. `p` is the exact McNemar test, `p_holm` the same
    after Holm's correction over all cells. A cell is decided where p_holm < 0.05, and `says` puts it in words (the first model seen from the second).
    """

    set: Label
    task: str
    pairs: int
    only_first: int
    only_second: int
    difference: float
    p: float
    p_holm: float
    decided: bool
    says: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The share refused of the same documents of a set in two ways (by two models, changed and unchanged): the first minus the second.

    `low` and `high` are a 95% interval by a bootstrap over documents. `p` is of sign flips over documents, so that the tasks of one stay together; `p_holm`
    the same after Holm's correction over all that were compared with it; decided where p_holm < 0.05, and `says` puts it in words.
    """

    set: Label
    documents: int
    value: float
    low: float
    high: float
    p: float
    p_holm: float = 1.0
    decided: bool = False
    says: str = UNDECIDED


@dataclass(slots=True)
class _Cell:
    pairs: int = 0
    only_first: int = 0
    only_second: int = 0


class Pairs:
    """Two models on the requests about documents that both have a judged reply to.

    Held are 9 bytes a verdict of the second, and counts of each cell and document.
    """

    def __init__(self, first: Iterable[Verdict], second: Iterable[Verdict]) -> None:
        """Count verdicts as they go by; the second's are gone through before the first's."""
        theirs = KeyTable((verdict.key, verdict.outcome in REFUSING) for verdict in second if verdict.outcome != Outcome.UNJUDGED)
        self._cells: dict[tuple[Label, str], _Cell] = defaultdict(_Cell)
        self._documents: dict[Label, DocumentCounts] = defaultdict(lambda: DocumentCounts(3))
        for verdict in first if len(theirs) else ():
            if verdict.task != PROMPT and verdict.outcome != Outcome.UNJUDGED and (other := theirs.get(verdict.key)) is not None:
                refused, cell = verdict.outcome in REFUSING, self._cells[verdict.label, verdict.task]
                cell.pairs += 1
                cell.only_first += refused and not other
                cell.only_second += bool(other) and not refused
                self._documents[verdict.label].add(verdict.document_id, refused, other, 1)

    def paired(self) -> list[Paired]:
        """The exact McNemar test per set and task, Holm-corrected over all of them."""
        p_values = [mcnemar(cell.only_first, cell.only_second) for cell in self._cells.values()]
        made = []
        for ((label, task), cell), p, adjusted in zip(self._cells.items(), p_values, holm(p_values), strict=True):
            more = cell.only_first - cell.only_second
            counts = (cell.pairs, cell.only_first, cell.only_second, more / cell.pairs)
            made.append(Paired(label, task, *counts, p, adjusted, adjusted < ALPHA, _says(more, adjusted)))
        return made

    def differences(self, *, seed: int = 0) -> list[Difference]:
        """One difference per set over all tasks, Holm-corrected over the sets."""
        found = []
        for label in Label:
            if label in self._documents:
                rows = self._documents[label].rows()
                found.append(difference(label, rows, (rows[:, 0] - rows[:, 1]).astype(int).tolist(), seed=seed))
        return decided(found)

    def discordant(self, label: Label) -> float | None:
        """The share of a set's prompts on which the models differ; None where they share none."""
        cells = [cell for (found, _), cell in self._cells.items() if found == label]
        differ = sum(cell.only_first + cell.only_second for cell in cells)
        return differ / sum(cell.pairs for cell in cells) if cells else None


def difference(label: Label, rows: np.ndarray, steps: Iterable[Fraction | int], *, seed: int = 0) -> Difference:
    """A difference that is not yet decided.

    Args:
        label: the set.
        rows: (documents, 3), at least one document; see `statistics.paired_difference`.
        steps: the difference of each document, whose sign is flipped.
        seed: of bootstrap and flips.
    """
    apart = paired_difference(rows, seed=seed)
    assert apart is not None, "a set is there because a document of it is"
    return Difference(label, len(rows), apart.value, apart.low, apart.high, sign_flips(steps, seed=seed))


def decided(found: Sequence[Difference]) -> list[Difference]:
    """Differences with Holm's correction over all of them, and what they then say."""
    adjusted = holm([one.p for one in found])
    return [replace(one, p_holm=p, decided=p < ALPHA, says=_says(one.value, p)) for one, p in zip(found, adjusted, strict=True)]


def _says(more: float, p: float) -> str:
    if p >= ALPHA:
        return UNDECIDED
    return "more refusals" if more > 0 else "fewer refusals"


def advice(sums: Sums, pairs: Pairs) -> dict[str, str]:
    """A sentence per set on what its documents can and cannot tell; the pairs, where there are any, tell on how many documents models differ."""
    found = {}
    for label, rate in sums.pooled().items():
        if rate.value is None or rate.low is None or rate.high is None:
            found[label] = "No reply was judged, so nothing can be told."
            continue
        documents, discordant = sums.documents(Label(label), judged=True), pairs.discordant(Label(label))
        found[label] = sizes.advice(Interval(rate.value, rate.low, rate.high), documents, discordant=discordant)
    return found
