"""Heads that read: attention heads of two layers get a new job, to bring what the text says of intent to where the answer begins.

In: a model with a fresh adapter and the training rows. Out: adapter weights, found without a gradient step, under which a head of a middle layer and one of a
late layer look at all they may see alike; each reads off a direction, the two of one logistic regression that tells malicious from benign documents, and writes
it along the direction that the rest of the model heeds least, so that the sum of both stands there. The mean over a document tells intent far better than the
last state does; that of a middle layer tells documents like those fitted on best, that of a late one those of another hand, and both side by side have the
better of each (`bench/probing.py --together`, docs/lab-log.md). It is fitted on pieces of documents, each as malicious as its whole; on the
quickstart's rows that told documents of another hand better than a fit on whole ones (docs/lab-log.md). The heads are those of their layers that benign answers
miss least; heads that share values with one of them lose a direction of values for it (`head_weights.py`); nothing else changes.
Heads that are missed little can go: arXiv 1905.10650.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from docward.recipe import TuningSection
from docward.tuning.frozen import from_layer
from docward.tuning.head_weights import Place, norm_behind, rows_of, scale_of, unseen_direction, write_head
from docward.tuning.losses import DEFENSE, GENERAL, example_nll, forward_inputs
from docward.tuning.packing import Compute, Group, fit_passes, pass_of

C = 0.03  # inverse penalty of the logistic regression, on states of unit variance, where a document weighs 1
PIECE = 32  # tokens of a piece of a document that the regression is fitted on
LOUD = 0.06  # spread of what is written, as a share of the state's length at the last place: at 0.04 less of it is heard (docs/lab-log.md)
BESIDE = 0.25  # where a norm stands behind attention: that spread is at most this share of the length of what attention gives, which it takes from
FRAMES = 24  # directions of instructions and chat template that are not read
ENOUGH = 24  # benign answers that show which heads are missed least
SOME = 7  # one place in so many is kept, where all would be too many
Progress = Callable[[str, int, int], None]
_Some = list[torch.Tensor]


@dataclass(slots=True)
class Seen:
    """What training rows show at one place.

    Each row's mean state over its document (over all of its prompt, where it has none), (rows, size), over each piece of that, (pieces, size), on the CPU, and
    over its answer; the mean length of what attention gives where answers begin; how states spread in what stands around documents; and, where queries go
    through a norm, in documents and where answers begin.
    """

    means: torch.Tensor
    pieces: torch.Tensor
    answers: torch.Tensor
    given: float
    around: Spread
    inside: Spread
    begins: Spread


@dataclass(slots=True)
class Read:
    """What training rows are and show.

    Which are to be refused, and which are general ones; their weights; how many pieces each has; how states spread before the last norm; their mean length at
    the last place; what places see.
    """

    refuse: torch.Tensor
    general: torch.Tensor
    weights: torch.Tensor
    pieces: torch.Tensor
    last: Spread
    length: float
    seen: list[Seen]


class Spread:
    """Mean and covariance of states that come a few at a time, in float64 until they are given."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count: int = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, states: torch.Tensor) -> None:
        """Take in states, (places, size)."""
        states = states.cpu().double()
        self.count, self.total, self.squares = self.count + len(states), self.total + states.sum(0), self.squares + states.T @ states

    def mean(self) -> torch.Tensor:
        """What it is by now, (size,), float64."""
        found: torch.Tensor = self.total / self.count
        return found

    def about(self, middle: torch.Tensor) -> torch.Tensor:
        """The mean outer product of what states differ by from `middle` with itself, (size, size), float64."""
        mean = self.mean()
        found: torch.Tensor = self.squares / self.count - torch.outer(mean, middle) - torch.outer(middle, mean) + torch.outer(middle, middle)
        return found

    def covariance(self) -> torch.Tensor:
        """What it is by now, (size, size), float32."""
        return self.about(self.mean()).float()


@torch.no_grad()
def give_reading_heads(
    model: Any, places: Sequence[Place], groups: Sequence[Group], section: TuningSection, compute: Compute, progress: Progress = lambda *_: None
) -> list[torch.Tensor]:
    """Write the heads into a fresh adapter; gives the direction that each reads off what enters its layer's attention, (size,).

    An empty list, and nothing is written, where training rows show no difference to read, or states that are no numbers.

    Args:
        model: with the adapter, in the layout that `compute` wants.
        places: which layers, from the lowest up, as the adapter's ranks allow for.
        groups: training rows.
        section: the recipe's.
        compute: the layout.
        progress: told how many passes are done.
    """
    decoder = model.base_model.model.get_decoder()
    passes = fit_passes(groups, section.max_batch_tokens, compute)
    read = _read(model, places, passes, compute, progress)
    told = ~read.general & (read.weights.cpu() > 0)  # general rows are no documents: nothing is to be written for them, whatever they are
    if len(set(read.refuse[told].tolist())) < 2:
        return []
    if not all(bool(torch.isfinite(one).all()) for one in (read.last.squares, *(states for seen in read.seen for states in (seen.means, seen.answers)))):
        return []
    owner = torch.repeat_interleave(torch.arange(len(told)), read.pieces)
    features = [(one.pieces[told[owner]], left_out(harmless(one, read.refuse, read.general), one.around)) for one in read.seen]
    found = reading_directions(features, read.refuse[told], read.weights[told], read.pieces[told])
    parts = [one.means @ reads for one, reads in zip(read.seen, found, strict=True)]
    score = torch.stack(parts).sum(0)
    spread = float(score[told].std())
    if not spread > 0:
        return []
    direction = unseen_direction(model, read.last.covariance(), places[0].layer)
    ways, most = zip(*(_way(decoder.layers[place.layer], direction, seen.given) for place, seen in zip(places, read.seen, strict=True)), strict=True)
    loud = min(LOUD * read.length / spread, *(limit / max(float(part[told].std()), 1e-9) for limit, part in zip(most, parts, strict=True)))
    chosen = [int(missed(model, place, passes, compute, progress).argmin()) for place in places]
    for place, seen, number, reads, way in zip(places, read.seen, chosen, found, ways, strict=True):
        attention, asks = decoder.layers[place.layer].self_attn, None
        if place.normed:  # as long as the head's queries were, so that rounding is small beside it
            were = attention.q_proj.weight.float()[rows_of(number, place.size)]
            asks = steady_direction([seen.begins, seen.inside]).to(were.device) * (were @ seen.begins.mean().float().to(were.device)).norm()
        write_head(attention, place.size, number, reads, loud * way, asks)
    return found


def _read(model: Any, places: Sequence[Place], passes: Sequence[Sequence[Group]], compute: Compute, progress: Progress) -> Read:
    decoder = model.base_model.model.get_decoder()
    found: dict[str, Any] = {}
    hooks = [
        decoder.norm.register_forward_pre_hook(lambda _, given: found.update(last=given[0])),
        decoder.layers[places[-1].layer].register_forward_pre_hook(lambda _, given: found.update(entering=given[0])),
    ]
    for place in places:
        attention, number = decoder.layers[place.layer].self_attn, place.layer
        hooks.append(attention.q_proj.register_forward_pre_hook(lambda _, given, number=number: found.update({f"states {number}": given[0]})))
        hooks.append(attention.o_proj.register_forward_hook(lambda _, given, gave, number=number: found.update({f"gave {number}": gave})))
    refuse, general, weights, lengths, last = [], [], [], [], Spread()
    counts: list[int] = []
    parts: list[tuple[_Some, _Some, _Some, _Some, Spread, Spread, Spread]] = [([], [], [], [], Spread(), Spread(), Spread()) for _ in places]
    try:
        for done, one in enumerate(passes):
            progress("what tells intent: passes", done, len(passes))
            batch = batch_of(model, one, compute)
            decoder(**forward_inputs(batch), use_cache=False)
            prompts, documents = batch["prompts"], batch["documents"]
            ends = torch.tensor([int(prompt[-1]) for prompt in prompts], device=model.device)
            texts = [document if len(document) else prompt for prompt, document in zip(prompts, documents, strict=True)]
            framed = [prompt[~torch.isin(prompt, document)] for prompt, document in zip(prompts, documents, strict=True) if len(document)]
            frames = torch.cat([ends.new_empty(0, device="cpu"), *framed])  # places of a pass are on the CPU
            cut = [text.chunk(max(1, round(len(text) / PIECE))) for text in texts]
            counts += map(len, cut)
            for place, (means, pieces, answers, given, around, inside, begins) in zip(places, parts, strict=True):
                states = found[f"states {place.layer}"].flatten(0, -2)
                means += [states[text].float().mean(0) for text in texts]
                pieces.append(torch.stack([states[piece].float().mean(0) for some in cut for piece in some]).cpu())
                answers += [states[answer].float().mean(0) for answer in batch["answers"]]
                given.append(found[f"gave {place.layer}"].flatten(0, -2)[ends].float().norm(dim=-1))
                around.add(states[frames])
                if place.normed:
                    inside.add(states[torch.cat([text[::SOME] for text in texts])])
                    begins.add(states[ends])
            lengths.append(found["entering"].flatten(0, -2)[ends].float().norm(dim=-1))
            usual = torch.cat([prompt[1:] for prompt in prompts])[::SOME]  # in many models a text's first state is a thing of its own, and huge
            last.add(found["last"].flatten(0, -2)[usual])
            refuse += [term == DEFENSE for term in batch["terms"]]
            general += [term == GENERAL for term in batch["terms"]]
            weights.append(batch["factors"])
    finally:
        for hook in hooks:
            hook.remove()
    seen = [
        Seen(torch.stack(means), torch.cat(pieces), torch.stack(answers), float(torch.cat(given).mean()), *spreads)
        for means, pieces, answers, given, *spreads in parts
    ]
    return Read(torch.tensor(refuse), torch.tensor(general), torch.cat(weights), torch.tensor(counts), last, float(torch.cat(lengths).mean()), seen)


def harmless(seen: Seen, refuse: torch.Tensor, general: torch.Tensor) -> torch.Tensor:
    """For what nothing is to be written: the mean benign document, the mean answer to one, and the means of general prompts and their answers, (some, size)."""
    benign = ~refuse & ~general
    given = [(seen.means, benign), (seen.answers, benign), (seen.means, general), (seen.answers, general)]
    return torch.stack([states[rows].mean(0) for states, rows in given if rows.any()])


def missed(model: Any, place: Place, passes: Sequence[Sequence[Group]], compute: Compute, progress: Progress) -> torch.Tensor:
    """The mean nll of benign answers, in nats a token, with one head of a place after the other silent, (heads,); of about ENOUGH, or all."""
    decoder = model.base_model.model.get_decoder()
    attention, size = decoder.layers[place.layer].self_attn, place.size
    benign = [sum(row.term != DEFENSE for group in one for row in group.rows) for one in passes]
    some = [one for one, count in zip(passes, benign, strict=True) if count]
    some = some[:: max(1, min(len(some) // 2, sum(benign) // ENOUGH))]
    found, seen = torch.zeros(attention.o_proj.in_features // size), 0
    for done, one in enumerate(some):
        progress("which heads are missed least: passes", done, len(some))
        batch = batch_of(model, one, compute)
        answers = torch.tensor([term != DEFENSE for term in batch["terms"]], device=model.device)
        seen += int(answers.sum())
        with from_layer(decoder, place.layer, batch) as begun:  # what is below is the same for all its heads
            for head in range(len(found)):
                silent = attention.o_proj.register_forward_pre_hook(lambda _, given, head=head: _without(given[0], rows_of(head, size)))
                try:
                    found[head] += example_nll(model, begun)[0][answers].sum().cpu()
                finally:
                    silent.remove()
    return found / max(1, seen)


def _without(states: torch.Tensor, some: slice) -> torch.Tensor:
    silent = states.clone()
    silent[..., some] = 0
    return silent


def batch_of(model: Any, groups: Sequence[Group], compute: Compute) -> dict[str, Any]:
    """A pass as `pass_of` gives it, on the model's device."""
    return {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in pass_of(groups, compute=compute, pad=0).items()}


def _way(layer: Any, direction: torch.Tensor, given: float) -> tuple[torch.Tensor, float]:
    if (behind := norm_behind(layer)) is None:
        return direction, float("inf")
    scale = scale_of(behind)
    assert scale is not None, "a place has known norms only"
    return through_norm(direction, scale, given)


def through_norm(direction: torch.Tensor, scale: torch.Tensor, given: float) -> tuple[torch.Tensor, float]:
    """What to write in front of a norm so that behind it a direction is added, nearly, and how loud that may be behind it.

    Nearly: the norm divides by the length of all that attention gives, which what is written adds to; so in front it is to be BESIDE of that at most.

    Args:
        direction: unit, (size,).
        scale: what the norm multiplies with, (size,).
        given: the mean length of what attention gives.
    """
    before = direction / torch.where(scale.abs() < 0.05 * scale.abs().mean(), torch.inf, scale).to(direction.device) * given / len(scale) ** 0.5
    return before, BESIDE * given / float(before.norm())


def left_out(means: torch.Tensor, around: Spread) -> torch.Tensor:
    """Directions that nothing is to be read from, orthonormal columns (size, some).

    Those of means of what is harmless: whatever they gave would be written beside every such text and disturb the model for nothing. And in what the states of
    instructions and chat template differ from the first of them (the FRAMES strongest directions): heads see them too, some of them are huge, and else a long
    document would be read otherwise than a short one.

    Args:
        means: of states of what is harmless, (some, size), that of documents first.
        around: the states of what stands around documents.
    """
    size = means.shape[1]
    always = _orthonormal(means)
    if not around.count:
        return always
    clear = torch.eye(size, device=always.device) - always @ always.T
    differ = clear @ around.about(means[0].cpu().double()).float().to(always.device) @ clear
    strengths, directions = torch.linalg.eigh(differ)  # the strongest last
    strong = strengths > (1e-6 * means.norm(dim=1).max()) ** 2
    strong[: size - min(FRAMES, size // 16)] = False
    return torch.cat([always, directions[:, strong]], 1)


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """Columns that span what rows do, (size, some)."""
    _, strengths, directions = torch.linalg.svd(rows, full_matrices=False)
    found: torch.Tensor = directions[strengths > 1e-5 * strengths.max()].T
    return found


def reading_directions(
    features: Sequence[tuple[torch.Tensor, torch.Tensor]], refuse: torch.Tensor, weights: torch.Tensor, pieces: torch.Tensor
) -> list[torch.Tensor]:
    """The directions that together tell pieces of the rows to refuse from those of all others best, by one logistic regression; both sides weigh the same.

    Args:
        features: for each head, what it sees of the pieces, row by row, (pieces, size), and directions that it may not read, see `left_out`.
        refuse: boolean (rows,).
        weights: (rows,), relative within a side; a row's pieces share its weight.
        pieces: how many each row has, (rows,).

    Returns:
        For each head, (size,), float32, on what it sees as it is.
    """
    from sklearn.linear_model import LogisticRegression

    seen = [(one.to(nothing.device), nothing) for one, nothing in features]
    inside = torch.cat([one - (one @ nothing) @ nothing.T for one, nothing in seen], 1)
    truth, spread = refuse.cpu().numpy(), torch.cat([one.std(0) for one, _ in seen]).clamp(min=1e-6)
    shares = weights.double().cpu().numpy().copy()
    for side in (truth, ~truth):
        shares[side] *= len(truth) / 2 / max(float(shares[side].sum()), 1e-9)
    counts = pieces.numpy()
    each = (shares / counts).repeat(counts)
    fitted = LogisticRegression(C=C, max_iter=1000).fit(((inside - inside.mean(0)) / spread).cpu().numpy(), truth.repeat(counts), sample_weight=each)
    found = (torch.tensor(fitted.coef_[0], dtype=torch.float32, device=spread.device) / spread).view(len(features), -1)
    return [reads - nothing @ (nothing.T @ reads) for reads, (_, nothing) in zip(found, seen, strict=True)]


def steady_direction(states: Sequence[Spread]) -> torch.Tensor:
    """The direction whose product with all these states is as near to 1 as a ridge regression gets it, (size,), float32; each spread counts the same."""
    square = torch.stack([one.about(torch.zeros_like(one.total)) for one in states]).mean(0)
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    found: torch.Tensor = torch.linalg.solve(square + ridge, torch.stack([one.mean() for one in states]).mean(0))
    return found.float()
