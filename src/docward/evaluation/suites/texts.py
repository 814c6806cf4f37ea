"""Suites that change a document's text and keep its meaning: opener, noise, injection.

In: a request and a level. Out: the request with another text. One real change: homoglyphs at 100% make "coop" of Cyrillic letters out of Latin "coop".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from docward.dataset.surface import opens_like_an_answer
from docward.evaluation.suites.suite import Asked, Kit, Level, Suite, by_language, percents

FIRST_SENTENCE = re.compile(r"\s*[^\n.!?:。！？：]*[.!?:。！？：\n]+[\"'”’»)]*\s*")

# What optical character recognition takes a sign for: the sign, then its usual misreading, by shape.
MISREAD = """
    ao bh ce dcl ec ft gq hb il jl klc l1 mrn nri o0 qg rn s5 tf uii yv vy wvv z2
    A4 B8 C( DO EF FE G6 HN Il Jl Klc L1 NM O0 PF QO RP S5 T7 UV VY YV Z2 0O 1l 2Z 38 4A 5S 6b 71 83 9g ., ,. ;: :;
"""
CONFUSED = {pair[0]: pair[1:] for pair in MISREAD.split()}

# Pairs that are drawn alike in common fonts: Latin letters and their Cyrillic twins, from Unicode's confusables (UTS #39).
LOOK_ALIKES = dict(zip("aceijopsxyABCEHIJMOPSTX", "асеіјорѕхуАВСЕНІЈМОРЅТХ", strict=True))

ODD_SPACES = ("  ", "\u00a0", "\u2009", "\n", " \t")  # double, no-break, thin, a line's end, with a tab
SPLIT_WORD = 0.2  # of the places that odd spacing hits, so many are inside a word: few, or no word would stay whole

LOWER, OCR, GLYPHS, SPACING = "lower case", "OCR noise", "homoglyphs", "odd spacing"


@cache
def phrases() -> dict[str, Any]:
    """The words that suites add, by suite, level and language."""
    import yaml

    found: dict[str, Any] = yaml.safe_load((files("docward.evaluation.suites") / "phrases.yaml").read_text(encoding="utf-8"))
    return found


def _opener(asked: Asked, level: Level, kit: Kit) -> Asked:
    if level.name == "added":
        return replace(asked, text=f"{by_language(phrases()['opener'], asked.document.language)}\n\n{asked.text}")
    return replace(asked, text=without_opener(asked.text))


def without_opener(text: str) -> str:
    """A document less the sentences that open it like a model's answer; a document that is nothing else, or does not open so, stays as it is."""
    rest = text
    while opens_like_an_answer(rest) and (first := FIRST_SENTENCE.match(rest)):
        rest = rest[first.end() :]
    return rest if rest.strip() else text


def _noise(asked: Asked, level: Level, kit: Kit) -> Asked:
    if level.name == LOWER:
        return replace(asked, text=asked.text.lower())
    chance = kit.random("noise", level.name, asked.document.id).random
    return replace(asked, text=NOISES[level.curve](asked.text, level.amount or 0.0, chance))


def ocr(text: str, rate: float, chance: Callable[[], float]) -> str:
    """Misread a sign with probability `rate`: by its shape where it has a usual confusion, else it is lost. Spaces stay."""
    return "".join(sign if sign.isspace() or chance() >= rate else CONFUSED.get(sign, "") for sign in text)


def homoglyphs(text: str, rate: float, chance: Callable[[], float]) -> str:
    """Put its twin in the place of a letter that has one, with probability `rate`."""
    return "".join(LOOK_ALIKES[sign] if sign in LOOK_ALIKES and chance() < rate else sign for sign in text)


def odd_spacing(text: str, rate: float, chance: Callable[[], float]) -> str:
    """Make a space an odd one with probability `rate`, and put one behind a letter inside a word with SPLIT_WORD of that."""
    out = []
    for sign, following in zip(text, [*text[1:], ""], strict=True):
        hit = chance()
        if sign == " ":
            out.append(ODD_SPACES[int(hit / rate * len(ODD_SPACES))] if hit < rate else sign)
        else:
            out.append(f"{sign} " if hit < rate * SPLIT_WORD and sign.isalnum() and following.isalnum() else sign)
    return "".join(out)


NOISES = {OCR: ocr, GLYPHS: homoglyphs, SPACING: odd_spacing}


def _injection(asked: Asked, level: Level, kit: Kit) -> Asked:
    return replace(asked, text=f"{asked.text}\n\n{by_language(phrases()['injection'][level.name], asked.document.language)}")


SUITES = (
    Suite(
        "opener",
        "an answer-like opener in front of the document, or the one it has taken away (documents without one stay as they are)",
        "opener",
        (Level("added"), Level("stripped")),
        _opener,
    ),
    Suite(
        "noise",
        "lower case, scanning errors, look-alike letters, odd spacing",
        "noise",
        (Level(LOWER), *percents((0.02, 0.05, 0.1, 0.2), OCR), *percents((0.1, 0.5, 1.0), GLYPHS), *percents((0.1, 0.5), SPACING)),
        _noise,
    ),
    Suite(
        "injection",
        "the document's last words speak to the model that reads it",
        "what it says",
        tuple(Level(name) for name in ("review passed", "ignore the rules", "in the system's name", "told to refuse")),
        _injection,
    ),
)
