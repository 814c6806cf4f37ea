"""What a suite is: one way to change what is asked, at several levels, and what a change may use.

In: `Asked`, one request before it is rendered. Out: the same request, changed in one way. One real row:
`Asked(document, task, text="Dear all, ...", wording=0, instruction="Summarize this document in a few sentences.")`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docward.records import text_hash
from docward.types import Document, Position, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TOKENS = "the model's own tokens, by --tokenizer"
OPENING = "words in the model's mouth"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `text` is what is handed over of `document`; `opening` are first words that are put in the model's mouth.

    `steps` of harmless tuning has the model that is asked had.
    """

    document: Document
    task: Task
    text: str
    wording: int
    instruction: str
    position: Position = Position.AFTER
    opening: str = ""
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """One strength or kind of a change.

    `amount` is its number where it has one: a rate or share from 0 to 1, or tokens. Levels of one `curve` differ in nothing but that number. `tokens` is how
    long a document it makes at most: a model whose context has no room for it is not asked.
    """

    name: str
    amount: float | None = None
    curve: str = ""
    tokens: int = 0


UNCHANGED = Level("unchanged")
"""Level 0 of every suite: the request as the evaluation asks it."""


@dataclass(frozen=True, eq=False, slots=True)
class Kit:
    """What a change may use besides the request itself; with the same kit it gives the same, in whatever order requests come.

    `tokenizer` is the model's own, None where a server alone has it. `ordinary` are the documents that text to surround another is taken from. `room` is the
    longest document that fits, in tokens.
    """

    tokenizer: PreTrainedTokenizerBase | None
    ordinary: tuple[Document, ...]
    room: int
    seed: int = 0

    def random(self, *names: str) -> random.Random:
        """Randomness of its own for whatever is named: a suite, a level, a document."""
        return random.Random(text_hash(str(self.seed), *names))

    def ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters."""
        assert self.tokenizer, TOKENS
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [end for _, end in encoded["offset_mapping"]]

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        assert self.tokenizer, TOKENS
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


Change = Callable[[Asked, Level, Kit], Asked]


@dataclass(frozen=True, slots=True)
class Suite:
    """One axis of robustness: its levels without level 0, and how a request is changed at one of them. `axis` says what its levels are.

    `wants` says what a model that is loaded here gives and a server alone does not; empty: it wants nothing of the kind.
    """

    name: str
    what: str
    axis: str
    levels: tuple[Level, ...]
    change: Change
    wants: str = ""

    def fitting(self, room: int) -> tuple[Level, ...]:
        """Level 0 and the levels that fit in `room` tokens."""
        return (UNCHANGED, *(level for level in self.levels if level.tokens <= room))

    def at(self, asked: Asked, level: Level, kit: Kit) -> Asked:
        """The request at a level."""
        return asked if level == UNCHANGED else self.change(asked, level, kit)


def by_language(phrases: Mapping[str, str], language: str) -> str:
    """The phrase in a document's language, in English where there is none."""
    return phrases.get(language, phrases["en"])


def percents(shares: Sequence[float], curve: str) -> tuple[Level, ...]:
    """Levels named by their share, such as `OCR noise 5%`."""
    return tuple(Level(f"{curve} {100 * share:g}%", share, curve) for share in shares)
