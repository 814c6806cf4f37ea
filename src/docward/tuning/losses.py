"""The loss, exactly: single-task and mixed-task defense, benign and general terms.

With A the trained tasks, w_a their weights (sum 1), D- malicious and D+ benign examples, G general instructions, and
nll(y | a, x) = mean over the answer's tokens of -log p(token | prompt(a, x), earlier answer tokens):

    L = sum_a w_a * mean over D- of nll + benign_weight * sum_a w_a * mean over D+ of nll + general_weight * mean over G of nll
      + anchor_weight * mean over the answer tokens of D+ of KL(untuned model || tuned model)

|A| = 1 is the paper's single-task loss, |A| > 1 its mixed-task loss (arXiv 2405.15202). Every mean is over the whole data set, so an example's
coefficient is known before training, and the value does not depend on batches, accumulation or processes. Documents may have weights (mean 1 on
either side) that multiply their nll.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
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


def example_nll(model: Any, batch: Mapping[str, Any], *, decision_weight: float = 0.0, refusal_token: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log-likelihood of each example's learned tokens, in nats per token, and the logits.

    With a decision weight d it is (1 - d) * that mean + d * the value of the answer's first token: refusing or answering is chosen there, and a plain mean
    gives that choice only one token's share of the gradient. Where refusals begin with a token of their own, d weighs `decision_nll` instead: what a benign
    answer begins with is all the same to the choice. The vocabulary product is done only at positions that predict a learned token.

    Args:
        model: a causal language model.
        batch: a pass of `docward.tuning.packing.pass_of`.
        decision_weight: d, from 0 (the paper's loss) to 1.
        refusal_token: id of the token that all refusals begin with, and no other answer.

    Returns:
        (examples,), float32 or wider; and (kept positions, vocabulary).
    """
    import torch
    from torch.nn.functional import cross_entropy

    logits = model(**forward_inputs(batch), logits_to_keep=batch["keep"], use_cache=False).logits
    logits = logits.reshape(-1, logits.shape[-1])
    pairs = cross_entropy(_exact(_read(logits, batch["source"])), batch["target"], reduction="none")
    tokens, owner = _read(pairs, batch["pair"]), batch["owner"]
    sums = torch.zeros(len(batch["factors"]), dtype=tokens.dtype, device=tokens.device).index_add(0, owner, tokens)
    counts = torch.bincount(owner, minlength=len(sums))
    decisions = tokens[batch["first"]]
    if decision_weight and refusal_token is not None:
        refuse = torch.tensor([term == DEFENSE for term in batch["terms"]], device=logits.device)
        decisions = decision_nll(_exact(logits[batch["source"][batch["pair"][batch["first"]]]]), refusal_token, refuse)
    return (1 - decision_weight) * sums / counts + decision_weight * decisions, logits


def decision_nll(logits: torch.Tensor, token: int, refuse: torch.Tensor) -> torch.Tensor:
    """Logistic loss, in nats, on the token's margin over the highest other logit: what greedy decoding goes by, and the dial.

    The token's probability would not do: where many answers can begin in many ways it wins with a small one, where all begin alike it needs half.

    Args:
        logits: (examples, vocabulary) where each answer begins.
        token: id of the refusal token.
        refuse: boolean (examples,).

    Returns:
        (examples,).
    """
    import torch

    margin = logits[:, token] - logits.index_fill(1, torch.tensor([token], device=logits.device), -torch.inf).amax(-1)
    return torch.nn.functional.softplus(torch.where(refuse, -margin, margin))


def _exact(logits: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def _read(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Values at places; no copy where that is all of them in order, as it is for answers."""
    import torch

    return values if len(places) == len(values) and bool((places == torch.arange(len(values), device=places.device)).all()) else values[places]


def forward_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a pass the model takes."""
    return {name: batch[name] for name in ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "layout") if name in batch}


def anchor_kl(
    model: Any, untuned: Callable[[], AbstractContextManager[Any]], batch: Mapping[str, Any], logits: torch.Tensor, *, in_step: bool = False
) -> torch.Tensor:
    """KL(untuned || tuned) in nats, summed over each benign example's answer tokens: shape (examples,), float32 or wider; 0 for all other examples.

    Args:
        model: with its adapter.
        untuned: a context in which the model is the untuned one (adapter off).
        batch: the pass.
        logits: of the tuned model, at the kept positions, as `example_nll` gives them.
        in_step: go through the model where nothing is benign, too, as processes must that hold a part of its weights each.
    """
    import torch
    from torch.nn.functional import kl_div

    found = torch.zeros(len(batch["factors"]), dtype=_exact(logits).dtype, device=logits.device)
    benign = torch.tensor([term == BENIGN for term in batch["terms"]], device=logits.device)
    wanted = batch["answer"] & benign[batch["owner"]]
    if not wanted.any() and not in_step:
        return found
    sources = batch["source"][batch["pair"][wanted]]
    once, back = sources.unique(return_inverse=True)
    keep = torch.zeros_like(batch["keep"])
    keep.view(-1)[batch["keep"].view(-1).nonzero()[once, 0]] = True
    with torch.no_grad(), untuned():
        was = model(**forward_inputs(batch), logits_to_keep=keep, use_cache=False).logits.reshape(-1, logits.shape[-1])
        was = _exact(was).log_softmax(-1)
    now = _exact(logits[once]).log_softmax(-1)
    return found.index_add(0, batch["owner"][wanted], kl_div(now, was, log_target=True, reduction="none").sum(-1)[back])
