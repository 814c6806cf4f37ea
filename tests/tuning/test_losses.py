from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
import torch

from docward.errors import RecipeError
from docward.recipe import TuningSection
from docward.rendering import Rendered
from docward.tuning.losses import coefficients, example_nll
from docward.tuning.packing import Row, group_of, pass_of
from docward.tuning.tuning import training_groups
from docward.types import Example, Position, Split, Want
from tiny import training_examples


def example(name: str, task: str, want: Want = Want.REFUSE) -> Example:
    return Example(name, name, task, 0, "Do it.", "Doc.", Position.AFTER, "malicious", want, "No.", "refusal", Split.TRAIN)


def mixture() -> list[Example]:
    examples = [example(f"m{place}", task) for place, task in enumerate(["summarize"] * 3 + ["translate"] * 5)]
    examples += [example(f"b{place}", task, Want.COMPLY) for place, task in enumerate(["summarize"] * 4 + ["translate"] * 2 + ["case"] * 2)]
    return examples + [example(f"g{place}", "general", Want.COMPLY) for place in range(6)]


def reference(examples: list[Example], nll: list[float], benign: float, general: float, weights: dict[str, float]) -> float:
    """The formula of the method, written from the formula."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def over_tasks(want: Want) -> float:
        tasks = {one.task for one in examples if one.want == want and one.task != "general"}
        total = sum(weights[task] for task in tasks)
        return sum(
            weights[task] / total * mean([value for one, value in zip(examples, nll, strict=True) if one.task == task and one.want == want]) for task in tasks
        )

    general_part = mean([value for one, value in zip(examples, nll, strict=True) if one.task == "general"])
    return over_tasks(Want.REFUSE) + benign * over_tasks(Want.COMPLY) + general * general_part


@pytest.mark.parametrize("weights", [None, {"summarize": 3.0, "translate": 1.0, "case": 0.5}])
def test_the_coefficients_give_the_formula(weights):
    examples, random = mixture(), Random(0)
    nll = [random.random() * 5 for _ in examples]
    found = coefficients(examples, benign_weight=0.7, general_weight=0.2, task_weights=weights)
    wanted = reference(examples, nll, 0.7, 0.2, weights or dict.fromkeys(("summarize", "translate", "case"), 1.0))
    assert math.isclose(sum(c * value for c, value in zip(found, nll, strict=True)), wanted, rel_tol=1e-12)


def test_the_order_of_examples_changes_nothing():
    examples = mixture()
    there = dict(zip([one.id for one in examples], coefficients(examples), strict=True))
    back = dict(zip([one.id for one in examples[::-1]], coefficients(examples[::-1]), strict=True))
    assert there == back


def test_one_task_is_the_single_task_loss():
    examples = [replace(one, task="summarize") for one in mixture()[:8]]
    assert coefficients(examples) == pytest.approx([1 / 8] * 8)


def test_weights_that_leave_no_task_are_refused():
    with pytest.raises(RecipeError, match="no weight to any trained task"):
        coefficients(mixture()[:8], task_weights={"case": 1.0})


def batch_of(rows: list[list[int]], answers: list[int]) -> dict[str, object]:
    made = [Row(Rendered(row, len(row) - own, 0, range(0)), 1.0, "defense") for row, own in zip(rows, answers, strict=True)]
    return pass_of([group_of([row], document=str(place), matched="") for place, row in enumerate(made)], compute="rows", pad=0)


def answer_nll(model, batch, **options) -> torch.Tensor:
    return example_nll(model, batch, **options)[0]


def some_rows() -> tuple[list[list[int]], list[int]]:
    random = Random(1)
    return [[random.randrange(3, 200) for _ in range(size)] for size in (12, 30, 21)], [4, 7, 1]


def test_each_row_has_the_mean_nll_of_its_answer_alone(tiny):
    rows, answers = some_rows()
    with torch.no_grad():
        found = answer_nll(tiny.model, batch_of(rows, answers))
        for row, own, value in zip(rows, answers, found, strict=True):
            logits = tiny.model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            wanted = -sum(logits[place - 1, row[place]] for place in range(len(row) - own, len(row))) / own
            assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_no_vocabulary_product_on_prompt_positions(tiny):
    rows, answers = some_rows()
    seen: list[int] = []
    hook = tiny.model.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].reshape(-1, given[0].shape[-1]).shape[0]))
    answer_nll(tiny.model, batch_of(rows, answers))
    hook.remove()
    assert seen == [sum(answers)]


def test_the_document_gets_no_gradient_as_a_label(tiny):
    """Changing which tokens stand in the prompt's labels cannot matter, as they are none: the loss of two answers of one token differs only by them."""
    rows, answers = some_rows()
    batch = batch_of(rows, answers)
    logits = tiny.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits.retain_grad()

    class Fixed(torch.nn.Module):
        def forward(self, logits_to_keep: torch.Tensor, **_: object) -> object:
            return type("Out", (), {"logits": logits[logits_to_keep]})()

    answer_nll(Fixed(), batch).sum().backward()
    touched = logits.grad.abs().sum(-1) > 0
    predicting = [[len(row) - own - 1 <= place < len(row) - 1 for place in range(touched.shape[1])] for row, own in zip(rows, answers, strict=True)]
    assert touched.tolist() == predicting


def test_the_decision_weight_moves_loss_to_the_first_answer_token_and_nothing_else(tiny):
    rows, answers = some_rows()
    batch = batch_of(rows, answers)
    with torch.no_grad():
        mean, first = answer_nll(tiny.model, batch), answer_nll(tiny.model, batch, decision_weight=1.0)
        mixed = answer_nll(tiny.model, batch, decision_weight=0.25)
        for row, own, value in zip(rows, answers, first, strict=True):
            logits = tiny.model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            assert value.item() == pytest.approx(-logits[len(row) - own - 1, row[len(row) - own]].item(), rel=1e-5)
    torch.testing.assert_close(mixed, 0.75 * mean + 0.25 * first)
    assert mean[2].item() == pytest.approx(first[2].item())  # an answer of one token is its own first token


def test_document_weights_multiply_the_coefficients_of_their_examples(tiny):
    section, examples = TuningSection(), training_examples()
    weights = {examples[0].document_id: 3.0, examples[-1].document_id: 0.5}
    plain, weighed = (training_groups(tiny, examples, section, document_weights=given)[0] for given in (None, weights))
    for group, same in zip(weighed, plain, strict=True):
        for row, other in zip(group.rows, same.rows, strict=True):
            assert row.factor == pytest.approx(weights.get(group.document, 1.0) * other.factor)
