"""What fits: the default model is asked every length, and no level that is asked loses a token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from docward.documents.reading import own_documents
from docward.evaluation.evaluating import Settings
from docward.evaluation.suites import SUITES, UNCHANGED, Kit
from docward.evaluation.suites.running import _room, plan
from docward.models import load_tokenizer
from docward.rendering import render
from docward.tasks import TASKS, get_tasks
from docward.types import Document, Label, Split, Task
from tiny import byte_tokenizer, some_documents

DEFAULT = Settings(tuple(task for task in TASKS.values() if task.train))
LONGEST = ("start 2%", "middle 2%", "end 2%", "8000 tokens")


@cache
def default_model() -> Any:
    """The default model without its weights."""
    tokenizer, context = load_tokenizer("smollm2-135m")
    return SimpleNamespace(tokenizer=tokenizer, context=context)


@cache
def held_out() -> tuple[Document, ...]:
    return tuple(one for one in own_documents() if one.split == Split.TEST)


@pytest.mark.parametrize("wordings", ["seen", "unseen"])
def test_the_default_model_is_asked_every_length_at_the_defaults(wordings):
    assert (default_model().context, DEFAULT.max_new_tokens, len(DEFAULT.tasks)) == (8192, 32, 5)
    assert {one.language for one in held_out()} == {"en", "de", "es", "zh"}
    room = _room(default_model(), held_out(), replace(DEFAULT, wordings=wordings))
    for name in ("length", "dilution"):
        assert SUITES[name].fitting(room) == (UNCHANGED, *SUITES[name].levels)


def test_a_level_that_only_just_fits_loses_no_token():
    """Replies are as long as they can be without costing a level, and the longest instruction is among those asked."""
    some, two = [*held_out()[:12:4], *{one.language: one for one in held_out()}.values()], tuple(get_tasks(["summarize", "case"]))
    loose = _room(default_model(), some, replace(DEFAULT, tasks=two))
    settings = replace(DEFAULT, tasks=two, max_new_tokens=DEFAULT.max_new_tokens + loose - 8000)
    room = _room(default_model(), some, settings)
    assert room == 8000
    kit = Kit(default_model().tokenizer, tuple(one for one in held_out() if one.label == Label.ORDINARY), room)
    suites = [replace(SUITES[name], levels=tuple(level for level in SUITES[name].levels if level.name in LONGEST)) for name in ("length", "dilution")]
    asked = [one for suite in suites for one in plan(suite, some, settings, kit) if one.level != UNCHANGED]
    assert {one.level.name for one in asked} == set(LONGEST)
    for one in asked:
        words = {"document": one.reply.document, "instruction": one.reply.instruction}
        rendered = render(kit.tokenizer, **words, limit=default_model().context, reserve=settings.max_new_tokens)
        assert rendered.dropped == 0, one.reply.key
        assert len(rendered.ids) + settings.max_new_tokens <= default_model().context


def test_wordings_that_are_not_asked_take_no_room():
    short, long = "Do it.", "Do it, and mind all of this: " + "and this, " * 50 + "and that."
    model = SimpleNamespace(tokenizer=byte_tokenizer(), context=2048)

    def room(wordings: str, *, seen: str, unseen: str, language: str = "en") -> int:
        task = Task("mine", (seen,), (unseen,), {"de": ((long,), (long,))})
        return _room(model, [replace(one, language=language) for one in some_documents(2)], Settings((task,), wordings=wordings))

    assert room("seen", seen=short, unseen=long) == room("unseen", seen=long, unseen=short) == room("seen", seen=short, unseen=short)
    assert room("seen", seen=short, unseen=short) - room("seen", seen=long, unseen=short) == len(long) - len(short)
    assert room("seen", seen=short, unseen=short, language="de") == room("seen", seen=long, unseen=short)


def test_a_longer_reply_leaves_the_longest_level_out_and_shortens_none():
    room = _room(default_model(), held_out(), replace(DEFAULT, max_new_tokens=256))
    assert [level.name for level in SUITES["length"].levels if level.tokens > room] == ["8000 tokens"]
    assert all(level.tokens <= room for level in SUITES["dilution"].levels)
