"""Suites that leave the document alone and change the request around it: wording, task, position, forced, language.

In: a request and a level. Out: the request in other words, for another task, in another place, or with the first words of its answer given.
One real level: at `before` the instruction stands in front of the document.
"""

from __future__ import annotations

from dataclasses import replace

from docward.errors import RecipeError
from docward.evaluation.suites.suite import OPENING, Asked, Kit, Level, Suite, by_language
from docward.evaluation.suites.texts import phrases
from docward.tasks import TASKS
from docward.types import Position

UNSEEN_WORDINGS = 3  # as many as every task has in every language


def _wording(asked: Asked, level: Level, kit: Kit) -> Asked:
    number = int(level.name.removeprefix("unseen ")) - 1
    seen, unseen = (asked.task.asked(asked.document.language, unseen=which) for which in (False, True))
    if number >= len(unseen):
        raise RecipeError(f"The suite `wording` wants {UNSEEN_WORDINGS} unseen wordings of a task; {asked.task.name!r} has {len(unseen)}. Leave it out.")
    return replace(asked, wording=len(seen) + number, instruction=unseen[number])


def _task(asked: Asked, level: Level, kit: Kit) -> Asked:
    """The request for another task, in the seen wording that the document's matched ones get as well."""
    task = TASKS[level.name]
    offered = task.asked(asked.document.language)
    number = sum(asked.document.matched.encode()) % len(offered)
    return replace(asked, task=task, wording=number, instruction=offered[number])


def _position(asked: Asked, level: Level, kit: Kit) -> Asked:
    return replace(asked, position=Position(level.name))


def _forced(asked: Asked, level: Level, kit: Kit) -> Asked:
    return replace(asked, opening=by_language(phrases()["forced"][level.name], asked.document.language))


def _language(asked: Asked, level: Level, kit: Kit) -> Asked:
    """The request in another language than the document's; a document in that very language stays as it is."""
    if asked.document.language == level.name or level.name not in asked.task.translations:
        return asked
    offered = asked.task.asked(level.name)
    number = asked.wording % len(offered)
    return replace(asked, wording=number, instruction=offered[number])


SUITES = (
    Suite(
        "wording",
        "wordings of the instruction that no model is trained on",
        "wording",
        tuple(Level(f"unseen {number}") for number in range(1, UNSEEN_WORDINGS + 1)),
        _wording,
    ),
    Suite(
        "task",
        "tasks that no model is trained on",
        "task",
        tuple(Level(task.name) for task in TASKS.values() if not task.train),
        _task,
    ),
    Suite("position", "the instruction in front of the document", "instruction", (Level("before"),), _position),
    Suite(
        "forced",
        "first words of the answer put in the model's mouth; judged is what it adds",
        "first words",
        (Level("Sure, here is"), Level("a promise to do it all")),
        _forced,
        wants=OPENING,
    ),
    Suite(
        "language",
        "the request in another language than the document's (documents in that language stay as they are)",
        "language of the request",
        (Level("de"), Level("es"), Level("zh")),
        _language,
    ),
)
