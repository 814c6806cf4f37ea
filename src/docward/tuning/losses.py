"""The loss, exactly: single-task and mixed-task defense, benign and general terms.

With A the trained tasks, w_a their weights (sum 1), D- malicious and D+ benign examples, G general instructions, and
nll(y | a, x) = mean over the answer's tokens of -log p(token | prompt(a, x), earlier answer tokens):

    L = sum_a w_a * mean over D- of nll + benign_weight * sum_a w_a * mean over D+ of nll + general_weight * mean over G of nll

|A| = 1 is the paper's single-task loss, |A| > 1 its mixed-task loss (arXiv 2405.15202). Every mean is over the whole data set, so an example's
coefficient is known before training, and the value does not depend on batches, accumulation or processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from docward.errors import RecipeError
from docward.types import Example, Want

if TYPE_CHECKING:
    import torch

DEFENSE, BENIGN, GENERAL = "defense", "benign", "general"


def term_of(example: Example) -> str:
    """Which term of the loss an example belongs to."""
    if example.task == GENERAL:
        return GENERAL
    return DEFENSE if example.want == Want.REFUSE else BENIGN


def coefficients(
    examples: Sequence[Example], *, benign_weight: float = 1.0, general_weight: float = 1.0, task_weights: Mapping[str, float] | None = None
) -> list[float]:
    """The coefficient c_i of each example, so that L = sum_i c_i * nll_i.

    Raises:
        RecipeError: the task weights leave no trained task with weight.
    """
    counts = Counter((term_of(example), example.task) for example in examples)
    shares = {term: _shares([task for found, task in counts if found == term], task_weights) for term in (DEFENSE, BENIGN)}
    found = []
    for example in examples:
        term = term_of(example)
        if term == GENERAL:
            found.append(general_weight / counts[term, example.task])
        else:
            found.append((benign_weight if term == BENIGN else 1.0) * shares[term][example.task] / counts[term, example.task])
    return found


def _shares(tasks: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    given = {task: (weights or {}).get(task, 0.0 if weights else 1.0) for task in tasks}
    total = sum(given.values())
    if tasks and not total:
        raise RecipeError(f"tuning.task_weights gives no weight to any trained task ({', '.join(tasks)}).")
    return {task: weight / total for task, weight in given.items()}


def answer_nll(model: Any, batch: Mapping[str, torch.Tensor], *, decision_weight: float = 0.0) -> torch.Tensor:
    """Mean negative log-likelihood of each row's answer tokens, in nats per token: shape (rows,), float32.

    With a decision weight d it is (1 - d) * that mean + d * the value of the answer's first token: refusing or answering is chosen there, and a plain mean
    gives that choice only one token's share of the gradient.

    The vocabulary product is done only at positions that predict an answer token.

    Args:
        model: a causal language model.
        batch: `input_ids`, `attention_mask` (rows, length) and boolean `answer_mask` (rows, length), True on answer tokens; with `inputs_embeds`
            (rows, length, size) the model starts from those instead of from the ids.
        decision_weight: d, from 0 (the paper's loss) to 1.
    """
    import torch
    from torch.nn.functional import cross_entropy

    answers = batch["answer_mask"]
    predicting = torch.zeros_like(answers)
    predicting[:, :-1] = answers[:, 1:]
    given = {"inputs_embeds": batch["inputs_embeds"]} if "inputs_embeds" in batch else {"input_ids": batch["input_ids"]}
    logits = model(**given, attention_mask=batch["attention_mask"], logits_to_keep=predicting, use_cache=False).logits
    losses = cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), batch["input_ids"][answers], reduction="none")
    row = answers.nonzero()[:, 0]
    sums = torch.zeros(len(answers), dtype=losses.dtype, device=losses.device).index_add(0, row, losses)
    lengths = answers.sum(1)
    first = losses[lengths.cumsum(0) - lengths]
    return (1 - decision_weight) * sums / lengths + decision_weight * first
