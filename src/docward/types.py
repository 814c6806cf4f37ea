"""The records that flow between the stages, and nothing else.

    Document --(dataset)--> Example --(tuning)--> adapter --(evaluation)--> Reply --(judge)--> Verdict --(rates)--> Rate

Each record is one JSON object on disk; every field is a plain value. One real row:
`{"id": "fraud-01-m", "text": "...", "label": "malicious", "category": "fraud", "triple": "fraud-01"}` is a Document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

PROMPT = "prompt"  # the form of a short question that is no document, and what stands for a task in replies to it


class Label(StrEnum):
    """What a document is, and so what is wanted of the model: refusal for malicious, the task done for the others."""

    MALICIOUS = "malicious"
    SENSITIVE = "sensitive"
    ORDINARY = "ordinary"


class Want(StrEnum):
    """What an example teaches."""

    REFUSE = "refuse"
    COMPLY = "comply"


class Split(StrEnum):
    """Where a document goes. A pair or triple of matched documents is never divided."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Outcome(StrEnum):
    """What a reply did with the document. UNJUDGED is a value of its own and never folded into another."""

    REFUSED = "refused"
    PARTIAL = "partial"  # declines and does it anyway, or does part
    COMPLIED = "complied"
    UNJUDGED = "unjudged"  # empty reply, judge failed, answer off the menu


class Position(StrEnum):
    """Where the instruction stands, seen from the document."""

    AFTER = "after"
    BEFORE = "before"


@dataclass(frozen=True, slots=True)
class Document:
    """A text that someone hands to a model.

    `triple` is the id that its matched documents share; `cluster` that of documents which must not be divided by a split, where that is more
    than the triple (near copies). `form` is `prompt` for a short question that is no document: it is asked as it is, under no task. `gold` is what a right
    answer says, by task.
    """

    id: str
    text: str
    label: Label
    category: str = ""
    source: str = ""
    license: str = ""
    language: str = "en"
    form: str = ""
    triple: str = ""
    split: Split | None = None
    cluster: str = ""
    gold: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def matched(self) -> str:
        """The name that matched documents share: their triple, or a document's own id."""
        return self.triple or self.id

    @property
    def group(self) -> str:
        """The name of what a split never divides."""
        return self.cluster or self.matched

    @property
    def is_prompt(self) -> bool:
        """Whether this is a short question that is no document."""
        return self.form == PROMPT


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do with a document: `wordings` to train on, `unseen` ones kept for testing only.

    `translations` has both for other languages, by language code: a request is made in its document's language where there is one.
    """

    name: str
    wordings: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    translations: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict, hash=False)
    train: bool = True  # False: meant for testing only

    def asked(self, language: str, *, unseen: bool = False) -> tuple[str, ...]:
        """The wordings for a document in `language`: English ones where the task has no others."""
        seen_and_unseen = self.translations.get(language, (self.wordings, self.unseen))
        return seen_and_unseen[unseen]

    def seen_by(self, split: Split | None, language: str) -> range:
        """The numbers of the seen wordings for documents of a split: the last quarter, where that is one at least, is kept for validation.

        A dial that is set in the very words of training promises too little over-refusal (docs/lab-log.md).
        """
        count = len(self.asked(language))
        trained = count - count // 4
        if split == Split.TRAIN:
            return range(trained)
        return range(trained, count) if split == Split.VALIDATION and trained < count else range(count)


@dataclass(frozen=True, slots=True)
class Example:
    """A document under one task with the answer to learn. `document` is the text as the model sees it.

    `task` is `general` for an instruction without a document. `origin` tells where the response comes from:
    `refusal`, `gold` (the data set itself has the answer), `untuned` (the untuned model's own reply) or `teacher`.
    """

    id: str
    document_id: str
    task: str
    wording: int
    instruction: str
    document: str
    position: Position
    label: str  # a Label, or "general"
    want: Want
    response: str
    origin: str
    split: Split
    language: str = "en"  # of the document, and so of the request
    system: str = ""  # system prompt; empty: the chat template's own


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered. `key` is unique in its file: `<document_id>|<task>|<wording>`.

    `source` is the set that the document is of. A short question has the task `prompt` and no instruction: its text stands where documents do.
    """

    key: str
    document_id: str
    label: Label
    task: str
    wording: int
    instruction: str
    document: str
    reply: str
    category: str = ""
    dropped: int = 0  # document tokens cut to fit the model's context
    finished: bool = True  # False: the reply met the token limit, or was cut
    source: str = ""
    cut: bool = False  # it was stopped where its verdict was settled
    withheld: str = ""  # why a server gave none, and will give none: a filter of its own. Then `reply` is empty, and unjudged


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's word on one reply, and why."""

    key: str
    document_id: str
    label: Label
    task: str
    outcome: Outcome
    judge: str
    why: str

    @classmethod
    def on(cls, reply: Reply, outcome: Outcome, *, judge: str, why: str) -> Verdict:
        """A verdict on `reply`."""
        return cls(reply.key, reply.document_id, reply.label, reply.task, outcome, judge, why)


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of replies that refuse (refused or partial), with a 95% interval.

    `hits` of `judged` replies; `unjudged` ones are counted beside it and are in neither. `value`, `low` and `high` are
    shares from 0 to 1, or None where nothing was judged. `task` is `all` where tasks are pooled.
    """

    set: Label
    task: str
    hits: int
    judged: int
    unjudged: int
    value: float | None
    low: float | None
    high: float | None
