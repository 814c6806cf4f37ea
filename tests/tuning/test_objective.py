"""The loss of a whole run is the formula of the method, however the work is divided."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
import torch

from docward.dataset.building import Plan, general_examples, plan_examples
from docward.models import load
from docward.recipe import TuningSection
from docward.rendering import render
from docward.tasks import get_tasks
from docward.tuning.adapters import prepare
from docward.tuning.trainer import Log
from docward.tuning.tuning import tune
from docward.types import Example, Split, Want
from tiny import some_documents, with_answers

TASKS = ("summarize", "sentiment", "case")
LENGTH = 600
STILL = {"learning_rate": 1e-12, "num_train_epochs": 1, "logging_steps": 1, "save_steps": 1000, "max_length": LENGTH, "max_grad_norm": 1e9}
WEIGHED = {"benign_weight": 0.7, "general_weight": 0.3, "anchor_weight": 0.4, "decision_weight": 0.25}
GIVEN = {"summarize": 3.0, "sentiment": 1.0, "case": 0.5}


@cache
def dataset(kind: str) -> list[Example]:
    """Answers of several lengths, unequal numbers of examples a task, and general instructions."""
    tasks = TASKS[:1] if kind == "one task" else TASKS
    pairing = "disjoint" if kind == "disjoint" else "crossed"
    planned = plan_examples(some_documents(2, split=Split.TRAIN), Plan(tuple(get_tasks(list(tasks))), pairing=pairing))
    planned += general_examples([("g1", "Say hello."), ("g2", "Name a colour."), ("g3", "Count to two.")])
    answered = with_answers(planned, {one.id: "Yes" + ", and more" * (place % 5) + "." for place, one in enumerate(planned)})
    return [one for place, one in enumerate(answered) if kind != "crossed" or place % 5]


def adapted(loaded, section: TuningSection):
    """With an adapter that does something, the same each time."""
    model = prepare(loaded, section)
    random = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=random, dtype=weight.dtype) / 4
    return model


@dataclass(frozen=True)
class Measured:
    """Per token, computed with one model call an example: -log p of each token but the first, KL, where the answer begins."""

    example: Example
    nll: torch.Tensor
    kl: torch.Tensor
    start: int


def measured(model, untuned, tokenizer, examples: list[Example]) -> list[Measured]:
    found = []
    for one in examples:
        row = render(tokenizer, document=one.document, instruction=one.instruction, answer=one.response, position=one.position, limit=LENGTH)
        assert not row.dropped
        now, was = (each(input_ids=torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1) for each in (model, untuned))
        nll = -now[range(len(row.ids) - 1), row.ids[1:]]
        found.append(Measured(one, nll, (was.exp() * (was - now)).sum(-1), row.answer_start - 1))
    return found


def formula(rows: list[Measured], section: TuningSection, weights: dict[str, float]) -> torch.Tensor:
    """Section 3 of the method, word for word."""
    d, everything = section.decision_weight, section.loss_on == "everything"

    def mean(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(values).mean()

    def nll(row: Measured) -> torch.Tensor:
        return (1 - d) * row.nll[0 if everything else row.start :].mean() + d * row.nll[row.start]

    def over_tasks(want: Want) -> torch.Tensor:
        mine = [row for row in rows if row.example.want == want and row.example.task != "general"]
        tasks = sorted({row.example.task for row in mine})
        total = sum(weights[task] for task in tasks)
        return sum(weights[task] / total * mean([nll(row) for row in mine if row.example.task == task]) for task in tasks)

    benign_tokens = torch.cat([row.kl[row.start :] for row in rows if row.example.want == Want.COMPLY and row.example.task != "general"])
    return (
        over_tasks(Want.REFUSE)
        + section.benign_weight * over_tasks(Want.COMPLY)
        + section.general_weight * mean([nll(row) for row in rows if row.example.task == "general"])
        + section.anchor_weight * benign_tokens.mean()
    )


@pytest.fixture(scope="module")
def sharp_folder(tiny_folder, tmp_path_factory) -> Path:
    """A model that holds some tokens much likelier than others: a random one finds all alike, and hides which of them were counted."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / "sharp")
    model = load(str(tiny_folder), dtype="float32").model
    model.lm_head.weight.data *= 20
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plainly(sharp_folder) -> Callable[[str], list[Measured]]:
    @cache
    def of(kind: str) -> list[Measured]:
        loaded, untuned = (load(str(sharp_folder), dtype="float64") for _ in range(2))
        with torch.no_grad():
            return measured(adapted(loaded, TuningSection()), untuned.model, loaded.tokenizer, dataset(kind))

    return of


@pytest.fixture
def run(sharp_folder, tmp_path, monkeypatch) -> Callable[..., tuple[float, list[dict]]]:
    """Tune so slowly that nothing moves; gives the whole loss and the rows of the log."""
    monkeypatch.setattr("docward.tuning.adapters.prepare", adapted)

    def tuned(kind: str, section: TuningSection, weights: dict[str, float] | None = None) -> tuple[float, list[dict]]:
        examples = dataset(kind)
        done = tune(load(str(sharp_folder), dtype="float64"), examples, section, run=tmp_path / "run", seed=0, task_weights=weights)
        assert not done.not_shared
        log = [json.loads(line) for line in (tmp_path / "run" / "training.jsonl").read_text().splitlines()]
        assert log[-1]["examples"] == len(examples)
        per_step = section.per_device_train_batch_size * section.gradient_accumulation_steps
        return sum(row["loss"] for row in log) * per_step / len(examples), log

    return tuned


DIVISIONS = [
    {"compute": "rows", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
    {"compute": "rows", "per_device_train_batch_size": 3, "gradient_accumulation_steps": 3, "max_batch_tokens": 1000},
    {"compute": "rows", "per_device_train_batch_size": 99, "gradient_accumulation_steps": 1, "max_batch_tokens": 5000},
    {"compute": "shared", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_batch_tokens": 400},
    {"compute": "shared", "per_device_train_batch_size": 9, "gradient_accumulation_steps": 1, "max_batch_tokens": 400},
    {"compute": "shared", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 9, "max_batch_tokens": 2000},
    {"compute": "shared", "per_device_train_batch_size": 99, "gradient_accumulation_steps": 2, "max_batch_tokens": 100_000},
]


@pytest.mark.parametrize("division", DIVISIONS, ids=lambda one: " ".join(map(str, one.values())))
def test_the_whole_formula_is_the_sum_of_the_steps_however_they_are_divided(run, plainly, division):
    section = TuningSection(**STILL, **WEIGHED, **division)
    wanted = formula(plainly("crossed"), section, GIVEN)
    assert run("crossed", section, GIVEN)[0] == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes"), [("one task", {}), ("disjoint", {}), *(("disjoint", {name: 0.0}) for name in WEIGHED), ("one task", {"decision_weight": 1.0})], ids=str
)
def test_each_part_of_the_formula_counts_as_it_says(run, plainly, kind, changes):
    section = TuningSection(**STILL, **WEIGHED | changes)
    assert run(kind, section)[0] == pytest.approx(float(formula(plainly(kind), section, dict.fromkeys(TASKS, 1.0))), rel=1e-6)


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_the_loss_on_everything_is_the_published_codes(run, plainly, compute, sharp_folder):
    section = TuningSection(**STILL, compute=compute, loss_on="everything", benign_weight=1.0, general_weight=0.3, anchor_weight=0.4)
    rows = plainly("crossed")
    assert run("crossed", section, GIVEN)[0] == pytest.approx(float(formula(rows, section, GIVEN)), rel=1e-6)
    loaded = load(str(sharp_folder), dtype="float64")
    model, one = adapted(loaded, TuningSection()), rows[0].example
    ids = torch.tensor([render(loaded.tokenizer, document=one.document, instruction=one.instruction, answer=one.response, limit=LENGTH).ids])
    assert float(rows[0].nll.mean()) == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-6)


def test_the_log_has_the_mean_of_each_term(run, plainly):
    section = TuningSection(**STILL, anchor_weight=0.4, per_device_train_batch_size=99, max_batch_tokens=700)
    rows = plainly("crossed")
    ((row,), groups) = run("crossed", section)[1], {"defense": [], "benign": [], "general": []}
    for one in rows:
        term = "general" if one.example.task == "general" else "defense" if one.example.want == Want.REFUSE else "benign"
        groups[term].append(one)
    for term, ones in groups.items():
        assert row[term] == pytest.approx(fmean(float(one.nll[one.start :].mean()) for one in ones), rel=1e-6), term
    assert row["anchor"] == pytest.approx(float(torch.cat([one.kl[one.start :] for one in groups["benign"]]).mean()), rel=1e-6)


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_one_step_of_all_data_follows_the_gradient_of_the_formula(run, sharp_folder, monkeypatch, compute):
    section = TuningSection(**STILL, **WEIGHED, compute=compute, per_device_train_batch_size=99, max_batch_tokens=700)
    seen: dict[str, torch.Tensor] = {}

    def look(self, args, state, control, model=None, **_):
        seen.update({name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None})

    monkeypatch.setattr(Log, "on_pre_optimizer_step", look)
    run("disjoint", section, GIVEN)
    loaded, untuned = (load(str(sharp_folder), dtype="float64") for _ in range(2))
    model = adapted(loaded, section)
    formula(measured(model, untuned.model, loaded.tokenizer, dataset("disjoint")), section, GIVEN).backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert wanted.keys() == seen.keys()
    scale = 99 * section.gradient_accumulation_steps / len(dataset("disjoint"))
    for name, gradient in wanted.items():
        assert float((seen[name] * scale - gradient).norm()) < 1e-5 * float(gradient.norm()), name  # norms and angles are float32 inside
