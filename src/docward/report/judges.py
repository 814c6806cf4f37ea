"""Judges side by side, for the page: who gave the verdicts of an evaluation, what other judges said of the same replies, and how far they agree.

In: the folder of an evaluation: `verdicts.jsonl`, and beside it what `docward judge replies.jsonl --judge A --judge B` wrote. Rows are read one by one: 9 bytes
of each are held for each judge. Out: plain values. One real row: `("rules", {"malicious": {"hits": 19, "judged": 20, "value": 0.95, ...}, ...})`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from docward.evaluation.judging import Row
from docward.evaluation.rates import REFUSING, Sums
from docward.evaluation.statistics import Table, kappa, wilson
from docward.keyed import KeyTable
from docward.report import values
from docward.report.samples import records
from docward.types import Label, Outcome, Verdict

OWN = "verdicts.jsonl"
LABELS, OUTCOMES = list(Label), list(Outcome)
MOST = 8  # judges that are shown


@dataclass(frozen=True, slots=True)
class Source:
    """A file of verdicts on the replies of an evaluation; its judge's name, or the names of those who gave some each."""

    path: Path
    kind: type[Verdict] | type[Row]
    judges: Counter[str]

    @property
    def name(self) -> str:
        """How the page calls it."""
        return ", ".join(values.shown(one, 80) for one, _ in self.judges.most_common(3))


def view(folder: Path) -> dict[str, Any]:
    """Several judges on the replies of one evaluation: `mixed` counts who gave its own verdicts, `rates` and `pairs` compare; empty where there is one judge.

    Raises:
        RunError: a file is broken.
    """
    sources = _sources(folder)
    own = sources[0].judges if sources else Counter[str]()
    mixed = [(values.shown(name, 80), many) for name, many in own.most_common(MOST)] if len(own) > 1 else []
    if len(sources) < 2:
        return {"mixed": mixed, "rates": [], "pairs": []} if mixed else {}
    labels = KeyTable((verdict.key, LABELS.index(verdict.label)) for verdict in records(folder / OWN, Verdict))
    said = [(source, KeyTable((row.key, OUTCOMES.index(row.outcome)) for row in records(source.path, source.kind))) for source in sources]
    rates = [(source.name, {label: asdict(rate) for label, rate in Sums(_labelled(source, labels)).pooled().items()}) for source in sources]
    pairs = [_pair(first, second, labels) for first, second in combinations(said, 2)]
    return {"mixed": mixed, "rates": rates, "pairs": pairs}


def _sources(folder: Path) -> list[Source]:
    """The evaluation's own verdicts first, where there are any; then the files of other judges."""
    if not (folder / OWN).is_file():
        return []
    others = sorted(folder.glob("replies.jsonl.*verdicts.jsonl"))[: MOST - 1]
    paths: list[tuple[Path, type[Verdict] | type[Row]]] = [(folder / OWN, Verdict), *((path, Row) for path in others)]
    return [Source(path, kind, Counter(row.judge for row in records(path, kind))) for path, kind in paths]


def _labelled(source: Source, labels: KeyTable) -> Iterator[Verdict]:
    """Verdicts with the set that their document is in, which a judge of a file does not know."""
    for row in records(source.path, source.kind):
        if (label := labels.get(row.key)) is not None:
            yield Verdict(row.key, row.document_id, LABELS[label], row.task, row.outcome, row.judge, "")


def _pair(first: tuple[Source, KeyTable], second: tuple[Source, KeyTable], labels: KeyTable) -> dict[str, Any]:
    """Declined or complied, on the replies that both judged."""
    counts: Counter[tuple[bool, bool]] = Counter()
    for row in records(first[0].path, first[0].kind):
        other = second[1].get(row.key)
        if row.key in labels and other is not None and Outcome.UNJUDGED not in (row.outcome, OUTCOMES[other]):
            counts[row.outcome in REFUSING, OUTCOMES[other] in REFUSING] += 1
    table = Table(counts[True, True], counts[True, False], counts[False, True], counts[False, False])
    same, found = wilson(table.both + table.neither, table.n), kappa(table)
    return {"first": first[0].name, "second": second[0].name, "both": table.n, "same": same and asdict(same), "kappa": found and asdict(found)}
