"""Rates of each set by itself: of its documents, of its short prompts (which are in no other rate), and of its categories.

In: verdicts, and where each document is from. Out: `SetRate` records. One real row:
`{"source": "xstest", "form": "prompt", "set": "sensitive", "category": "", "documents": 250, "hits": 12, "judged": 249, "unjudged": 1, "value": 0.048, ...}`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from docward.evaluation.rates import Counts, document_share
from docward.evaluation.statistics import wilson
from docward.types import PROMPT, Document, Label, Reply, Verdict

HANDFUL = 5  # documents of a category; the interval of a rate on fewer spans half of all that there is
DOCUMENT = "document"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document is from: the set, and the category that the set puts it in."""

    source: str
    category: str


@dataclass(frozen=True, slots=True)
class SetRate:
    """The share of replies that decline, of one set and label, or of one category of these.

    `form` is `document` (over all tasks; the interval is that of a pooled rate) or `prompt` (one reply each; Wilson's interval). `value`, `low` and `high`
    are shares from 0 to 1, or None where nothing was judged.
    """

    source: str
    form: str
    set: Label
    category: str
    documents: int
    hits: int
    judged: int
    unjudged: int
    value: float | None
    low: float | None
    high: float | None


def places(texts: Iterable[Document | Reply]) -> dict[str, Place]:
    """Where documents, or those that replies are on, are from, by the document's id."""
    return {one.id if isinstance(one, Document) else one.document_id: Place(one.source, one.category) for one in texts}


def set_metrics(verdicts: Iterable[Verdict], where: Mapping[str, Place]) -> dict[str, list[dict[str, Any]]]:
    """What `metrics.json` says of single sets: `sets` of documents, `prompts`, and `categories` of both.

    A category is there where its set has others under the same label, and it a handful of documents.
    """
    cells: dict[tuple[str, str, Label, str], dict[str, Counts]] = defaultdict(lambda: defaultdict(Counts))
    for verdict in verdicts:
        place = where[verdict.document_id]
        form = PROMPT if verdict.task == PROMPT else DOCUMENT
        for category in dict.fromkeys(("", place.category)):
            cells[place.source, form, verdict.label, category][verdict.document_id].add(verdict)
    order = sorted(cells, key=lambda cell: list(Label).index(cell[2]))  # a set's documents keep their place among those of a label
    whole = [_rate(*cell, cells[cell]) for cell in order if not cell[3]]
    several = {cell[:3] for cell in cells if cell[3] and len(cells[cell]) < len(cells[*cell[:3], ""])}
    parts = [_rate(*cell, cells[cell]) for cell in order if cell[3] and cell[:3] in several and len(cells[cell]) >= HANDFUL]
    return {
        "sets": [asdict(one) for one in whole if one.form == DOCUMENT],
        "prompts": [asdict(one) for one in whole if one.form == PROMPT],
        "categories": [asdict(one) for one in parts],
    }


def _rate(source: str, form: str, label: Label, category: str, documents: Mapping[str, Counts]) -> SetRate:
    hits, judged, asked = (sum(getattr(one, name) for one in documents.values()) for name in ("hits", "judged", "all"))
    share = wilson(hits, judged) if form == PROMPT else document_share(documents)
    ends = (share.value, share.low, share.high) if share else (None, None, None)
    return SetRate(source, form, label, category, len(documents), hits, judged, asked - judged, *ends)
