"""Neurons that read: what they are fitted on, and how.

What neurons read of a text is no weighted sum of its states: each opens for one thing and lets through another. So they tell documents apart that no direction
of the same states does, gain from more documents for longer, and need no second layer (docs/lab-log.md, "Neurons that read"). They are fitted so that their
mean over a text's tokens tells malicious from benign documents; on parts of texts by chance, so that no part decides alone, and on texts of which another,
harmless text makes up a part, for malicious passages stand in long documents, too.
A mean of a function of each part: Deep Sets, arXiv 1703.06114.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

EPOCHS, STEPS, TEXTS, RATE = 8, 300, 64, 1e-3  # passes over texts, more where they are fewer steps than so many, texts a step, Adam's learning rate
PART = 0.1  # a step sees of each text's tokens a part by chance, at least this share
OWN = 0.25  # of what a document shares with a harmless one at least this share is its own
CALM = -2.0  # log-odds of harm of a text that neurons read nothing in
ASIDE = 0.25  # weight of what is no document, where neurons are to read nothing, beside documents
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Read:
    """What training rows show where neurons read, row by row.

    Some states of each document (of all of a prompt that has none), of each benign answer, and of what stands around documents, (tokens, size); which rows are
    to be refused, and which are general ones; their weights; the mean states of documents and of answers, (rows, size). And of all rows together: the mean
    square of what each neuron gives, (neurons,); the mean length of what the MLP gives, and of the states behind it.
    """

    texts: list[torch.Tensor] = field(default_factory=list)
    answers: list[torch.Tensor] = field(default_factory=list)
    frames: list[torch.Tensor] = field(default_factory=list)
    refuse: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    general: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    means: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    answer_means: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    neurons: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    given: float = 0.0
    length: float = 0.0

    @property
    def told(self) -> torch.Tensor:
        """Which rows tell documents apart: general ones are none, whatever they are."""
        return ~self.general & (self.weights > 0)


@dataclass(frozen=True, slots=True)
class Neurons:
    """What neurons read: each lets `ups` @ state through as far as `gates` @ state opens it, and counts `counts` times, (neurons, size) and (neurons,)."""

    gates: torch.Tensor
    ups: torch.Tensor
    counts: torch.Tensor

    def on(self, device: torch.device) -> Neurons:
        """The same on a device."""
        return Neurons(self.gates.to(device), self.ups.to(device), self.counts.to(device))

    def read(self, states: torch.Tensor, opened: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What they read of each state, (..., size) to (...,)."""
        found: torch.Tensor = (opened(states @ self.gates.T) * (states @ self.ups.T)) @ self.counts
        return found


def harmless(means: torch.Tensor, answers: torch.Tensor, refuse: torch.Tensor, general: torch.Tensor) -> torch.Tensor:
    """What is as it always is: the mean benign document, the mean answer to one, and the means of general prompts and their answers, (some, size)."""
    benign = ~refuse & ~general
    given = [(means, benign), (answers, benign), (means, general), (answers, general)]
    return torch.stack([states[rows.to(states.device)].mean(0) for states, rows in given if rows.any()])


def fit_neurons(read: Read, nothing: torch.Tensor, count: int, opened: Callable[[torch.Tensor], torch.Tensor], progress: Progress = lambda *_: None) -> Neurons:
    """Neurons whose mean over a text's tokens tells documents to refuse from all others, as log-odds above CALM; both sides weigh the same.

    Each document counts twice, by itself and beside a harmless one. In general prompts, in benign answers and around documents neurons are to read nothing:
    that is squared, ASIDE as much in all as documents.

    Args:
        read: training rows.
        nothing: directions that are not read, orthonormal columns, see `left_out`.
        count: of neurons.
        opened: what gates them, of any shape.
        progress: told how many steps are done.
    """
    device = nothing.device
    texts, wanted, weights = _lessons(read)
    wanted, weights = wanted.to(device), weights.to(device)
    documents = int(read.told.sum())
    scale = torch.stack([_clear(one.to(device).float(), nothing).square().mean(0) for one in texts[:documents]]).mean(0).sqrt().clamp(min=1e-6)
    draw, size = torch.Generator().manual_seed(0), len(scale)
    gates, ups = (torch.randn(count, size, generator=draw).div(size**0.5).to(device).requires_grad_() for _ in range(2))
    counts = torch.randn(count, generator=draw).div(10).to(device).requires_grad_()
    search = torch.optim.Adam([gates, ups, counts], lr=RATE)

    def as_they_are() -> Neurons:
        return Neurons(_clear(gates / scale, nothing), _clear(ups / scale, nothing), counts)

    a_pass = -(-len(texts) // TEXTS)
    epochs = max(EPOCHS, -(-STEPS // a_pass))
    for epoch in range(epochs):
        for step, chosen in enumerate(torch.randperm(len(texts), generator=draw).split(TEXTS)):  # type: ignore[no-untyped-call]
            progress("neurons that read: steps", epoch * a_pass + step, epochs * a_pass)
            some = [texts[one] for one in chosen.tolist()]
            lots = pad_sequence([torch.rand(len(one), generator=draw) for one in some], batch_first=True, padding_value=torch.inf)
            seen = (lots < PART + (1 - PART) * torch.rand(len(some), 1, generator=draw)) | (lots == lots.amin(1, keepdim=True))
            share = (seen / seen.sum(1, keepdim=True)).to(device)
            states = pad_sequence(some, batch_first=True).to(device).float()
            chosen = chosen.to(device)
            with torch.enable_grad():
                score = (as_they_are().read(states, opened) * share).sum(1)
                truth = wanted[chosen]
                told = sum(
                    binary_cross_entropy_with_logits(one + CALM, truth.nan_to_num(), reduction="none") for one in (score, _beside_harmless(score, truth, draw))
                )
                loss = (weights[chosen] * torch.where(truth.isnan(), score.square() / 2, told)).mean()
                search.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            search.step()
    with torch.no_grad():
        found = as_they_are()
    return Neurons(found.gates, found.ups, found.counts.detach())


def _beside_harmless(score: torch.Tensor, truth: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Scores of texts that share their place with a harmless one of them, by chance: a mean over both is a mean of both means."""
    harmless = (truth == 0).nonzero()[:, 0]
    if not len(harmless):
        return score
    others = harmless[torch.randint(len(harmless), (len(score),), generator=draw).to(score.device)]
    own = OWN + (1 - OWN) * torch.rand(len(score), generator=draw).to(score.device)
    return own * score + (1 - own) * score[others]


def _lessons(read: Read) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Texts of states to fit on, documents first; whether each is to be refused, not a number where nothing is to be read; and weights, 1 a document."""
    texts = [states for states, one in zip(read.texts, read.told, strict=True) if one]
    wanted, weights = read.refuse[read.told].float(), read.weights[read.told].float()
    for side in (wanted > 0, wanted == 0):
        weights[side] *= len(texts) / 2 / weights[side].sum()
    aside = [states for states in [*read.answers, *read.frames] if len(states)] + [states for states, one in zip(read.texts, read.general, strict=True) if one]
    aside = [aside[one] for one in torch.randperm(len(aside), generator=torch.Generator().manual_seed(0))[: len(texts)].tolist()]  # more of it teaches no more
    share = ASIDE * len(texts) / max(1, len(aside))
    return texts + aside, torch.cat([wanted, torch.full((len(aside),), torch.nan)]), torch.cat([weights, torch.full((len(aside),), share)])


def _clear(rows: torch.Tensor, nothing: torch.Tensor) -> torch.Tensor:
    """States, or what reads them, without what is not to be read."""
    return rows - (rows @ nothing) @ nothing.T


def left_out(means: torch.Tensor) -> torch.Tensor:
    """Directions that nothing is to be read from, those of means of what is harmless, orthonormal columns (size, some): for these neurons read nothing."""
    _, strengths, directions = torch.linalg.svd(means, full_matrices=False)
    found: torch.Tensor = directions[strengths > 1e-5 * strengths.max()].T
    return found
