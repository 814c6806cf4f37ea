"""The suite that tunes the model a little: what it learns from, what it leaves as it was, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import islice

import pytest
import torch

from docward.documents.reading import own_documents
from docward.evaluation.evaluating import Settings, evaluate
from docward.evaluation.generating import Prompt, generate
from docward.evaluation.suites import SUITES, drifting, get_suites
from docward.evaluation.suites.running import run_suites
from docward.tasks import get_tasks
from docward.types import Label, Split
from tiny import some_documents

SETTINGS = Settings(tasks=tuple(get_tasks(["summarize"])), max_new_tokens=3)


def replies(loaded) -> list[str]:
    asked = [Prompt(one.id, one.text, "Summarize it.") for one in some_documents(2)]
    return [one.text for batch in generate(loaded, asked, max_new_tokens=4) for one in batch]


def logits(loaded) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(input_ids=torch.arange(5, 25)[None]).logits


def test_lessons_are_ordinary_training_documents_whose_answers_they_give_themselves(tiny):
    ordinary = [one for one in own_documents() if (one.split, one.label) == (Split.TRAIN, Label.ORDINARY)]
    words = {word for one in ordinary for word in one.text.split()}
    for row in islice(drifting.lessons(tiny, 0), 12):
        answer = tiny.tokenizer.decode(row.ids[row.answer_start :], skip_special_tokens=True)
        assert set(answer.split()[:-1]) <= words
        assert len(row.ids) <= tiny.context


def test_tuning_goes_on_from_level_to_level_by_its_seed_alone_and_leaves_the_model_as_it_was(tiny):
    before = logits(tiny)
    with drifting.drifting(tiny, 0) as after:
        first, second = logits(after(1)), logits(after(3))
        assert len(replies(after(3))) == 6
    assert torch.equal(logits(tiny), before)
    assert all("lora" not in name for name, _ in tiny.model.named_modules())
    with drifting.drifting(tiny, 0) as after:
        assert torch.equal(logits(after(3)), second)
    with drifting.drifting(tiny, 1) as after:
        assert not torch.equal(logits(after(3)), second)
    assert not torch.equal(first, before)
    assert not torch.equal(second, first)


def test_tuning_teaches_the_lessons(tiny):
    rows = list(islice(drifting.lessons(tiny, 0), 4))

    def loss(loaded) -> float:
        with torch.no_grad():
            return float(loaded.model(**drifting._batch(rows, loaded.model.device)).loss)

    before = loss(tiny)
    with drifting.drifting(tiny, 0) as after:
        assert loss(after(6)) < before


class StopHere(Exception):  # noqa: N818 - a stand-in for Ctrl-C
    pass


def test_the_suite_asks_the_tuned_model_at_each_level_and_goes_on_where_it_was_stopped(tiny, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def short(loaded, seed):
        with drifting.drifting(loaded, seed) as after:
            yield lambda steps: seen.append(steps) or after({10: 1, 30: 2, 100: 3}[steps])

    monkeypatch.setattr("docward.evaluation.suites.running.drifting", short)

    def run(folder, **options):
        return run_suites(tiny, some_documents(1), get_suites(["drift"]), SETTINGS, tmp_path / folder, ordinary=(), **options)

    def stop(what: str, done: int, total: int) -> None:
        if done == 6:  # level 0 and the first level
            raise StopHere

    evaluate(tiny, some_documents(1), SETTINGS, tmp_path / "whole")
    (found,) = run("whole")
    assert seen == [10, 30, 100]
    assert [(row["level"], row["changed"]) for row in found["rows"][::3]] == [("unchanged", 0), ("10 steps", 1), ("30 steps", 1), ("100 steps", 1)]
    evaluate(tiny, some_documents(1), SETTINGS, tmp_path / "stopped")
    with pytest.raises(StopHere):
        run("stopped", progress=stop)
    seen.clear()
    assert run("stopped") == [found]
    assert seen == [30, 100]
    for name in ("replies.jsonl", "verdicts.jsonl"):
        assert (tmp_path / "stopped/suites/drift" / name).read_bytes() == (tmp_path / "whole/suites/drift" / name).read_bytes()
    assert json.loads((tmp_path / "whole/suites/drift/evaluation.json").read_text())["suite"] == SUITES["drift"].name
