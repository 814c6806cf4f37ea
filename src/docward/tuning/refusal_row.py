"""What a fit gives, before the first step or in place of all steps: the refusal token's row, and what reads for it.

In: a model with a fresh adapter and the training rows. Out: a model whose refusal token has a margin over all others that tells malicious from benign training
documents; steps, where the recipe has any, go on from there. Where the model's layers allow for it, neurons and a head bring what the whole text says
(`reading_head.py`). The row is a regression on the states where the token is to be chosen or not: where answers begin, and at all later places of benign
answers, which must not have it. Where answers begin it aims at what the head reads there, which says more of a row than its label does; without a head, and at
later places, it is a logistic one.
A token as refusal score: Refusal Tokens, arXiv 2412.06748.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from docward import processes
from docward.models import Loaded
from docward.recipe import TuningSection
from docward.tuning.adapters import can_begin_from_a_fit, reading_head, token_rows
from docward.tuning.head_weights import Place
from docward.tuning.losses import DEFENSE, GENERAL, forward_inputs
from docward.tuning.packing import Compute, Group, fit_passes
from docward.tuning.reading_head import batch_of, give_reading_head
from docward.tuning.refusal_token import refusal_token_id

SOME_ROWS = 2400  # the row is fitted on about so many: wordings differ, so it wants many (docs/lab-log.md)
AIMED_ROWS = 800  # where a head is aimed at: what that writes stands so clear that more change nothing
RIDGE = 1000.0  # of the penalty, on states of unit variance (1 / C in scikit-learn)
AIMED_RIDGE = 30.0  # the same where a head is aimed at: a number says more than a label, so less has to hold the row back
LATER = 4.0  # weight of all later places of a benign answer, beside its first: the token must not come up at any of them
HEAT = 4.0  # log-odds are margins divided by it: the louder the row, the less the other tokens' own ups and downs decide, which tell nothing of intent


_Head = tuple[Place, torch.Tensor]  # where, and what it reads off


def begin_from_a_fit(
    loaded: Loaded,
    model: Any,
    groups: Sequence[Group],
    section: TuningSection,
    compute: Compute,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> bool:
    """Give the model a head that reads, where it can have one, and the refusal token's row; False where nothing can be fitted.

    That is where the model has no token to spare, or its logits are not what its output layer gives but scaled or capped.

    Args:
        loaded: the model's tokenizer.
        model: with a fresh adapter, in the layout that `compute` wants.
        groups: training rows; for the row, of more than SOME_ROWS or AIMED_ROWS a part is read.
        section: the recipe's.
        compute: the layout.
        progress: told how many passes are done.
    """
    token = refusal_token_id(loaded, section.refusal_token)
    rows = token_rows(model)
    if token is None or not rows or not can_begin_from_a_fit(loaded, section):
        return False
    _, place = reading_head(loaded, section)
    reads = give_reading_head(model, place, groups, section, compute, progress) if place else None
    if not place:
        progress(
            "no head can be fitted to read (that takes attention and MLPs of a known kind, and LoRA on all of their projections without DoRA and dropout): "
            "the row alone is",
            0,
            0,
        )
    head = None if place is None or reads is None else (place, reads)
    found = processes.on_main(lambda: _fitted(model, groups, section, compute, token, rows[-1], head, progress))
    with torch.no_grad():
        rows[-1].copy_(torch.tensor(found, dtype=rows[-1].dtype, device=rows[-1].device).expand_as(rows[-1]))
    return True


def _fitted(
    model: Any, groups: Sequence[Group], section: TuningSection, compute: Compute, token: int, row: torch.Tensor, head: _Head | None, progress: Any
) -> Any:
    rows = sum(len(group.rows) for group in groups)
    share = min(1.0, (AIMED_ROWS if head else SOME_ROWS) / rows)
    some = Random(0).sample(list(groups), max(1, round(share * len(groups))))  # by chance: labels take turns in the data
    passes = fit_passes(some, section.max_batch_tokens, compute)
    parts: list[tuple[torch.Tensor, ...]] = []
    for done, one in enumerate(passes):
        progress("the refusal token's first row: passes", done, len(passes))
        parts.append(_choices(model, batch_of(model, one, compute), token, head))
    states, others, refuse, first, weights, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    if not float(states.std(0, correction=0).max()) > 0:  # all alike: states without end are nothing behind a norm, and tell nothing
        return [float("nan")] * states.shape[1]
    start = row.detach().reshape(-1, row.shape[-1])[0].float()
    aims = log_odds(scores, refuse, weights) if head else None
    return fitted_row(states, others, refuse, start, torch.where(first, 1, LATER) * weights, first, aims).tolist()


@torch.no_grad()
def _choices(model: Any, batch: dict[str, Any], token: int, head: _Head | None = None) -> tuple[torch.Tensor, ...]:
    """Where the token must be chosen (answers to refuse, at their start), and where it must not be (all others, at each of their tokens).

    What enters the output layer there, (places, size); the highest logit of other tokens; whether to refuse; whether an answer begins here; weights, as much
    for all later places of an answer as for its first; and what the head reads of the prompt where an answer on a document begins, elsewhere not a number.
    """
    entered: list[torch.Tensor] = []
    scores = torch.zeros(len(batch["terms"]), device=model.device)

    def score(given: torch.Tensor, reads: torch.Tensor) -> None:
        along = given.flatten(0, -2).float() @ reads.to(given.device)
        scores.add_(torch.stack([along[prompt].mean() for prompt in batch["prompts"]]))

    hooks = [model.get_output_embeddings().register_forward_pre_hook(lambda _, given: entered.append(given[0]))]
    if head:
        place, reads = head
        attention = model.base_model.model.get_decoder().layers[place.layer].self_attn
        hooks.append(attention.q_proj.register_forward_pre_hook(lambda _, given: score(given[0], reads)))
    try:
        logits = model(**forward_inputs(batch), logits_to_keep=batch["keep"], use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    others = logits.reshape(-1, logits.shape[-1]).float()
    others[:, token] = -torch.inf
    owner, device = batch["owner"], others.device
    refused = torch.tensor([term == DEFENSE for term in batch["terms"]], device=device)[owner]
    first = torch.zeros(len(owner), dtype=torch.bool, device=device)
    first[batch["first"]] = True
    kept = (first | ~refused) & batch["answer"]
    later = torch.bincount(owner[kept & ~first], minlength=len(batch["terms"])).clamp(min=1)
    weights = batch["factors"][owner] / torch.where(first, 1, later[owner])
    places = batch["source"][batch["pair"]][kept]
    inside = entered[0].reshape(-1, entered[0].shape[-1])
    scored = first & torch.tensor([term != GENERAL for term in batch["terms"]], device=device)[owner]
    read = torch.where(scored, scores[owner], torch.nan)[kept]
    return inside[places].float(), others.amax(-1)[places], refused[kept], first[kept], weights[kept], read


def log_odds(scores: torch.Tensor, refuse: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scores as log-odds of `refuse`, by a logistic regression in which both sides weigh the same; not a number where a score is not, (examples,)."""
    from sklearn.linear_model import LogisticRegression

    known = scores.isfinite().cpu()
    read, truth, shares = (one.cpu()[known].double().numpy() for one in (scores, refuse, weights))
    if len(set(truth.tolist())) < 2:
        return torch.full_like(scores, torch.nan)
    for side in (truth > 0, truth == 0):
        shares[side] /= max(float(shares[side].sum()), 1e-9)
    spread = max(float(read.std()), 1e-9)
    fitted = LogisticRegression().fit(read[:, None] / spread, truth, sample_weight=shares * len(truth))  # its penalty holds few rows back that do not overlap
    return scores * float(fitted.coef_[0, 0]) / spread + float(fitted.intercept_[0])


def fitted_row(
    states: torch.Tensor,
    others: torch.Tensor,
    refuse: torch.Tensor,
    start: torch.Tensor,
    weights: torch.Tensor,
    first: torch.Tensor | None = None,
    aims: torch.Tensor | None = None,
) -> torch.Tensor:
    """The row whose margins, states @ row - others, divided by HEAT are best as log-odds: nearest to `aims`, and where there are none, of `refuse`.

    Both sides weigh the same.

    Args:
        states: (examples, size).
        others: (examples,), the highest of all other tokens' logits.
        refuse: boolean (examples,).
        start: (size,), where the search begins and what the penalty draws towards.
        weights: (examples,), relative within a side.
        first: boolean (examples,), those in which the sides are to weigh the same; all others come on top. Default: all.
        aims: (examples,), the log-odds to come to, by least squares in units of their spread; not a number where there are none. Default: nowhere.

    Returns:
        (size,), float32, on the CPU.
    """
    states, others, start, weights = (one.cpu().double() for one in (states, others, start, weights))  # float32 ends the search too early
    refuse = refuse.cpu()
    wanted, begun = refuse.double(), torch.ones_like(refuse) if first is None else first.cpu()
    shares = torch.where(refuse, 0.5 / (weights * refuse * begun).mean().clamp(min=1e-6), 0.5 / (weights * ~refuse * begun).mean().clamp(min=1e-6)) * weights
    wished = torch.full_like(others, torch.nan) if aims is None else aims.cpu().double()
    aimed = wished.isfinite()
    wished, ridge = wished.nan_to_num(), AIMED_RIDGE if aimed.any() else RIDGE
    spread = wished[aimed].std(correction=0).clamp(min=1e-6) if aimed.any() else 1.0
    scale = states.std(0, correction=0).clamp(min=1e-6)
    scaled, fixed = states / scale, states @ start - others
    moves = torch.zeros_like(start, requires_grad=True)
    search = torch.optim.LBFGS([moves], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        odds = fixed / HEAT + scaled @ moves
        told = binary_cross_entropy_with_logits(odds, wanted, reduction="none")
        missed = ((odds - wished) / spread).square() / 2
        value = (shares * torch.where(aimed, missed, told)).mean() + ridge * moves.square().sum() / (2 * len(states))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    return (start + HEAT * moves.detach() / scale).float()
