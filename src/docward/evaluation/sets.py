"""Rates of each set by itself: of its documents, of its short prompts (which are in no other rate), and of its categories; and of documents by length.

In: verdicts, and where each document is from. Out: `SetRate` records. One real row:
`{"source": "xstest", "form": "prompt", "set": "sensitive", "category": "", "documents": 250, "hits": 12, "judged": 249, "unjudged": 1, "value": 0.048, ...}`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from docward.documents.duplicates import words_of
from docward.evaluation.rates import REFUSING, Counts, DocumentCounts
from docward.evaluation.statistics import pooled_share, wilson
from docward.keyed import KeyTable
from docward.types import PROMPT, Document, Label, Outcome, Reply, Verdict

HANDFUL = 5  # documents of a category; the interval of a rate on fewer spans half of all that there is
DOCUMENT = "document"
LENGTHS = {0: "under 100 words", 100: "100 to 199 words", 200: "200 to 399 words", 400: "400 to 799 words", 800: "800 words and more"}  # from so many words


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document is from: the set, and the category that the set puts it in; and its length, as one of LENGTHS."""

    source: str
    category: str
    length: str = ""


@dataclass(frozen=True, slots=True)
class SetRate:
    """The share of replies that decline, of one set and label, or of one category of these; of all sets (`source` is empty) where `category` is a length.

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


class Places:
    """Where documents, or those that replies are on, are from, by the document's id. 16 bytes a document are held, not the ids."""

    def __init__(self, texts: Iterable[Document | Reply]) -> None:
        """Look at each once; those of one document stand together, or cost as much again."""
        self._known: dict[Place, int] = {}
        self._numbers = KeyTable(self._numbered(texts), large=True)
        self._places = list(self._known)

    def _numbered(self, texts: Iterable[Document | Reply]) -> Iterator[tuple[str, int]]:
        last = None
        for one in texts:
            name = one.id if isinstance(one, Document) else one.document_id
            if name != last:
                yield name, self._known.setdefault(Place(one.source, one.category, _length(one)), len(self._known))
            last = name

    def __getitem__(self, document_id: str) -> Place:
        """Where a document is from.

        Raises:
            KeyError: it is not there.
        """
        number = self._numbers.get(document_id)
        if number is None:
            raise KeyError(document_id)
        return self._places[number]


def _length(one: Document | Reply) -> str:
    """The length of a document, or of what of it was handed over with a reply; short prompts have none. A Chinese or Japanese character is a word."""
    text, prompt = (one.text, one.is_prompt) if isinstance(one, Document) else (one.document, one.task == PROMPT)
    words = 0 if prompt else len(words_of(text))
    return "" if prompt else next(name for least, name in reversed(LENGTHS.items()) if words >= least)


class _Cell:
    """What the verdicts on some documents come to, as a whole and by document."""

    def __init__(self) -> None:
        self.whole, self.documents = Counts(), DocumentCounts(2)

    def add(self, verdict: Verdict) -> None:
        self.whole.add(verdict)
        self.documents.add(verdict.document_id, verdict.outcome in REFUSING, verdict.outcome != Outcome.UNJUDGED)


def set_metrics(verdicts: Iterable[Verdict], where: Places | Mapping[str, Place]) -> dict[str, list[dict[str, Any]]]:
    """What `metrics.json` says of single sets: `sets` of documents, `prompts`, and `categories` of both; and `lengths` of the documents of all sets.

    A category is there where its set has others under the same label, and it a handful of documents.
    """
    cells: dict[tuple[str, str, Label, str], _Cell] = defaultdict(_Cell)
    long: dict[tuple[Label, str], _Cell] = defaultdict(_Cell)
    place, last = Place("", ""), None
    for verdict in verdicts:
        if verdict.document_id != last:
            place, last = where[verdict.document_id], verdict.document_id
        form = PROMPT if verdict.task == PROMPT else DOCUMENT
        for category in dict.fromkeys(("", place.category)):
            cells[place.source, form, verdict.label, category].add(verdict)
        if form == DOCUMENT and place.length:
            long[verdict.label, place.length].add(verdict)
    order = sorted(cells, key=lambda cell: list(Label).index(cell[2]))  # a set's documents keep their place among those of a label
    found = [_rate(*cell, cells[cell]) for cell in order]
    sizes = {(one.source, one.form, one.set): one.documents for one in found if not one.category}
    parts = [one for one in found if one.category and HANDFUL <= one.documents < sizes[one.source, one.form, one.set]]
    return {
        "sets": [asdict(one) for one in found if not one.category and one.form == DOCUMENT],
        "prompts": [asdict(one) for one in found if not one.category and one.form == PROMPT],
        "categories": [asdict(one) for one in parts],
        "lengths": [asdict(_rate("", DOCUMENT, label, name, long[label, name])) for label in Label for name in LENGTHS.values() if (label, name) in long],
    }


def _rate(source: str, form: str, label: Label, category: str, cell: _Cell) -> SetRate:
    whole, rows = cell.whole, cell.documents.rows()
    share = wilson(whole.hits, whole.judged) if form == PROMPT else pooled_share(rows[rows[:, 1] > 0])
    ends = (share.value, share.low, share.high) if share else (None, None, None)
    return SetRate(source, form, label, category, len(rows), whole.hits, whole.judged, whole.all - whole.judged, *ends)
