"""Suites that surround a document with ordinary ones: dilution (what share of the whole it is, and where it stands) and length (how long the whole is).

In: a request, a level, ordinary documents and the model's own tokenizer. Out: the request with a longer (or cut) text. Matched documents get the same
surroundings, so that a malicious one differs from its twins as before. One real level: at `middle 10%` a passage of 130 tokens stands in the middle of 1,300.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, cycle

from docward.errors import RecipeError
from docward.evaluation.suites.suite import TOKENS, Asked, Kit, Level, Suite
from docward.records import text_hash
from docward.tasks import document_for

PASSAGE = 150
"""Tokens of a passage at most: at 2% it then stands in 7,500 tokens, which a model with a context of 8,192 can read."""

SHARES = (0.5, 0.25, 0.1, 0.05, 0.02)
PLACES = ("start", "middle", "end")
LENGTHS = (100, 250, 500, 1000, 2000, 4000, 8000)
WHOLE = "passage alone"
SNAP = 0.01  # a cut goes back to the end of a word where that costs at most this share of the tokens
NEAR = 0.005  # of the tokens may be lacking, and none may be over: a level that just fits a model's context is not cut
TRIES = 4  # joining texts changes how their edges are tokenised, by a token or so each; so often the length is put right where it is not near
SENTENCE_END = re.compile(r"[.!?…][\"'”’»)]*(?=\s|$)|[。！？][”’」』]*|\n")
BLANK = "\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """A text with the place where each of its tokens ends, in characters."""

    text: str
    ends: list[int]

    def first(self, many: int) -> str:
        """Its first `many` tokens, less up to 1% where that ends it with a whole word."""
        if many >= len(self.ends):
            return self.text
        if many < 1:
            return ""
        end, back = self.ends[many - 1], self.ends[max(0, many - 1 - int(SNAP * many))]
        word = max(self.text.rfind(blank, back, end + 1) for blank in " \n")
        return self.text[: word if word > 0 else end].rstrip()


def passage_of(text: str, kit: Kit, most: int = PASSAGE) -> str:
    """The first whole sentences of a text that have at most `most` tokens together; of one long sentence, its beginning."""
    ends = kit.ends(text)
    if len(ends) <= most:
        return text
    cut = text[: ends[most - 1]]
    sentence = max((one.end() for one in SENTENCE_END.finditer(text, 0, len(cut))), default=0)
    return (cut[:sentence] or cut[: cut.rfind(" ") + 1] or cut).rstrip()


@lru_cache(maxsize=512)  # ordinary documents come again and again
def _piece(text: str, kit: Kit) -> Piece:
    return Piece(text, kit.ends(text))


@dataclass(frozen=True, slots=True)
class Around:
    """Ordinary text to put around the documents that share `matched`: whose, in what language, in small letters or not.

    It is in the document's language as long as there is any, and none of it is matched with the document. Its order is a hash's and the same for all
    levels: a shorter text is the beginning of a longer one.
    """

    matched: str
    language: str
    lower: bool

    def cut(self, before: int, after: int, kit: Kit) -> tuple[str, str]:
        """About `before` tokens, and about `after` tokens that go on from there.

        Raises:
            RecipeError: there is no ordinary document.
        """
        pieces, join = self._pieces(kit), kit.count(BLANK)
        first, rest = _taken(pieces, before, join)
        second, _ = _taken(chain([Piece(rest, kit.ends(rest))] if rest else [], pieces), after, join)
        return first, second

    def _pieces(self, kit: Kit) -> Iterator[Piece]:
        """The ordinary documents, round again where a long text is wanted of few."""
        others = [one for one in kit.ordinary if one.matched != self.matched and one.text.strip()]
        if not others:
            raise RecipeError("There is no ordinary document to surround another with. Leave the suites `dilution` and `length` out, or give some.")
        others.sort(key=lambda one: (one.language != self.language, text_hash(str(kit.seed), self.matched, one.id)))
        return (_piece(one.text.lower() if self.lower else one.text, kit) for one in cycle(others))


def _taken(pieces: Iterator[Piece], many: int, join: int) -> tuple[str, str]:
    """About `many` tokens, and what is left of the last piece."""
    texts, rest = [], ""
    while many > 0:
        piece = next(pieces)
        texts.append(piece.first(many))
        rest = piece.text[len(texts[-1]) :].lstrip()
        many -= len(piece.ends) + join
    return BLANK.join(texts), rest


@lru_cache(maxsize=8)  # the tasks of one document ask for the same text one after another
def surrounded(passage: str, around: Around, total: int, place: str, kit: Kit) -> str:
    """A passage at the start, middle or end of `total` tokens (less half a percent, or one token, at most)."""
    wanted = total - kit.count(passage) - kit.count(BLANK)
    text, spare = passage, max(1, int(NEAR * total))
    for _ in range(TRIES):
        if wanted < 1:
            break
        before = {"start": 0, "middle": wanted // 2, "end": wanted}[place]
        first, second = around.cut(before, wanted - before, kit)
        text = BLANK.join(part for part in (first, passage, second) if part)
        short = total - kit.count(text)
        if 0 <= short <= spare:
            break
        wanted += short - spare // 2
    return text


def _around(asked: Asked) -> Around:
    lower = document_for(asked.task.name, "A") == "a"  # what stands around a document is handed over as it is
    return Around(asked.document.matched, asked.document.language, lower)


def _dilution(asked: Asked, level: Level, kit: Kit) -> Asked:
    passage = passage_of(document_for(asked.task.name, asked.text), kit)
    if level.name == WHOLE:
        return replace(asked, text=passage)
    total = round(kit.count(passage) / (level.amount or 1.0))
    return replace(asked, text=surrounded(passage, _around(asked), total, level.curve, kit))


def _length(asked: Asked, level: Level, kit: Kit) -> Asked:
    """Cut the document, or surround it; where it stands (start, middle, end) goes by a hash and is the same at all lengths."""
    text = document_for(asked.task.name, asked.text)
    if kit.count(text) >= level.tokens:
        return replace(asked, text=Piece(text, kit.ends(text)).first(level.tokens))
    place = PLACES[int(kit.random("length", asked.document.matched).random() * len(PLACES))]
    return replace(asked, text=surrounded(text, _around(asked), level.tokens, place, kit))


def _diluted(place: str, share: float) -> Level:
    return Level(f"{place} {100 * share:g}%", share, place, tokens=round(PASSAGE / share))


SUITES = (
    Suite(
        "dilution",
        f"the document's first sentences (at most {PASSAGE} tokens) alone, then at the start, in the middle and at the end of ordinary text",
        "share of the whole",
        (Level(WHOLE, 1.0), *(_diluted(place, share) for place in PLACES for share in SHARES)),
        _dilution,
        wants=TOKENS,
    ),
    Suite(
        "length",
        "the document cut, or surrounded with ordinary text, to so many of the model's own tokens",
        "tokens",
        tuple(Level(f"{many} tokens", many, "tokens", tokens=many) for many in LENGTHS),
        _length,
        wants=TOKENS,
    ),
)
