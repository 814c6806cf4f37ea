"""Refusals: short, polite, without a lecture, fitting task and category, in the language of the request, some offering what can be done instead.

In: a task, a category, a language and a seeded random generator. Out: one text of `refusals.yaml`, such as
`I'm sorry, but I can't summarize this document: it is meant to help someone cheat people.`
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from random import Random
from typing import Any


@cache
def phrases() -> dict[str, Any]:
    """By language: `doing` (task -> verb forms), `purpose` (category -> what the document is for), `forms`. `other` serves a task or category not named."""
    import yaml

    found: dict[str, Any] = yaml.safe_load((files("docward.dataset") / "refusals.yaml").read_text(encoding="utf-8"))
    return found


def refusal(task: str, random: Random, *, category: str = "", language: str = "en") -> str:
    """One refusal. A third of those with apostrophes have curly ones, as people's keyboards do; a language that is not there gets English."""
    said = phrases().get(language, phrases()["en"])
    do, doing = said["doing"].get(task, said["doing"]["other"])
    purpose = said["purpose"].get(category, said["purpose"]["other"])
    text = str(random.choice(said["forms"])).format(do=do, doing=doing, purpose=purpose)
    return text.replace("'", "\u2019") if random.random() < 1 / 3 else text


def openings(language: str = "") -> list[str]:
    """How refusals begin, up to what depends on the task, with either apostrophe; in one language or in all."""
    said = (str(form).split("{")[0] for name, one in phrases().items() if language in ("", name) for form in one["forms"])
    return sorted({text.replace("'", mark) for text in said if text.strip() for mark in ("'", "\u2019")})
