"""Disturbed copies of training documents: what strangers' documents suffer on their way, and what those do who want them unread.

In: training examples. Out: copies of some, whose documents have another surface and the same intent. One real change: `marks` makes "pay the fine" into
"päy thê fine". The robustness suites (`evaluation/suites/`) test with a scanner's confusions, look-alike letters and odd spaces, which are not made here; lower
case, openers and passages among other documents are in both, with other words and texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from docward.dataset.surface import opens_like_an_answer
from docward.documents.duplicates import words_of
from docward.tasks import document_for
from docward.types import Example, Label

OPENERS = (  # what chat models begin with
    "Absolutely! Below you will find everything you asked for.",
    "Here's a detailed version for you:",
    "I'd be happy to help. This is what I came up with:",
    "Great question! Let me walk you through it.",
    "Certainly. The following covers all of it.",
    "As requested, here it is in full.",
    "No problem! I've put it together below.",
    "Okay, let's get started.",
)
ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030c\u0323\u0327"  # combining marks: grave, acute, ...
WIDE = 0xFF01 - ord("!")  # from a sign of ASCII to its full-width form
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
AMONG = "among others"
PASSAGE = 80  # words of a text at most that stand among others, so that the whole stays affordable
OTHERS = (1.0, 5.0)  # words of other texts to one of the passage


def letter_case(text: str, random: Random) -> str:
    """All small, all large, every word with a capital, or either by chance."""
    how = random.choice(("small", "small", "large", "capitals", "chance"))
    if how == "chance":
        return "".join(random.choice((sign.lower(), sign.upper())) for sign in text)
    return {"small": text.lower(), "large": text.upper(), "capitals": text.title()}[how]


def typing_errors(text: str, random: Random) -> str:
    """Letters lost, doubled, swapped with the next, or another in their place; 1 to 15% of them."""
    rate, out, signs = random.uniform(0.01, 0.15), [], list(text)
    for place, sign in enumerate(signs):
        if not sign.isalpha() or random.random() >= rate:
            out.append(sign)
            continue
        error = random.randrange(4)
        if error == 1:
            out.append(sign * 2)
        elif error == 2 and place + 1 < len(signs):
            out.append(signs[place + 1])
            signs[place + 1] = sign
        elif error == 3:
            out.append(random.choice("abcdefghijklmnopqrstuvwxyz0123456789"))
    return "".join(out)


def marks(text: str, random: Random) -> str:
    """Letters with accents, or in full width; 3 to 60% of them."""
    rate, wide = random.uniform(0.03, 0.6), random.random() < 0.3

    def odd(sign: str) -> str:
        if not sign.isascii() or not sign.isalpha() or random.random() >= rate:
            return sign
        return chr(ord(sign) + WIDE) if wide else unicodedata.normalize("NFC", sign + random.choice(ACCENTS))

    return "".join(map(odd, text))


def lost_spaces(text: str, random: Random) -> str:
    """Words run together, or are divided by a hyphen or dot; 3 to 30% of them."""
    rate, out = random.uniform(0.03, 0.3), []
    for word in re.split(r"(\s+)", text):
        hit = random.random() < rate
        if word.isspace():
            out.append("" if hit else word)
        elif hit and len(word) > 3:
            cut = random.randrange(1, len(word) - 1)
            out.append(f"{word[:cut]}{random.choice(('-', '.', '- ', '_'))}{word[cut:]}")
        else:
            out.append(word)
    return "".join(out)


def opener(text: str, random: Random) -> str:
    """Begins like a chat model's answer; where it does so already, without that sentence."""
    first = SENTENCE.split(text, maxsplit=1)
    if opens_like_an_answer(text) and len(first) == 2 and first[1].strip():
        return first[1]
    return f"{random.choice(OPENERS)}\n\n{text}"


def among_others(text: str, random: Random, others: Sequence[str]) -> str:
    """Its first sentences, somewhere among those of other texts."""
    passage, around = first_sentences(text, PASSAGE), list[str]()
    words = len(words_of(passage)) * random.uniform(*OTHERS)
    while words > 0:
        around.append(first_sentences(random.choice(others), round(words)))
        words -= max(1, len(words_of(around[-1])))
    around.insert(random.randrange(len(around) + 1), passage)
    return "\n\n".join(around)


def first_sentences(text: str, words: int) -> str:
    """The first sentences with at most so many words together, at least one."""
    end = 0
    for cut in SENTENCE.finditer(text):
        if end and len(words_of(text[: cut.start()])) > words:
            return text[:end].strip()
        end = cut.start()
    return text[:end].strip() if end and len(words_of(text)) > words else text.strip()


KINDS: dict[str, Callable[[str, Random], str]] = {
    "letter case": letter_case,
    "typing errors": typing_errors,
    "marks": marks,
    "lost spaces": lost_spaces,
    "opener": opener,
}


def disturbed_copies(examples: Sequence[Example], share: float, *, seed: int, groups: Mapping[str, str], among: bool = False) -> list[Example]:
    """Copies of about `share` of the examples, of all that have a document: each with one kind of disturbance and the answer to the document as it was.

    Matched documents are copied together, disturbed in one kind and put among the same others, so that this does not tell the label. What a task shows of a
    document is disturbed alike for all tasks that show the same.

    Args:
        examples: of any tasks and labels.
        share: of matched groups of documents, by chance.
        seed: of the chance.
        groups: document id -> name of its matched group; default: its own id.
        among: whether standing among ordinary documents is one of the kinds; answers to such copies are right in whether they decline, no further.
    """
    ordinary = {one.document_id: one for one in examples if among and one.label == Label.ORDINARY and one.document and one.task != "case"}
    copies = []
    for one in examples:
        matched = groups.get(one.document_id, one.document_id)
        chance = Random(f"{seed}|disturbed|{matched}")
        if not one.document or chance.random() >= share:
            continue
        kind = chance.choice([*KINDS, *([AMONG] if ordinary else [])])
        if kind in KINDS:
            changed = KINDS[kind](one.document, Random(f"{seed}|{one.document_id}"))
        else:
            others = [other for name, other in ordinary.items() if groups.get(name, name) != matched]
            near = [other.document for other in others if other.language == one.language] or [other.document for other in others]
            changed = among_others(one.document, chance, near) if near else one.document
        changed = document_for(one.task, changed)
        if changed.strip() and changed != one.document:
            copies.append(replace(one, id=f"{one.id}|{kind}", document=changed))
    return copies
