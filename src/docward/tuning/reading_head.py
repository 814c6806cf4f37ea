"""Neurons that read and a head that averages get a new job: to bring what the text says of intent to where the answer begins.

In: a model with a fresh adapter and the training rows. Out: adapter weights under which some neurons of a middle layer read each token (`neurons.py`), and a
head in the layer above looks at all it may see alike, takes the mean of what they read, and writes it along the direction that the rest of the model heeds
least. They are fitted with the model left as it is. The neurons are those of their layer that give least, the head the one that benign answers miss least;
heads that share values with it lose a direction of values for it (`head_weights.py`). Heads that are missed little can go: arXiv 1905.10650.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from docward import processes
from docward.recipe import TuningSection
from docward.tuning.frozen import entering, from_layer
from docward.tuning.head_weights import Place, norm_behind, rows_of, scale_of, unseen_direction, write_head, write_neurons
from docward.tuning.losses import DEFENSE, GENERAL, example_nll, forward_inputs
from docward.tuning.neurons import Progress, Read, fit_neurons, harmless, left_out
from docward.tuning.packing import Compute, Group, fit_passes, pass_of

TOKENS = 64  # of a text, by chance, that neurons are fitted on
AROUND = 16  # the same of what stands around a document
WHISPER = 0.12  # spread of what neurons write, as a share of the length of states in their layer
LOUD = 0.06  # spread of what the head writes, as a share of the length of states before the last norm
BESIDE = 0.25  # where a norm stands behind a block: the spread of what is written is at most this share of the length of what the block gives
ENOUGH = 48  # documents and prompts with benign answers that show which head is missed least
FEW = 10  # passes that go through the whole model, or a few more
SOME = 7  # one place in so many is kept, where all would be too many


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


@dataclass(slots=True)
class Heard:
    """What some rows show where the head is and behind it.

    How states spread that enter its layer, and that enter the last norm; the mean length of the former, and where answers begin of the latter and of what the
    layer's attention gives; and, where queries go through a norm, how the states spread that they are made of, inside texts and where answers begin.
    """

    entering: Spread = field(default_factory=Spread)
    last: Spread = field(default_factory=Spread)
    length: float = 0.0
    last_length: float = 0.0
    given: float = 0.0
    inside: Spread = field(default_factory=Spread)
    begins: Spread = field(default_factory=Spread)


@torch.no_grad()
def give_reading_head(
    model: Any, place: Place, groups: Sequence[Group], section: TuningSection, compute: Compute, progress: Progress = lambda *_: None
) -> torch.Tensor | None:
    """Write neurons and head into a fresh adapter; gives the direction that the head reads off what enters its layer's attention, (size,).

    None, and nothing is written, where training rows show no difference to read, or states that are no numbers.

    Args:
        model: with the adapter, in the layout that `compute` wants.
        place: which layers, as the adapter's ranks allow for.
        groups: training rows.
        section: the recipe's.
        compute: the layout.
        progress: told how many passes are done.
    """
    layers = model.base_model.model.get_decoder().layers
    below, layer = layers[place.reading], layers[place.layer]
    passes = fit_passes(groups, section.max_batch_tokens, compute)
    read = _read(model, place, passes, compute, progress)
    heard = _heard(model, place, passes[:: max(1, len(passes) // FEW)], compute, progress)
    if len(set(read.refuse[read.told].tolist())) < 2 or not all(bool(torch.isfinite(one).all()) for one in (read.means, read.answer_means, heard.last.squares)):
        return None
    nothing = left_out(harmless(read.means, read.answer_means, read.refuse, read.general))
    neurons = processes.on_main(lambda: fit_neurons(read, nothing, place.neurons, below.mlp.act_fn, progress)).on(nothing.device)
    each = [neurons.read(states.to(nothing.device).float(), below.mlp.act_fn) for states in read.texts]
    score = torch.stack([one.mean() for one in each])[read.told.to(nothing.device)]
    if not float(score.std()) > 0:
        return None
    # Along the carrier states are to be next to nothing, not just alike: what they are there the head would write beside every text.
    carrier = unseen_direction(model, heard.entering.about(torch.zeros_like(heard.entering.total)).float(), place.reading, behind="mlp")
    direction = unseen_direction(model, heard.last.covariance(), place.layer, behind="self_attn", beside=carrier)
    to_carry, most = _way(norm_behind(below, "mlp"), carrier, read.given)
    whisper = min(WHISPER * read.length, most) / float(torch.cat(each).std())
    to_write, most = _way(norm_behind(layer), direction, heard.given)
    loud = min(LOUD * heard.last_length, most) / float(score.std())
    reads: torch.Tensor = before_norm(carrier, scale_of(layer.input_layernorm)) * heard.length / len(carrier) ** 0.5 / whisper
    number = int(missed(model, place, groups, section, compute, progress).argmin())
    asks = None
    if place.normed:  # as long as the head's queries were, so that rounding is small beside it
        were = layer.self_attn.q_proj.weight.float()[rows_of(number, place.size)]
        asks = steady_direction([heard.begins, heard.inside]).to(were.device) * (were @ heard.begins.mean().float().to(were.device)).norm()
    written = whisper * torch.outer(to_carry, neurons.counts.to(to_carry.device))
    write_neurons(below.mlp, read.neurons.argsort()[: place.neurons], neurons.gates, neurons.ups, written)
    write_head(layer.self_attn, place.size, number, reads, loud * to_write, asks)
    return reads


@contextmanager
def _kept(**places: tuple[torch.nn.Module, str]) -> Iterator[dict[str, torch.Tensor]]:
    """What modules take (`takes`) or give (`gives`) in the pass before, flat, by name."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, states: Any) -> None:
        found[name] = states.flatten(0, -2)

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: keep(name, given[0]))
        if what == "takes"
        else module.register_forward_hook(lambda _, given, gave, name=name: keep(name, gave))
        for name, (module, what) in places.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _read(model: Any, place: Place, passes: Sequence[Sequence[Group]], compute: Compute, progress: Progress) -> Read:
    decoder = model.base_model.model.get_decoder()
    mlp, read, draw = decoder.layers[place.reading].mlp, Read(), torch.Generator().manual_seed(0)
    means, answers, weights, terms = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor](), list[str]()
    given, lengths, squares, seen = list[torch.Tensor](), list[torch.Tensor](), torch.zeros(mlp.down_proj.in_features), 0
    with _kept(states=(mlp.gate_proj, "takes"), opened=(mlp.down_proj, "takes"), gave=(mlp, "gives")) as found:
        for done, one in enumerate(passes):
            progress("what tells intent: passes", done, len(passes))
            batch = batch_of(model, one, compute)
            behind = entering(decoder, decoder.layers[place.reading + 1], **forward_inputs(batch)).flatten(0, -2)
            states, prompts, documents = found["states"], batch["prompts"], batch["documents"]
            texts = [document if len(document) else prompt for prompt, document in zip(prompts, documents, strict=True)]
            means += [states[text].float().mean(0) for text in texts]
            answers += [states[answer].float().mean(0) for answer in batch["answers"]]
            for text, answer, term in zip(texts, batch["answers"], batch["terms"], strict=True):
                some, said = (part[torch.randperm(len(part), generator=draw)[:TOKENS]] for part in (text, answer[: 0 if term == DEFENSE else None]))
                read.texts.append(states[some].cpu())
                read.answers.append(states[said].cpu())
            framed = [prompt[~torch.isin(prompt, document)] for prompt, document in zip(prompts, documents, strict=True) if len(document)]
            read.frames += [states[around[torch.randperm(len(around), generator=draw)[:AROUND]]].cpu() for around in framed]
            usual = _usual(prompts)
            squares, seen = squares + found["opened"][usual].float().square().sum(0).cpu(), seen + len(usual)
            given.append(found["gave"][usual].float().norm(dim=-1))
            lengths.append(behind[usual].float().norm(dim=-1))
            terms += batch["terms"]
            weights.append(batch["factors"].cpu())
    read.refuse, read.general = (torch.tensor([term == which for term in terms]) for which in (DEFENSE, GENERAL))
    read.means, read.answer_means, read.weights = torch.stack(means), torch.stack(answers), torch.cat(weights)
    read.neurons = squares / seen * mlp.down_proj.weight.detach().float().square().sum(0).cpu()
    read.given, read.length = (float(torch.cat(some).mean()) for some in (given, lengths))
    return read


def _usual(prompts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Some places of prompts, without their first: in many models a text's first state is a thing of its own, and huge."""
    return torch.cat([prompt[1:] for prompt in prompts])[::SOME]


def _heard(model: Any, place: Place, passes: Sequence[Sequence[Group]], compute: Compute, progress: Progress) -> Heard:
    decoder = model.base_model.model.get_decoder()
    layer, heard = decoder.layers[place.layer], Heard()
    lengths = [list[torch.Tensor]() for _ in range(3)]
    with _kept(entering=(layer, "takes"), asked=(layer.self_attn.q_proj, "takes"), gave=(layer.self_attn.o_proj, "gives")) as found:
        for done, one in enumerate(passes):
            progress("where the head is to be: passes", done, len(passes))
            batch = batch_of(model, one, compute)
            last = entering(decoder, decoder.norm, **forward_inputs(batch)).flatten(0, -2)
            usual, ends = _usual(batch["prompts"]), torch.tensor([int(prompt[-1]) for prompt in batch["prompts"]])
            heard.entering.add(found["entering"][usual])
            heard.last.add(last[usual])
            for some, states in zip(lengths, (found["entering"][usual], last[ends], found["gave"][ends]), strict=True):
                some.append(states.float().norm(dim=-1))
            if place.normed:
                heard.inside.add(found["asked"][usual])
                heard.begins.add(found["asked"][ends])
    heard.length, heard.last_length, heard.given = (float(torch.cat(some).mean()) for some in lengths)
    return heard


def missed(model: Any, place: Place, groups: Sequence[Group], section: TuningSection, compute: Compute, progress: Progress) -> torch.Tensor:
    """The mean nll of benign answers, in nats a token, with one head of a place after the other silent, (heads,); of ENOUGH groups by chance, or all.

    By chance, as what is missed differs: some heads copy what a document says, which answers to short prompts do without (docs/lab-log.md).
    """
    decoder = model.base_model.model.get_decoder()
    attention, size = decoder.layers[place.layer].self_attn, place.size
    benign = [group for group in groups if any(row.term != DEFENSE for row in group.rows)]
    some = fit_passes(Random(0).sample(benign, min(len(benign), ENOUGH)), section.max_batch_tokens, compute)
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


def _way(norm: Any, direction: torch.Tensor, given: float) -> tuple[torch.Tensor, float]:
    if norm is None:
        return direction, float("inf")
    scale = scale_of(norm)
    assert scale is not None, "a place has known norms only"
    return through_norm(direction, scale, given)


def through_norm(direction: torch.Tensor, scale: torch.Tensor, given: float) -> tuple[torch.Tensor, float]:
    """What to write in front of a norm so that behind it a direction is added, nearly, and how loud that may be behind it.

    Nearly: the norm divides by the length of all that its block gives, which what is written adds to; so in front it is to be BESIDE of that at most.

    Args:
        direction: unit, (size,).
        scale: what the norm multiplies with, (size,).
        given: the mean length of what the block gives.
    """
    before = before_norm(direction, scale) * given / len(scale) ** 0.5
    return before, BESIDE * given / float(before.norm())


def before_norm(direction: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """A direction divided by what a norm multiplies with; where that is next to nothing, nothing."""
    assert scale is not None, "a place has known norms only"
    return direction / torch.where(scale.abs() < 0.05 * scale.abs().mean(), torch.inf, scale).to(direction.device)


def steady_direction(states: Sequence[Spread]) -> torch.Tensor:
    """The direction whose product with all these states is as near to 1 as a ridge regression gets it, (size,), float32; each spread counts the same."""
    square = torch.stack([one.about(torch.zeros_like(one.total)) for one in states]).mean(0)
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    found: torch.Tensor = torch.linalg.solve(square + ridge, torch.stack([one.mean() for one in states]).mean(0))
    return found.float()
