"""Which label an answer names, where gold is a label: the sentiment or the topic of a document.

In: an answer in free words and the labels there are. Out: one of them, or None where none or no single one can be told. One real row:
`read_label("Some parts are negative, but the overall tone is positive.", sentiment_names())` is `"positive"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Any

from docward.documents.duplicates import words_of

Names = Mapping[str, Sequence[Sequence[str]]]  # label -> its names, each as its words
NEGATED = 3  # words from a negation to the label: "not at all negative"
PREFIX = 4  # letters from which a name may go on: "sport" in "sporting", but "art" not in "article"
PARTS = re.compile(r"[/|,&;]|\band\b")
SENTENCES = re.compile(r"[.!?\u3002\uff01\uff1f\n]+")
END = "."  # stands among the words where a sentence ends


@dataclass(frozen=True, slots=True)
class _Mention:
    """A label in an answer, by its words' places."""

    label: str
    start: int
    stop: int


@cache
def _table() -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((files(__package__) / "labels.yaml").read_text(encoding="utf-8"))
    return found


@cache
def _phrases(name: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(words_of(word)) for word in _table()[name].split())


@cache
def sentiment_names() -> Names:
    """The labels of a sentiment, by name in five languages."""
    return {label: [words_of(word) for words in by_language.values() for word in words.split()] for label, by_language in _table()["sentiment"].items()}


def topic_names(labels: Iterable[str]) -> Names:
    """Labels that name themselves; each part of "Science and Technology" or "Sci/Tech" does for the whole."""
    return {label: [words for part in (label, *PARTS.split(label.lower())) if (words := words_of(part))] for label in sorted(set(labels))}


def read_label(answer: str, names: Names) -> str | None:
    """The label that an answer settles on.

    Labels that are named side by side, as choices are, or denied do not count. Of several that are left, the one decides that opens the answer or comes first
    after a cue such as "overall" in a sentence; if that does not tell one either, none is told.
    """
    words = [word for sentence in SENTENCES.split(answer) for word in (*words_of(sentence), END)]
    named = [one for one in _single(_mentions(words, names), words) if not _denied(one, words)]
    told = {one.label for one in named}
    if len(told) > 1:
        told = {one.label for one in _cued(named, words)}
    return told.pop() if len(told) == 1 else None


def _mentions(words: Sequence[str], names: Names) -> list[_Mention]:
    """The labels in an answer in order, the longest name at a place first and none inside another."""
    known = sorted(((tuple(name), label) for label, some in names.items() for name in some), key=lambda one: -len(one[0]))
    found: list[_Mention] = []
    for place in range(len(words)):
        if found and place < found[-1].stop:
            continue
        for name, label in known:
            here = words[place : place + len(name)]
            if len(here) == len(name) and all(map(_is, here, name)):
                found.append(_Mention(label, place, place + len(name)))
                break
    return found


def _is(word: str, name: str) -> bool:
    stem = name.removesuffix("s")
    return word in (name, stem, f"{name}s") or (len(stem) >= PREFIX and stem.isascii() and word.startswith(stem))


def _single(mentions: Sequence[_Mention], words: Sequence[str]) -> list[_Mention]:
    """Mentions less those of several labels side by side."""
    groups: list[list[_Mention]] = []
    for one in mentions:
        between = words[groups[-1][-1].stop : one.start] if groups else [END]
        if not between or tuple(between) in _phrases("joined"):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [one for group in groups if len({one.label for one in group}) == 1 for one in group]


def _denied(mention: _Mention, words: Sequence[str]) -> bool:
    before = words[max(0, mention.start - NEGATED) : mention.start]
    return any((word,) in _phrases("negations") for word in takewhile(lambda word: word != END, reversed(before)))


def _cued(mentions: Sequence[_Mention], words: Sequence[str]) -> list[_Mention]:
    """The first mention after each cue in its sentence, and one that opens the answer."""
    cues = [place + len(cue) for place in range(len(words)) for cue in _phrases("cues") if tuple(words[place : place + len(cue)]) == cue]
    first = [next((one for one in mentions if one.start >= cue), None) for cue in cues]
    return [one for one, cue in zip(first, cues, strict=True) if one and END not in words[cue : one.start]] + [one for one in mentions[:1] if one.start == 0]
