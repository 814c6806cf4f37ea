"""A head that reads: one attention head of a late layer gets a new job, to bring what the whole text says of intent to where the answer begins.

In: a model with a fresh adapter and the training rows. Out: adapter weights, found without a gradient step, under which that head attends to all it may see
alike, reads off a direction that tells malicious from benign documents in their mean state (a logistic regression), and writes it along a direction that the
rest of the model heeds least; and the direction along which it is heard, for the refusal token's row. The mean over a document tells intent far better than
the last state does (`bench/probing.py`). The head is the one of its layer whose own work is the smallest; heads that share its values lose one direction of
them, the one they use least; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from docward.recipe import TuningSection
from docward.tuning.losses import DEFENSE, forward_inputs
from docward.tuning.packing import Compute, Group, fit_passes, pass_of

C = 0.01  # inverse penalty of the logistic regression, on states of unit variance
LOUD = 0.08  # spread of what is written, as a share of the state's length
FRAMES = 8  # directions of instructions and chat template that are not read
SOME = 7  # one place in so many is kept, where all would be too many
STILL = 100.0  # how much a direction's own spread counts against it, beside what later layers and the logits make of it
RIDGE = 10.0  # penalty of the linear regression that listens, on states of unit variance
PARTS = ("q_proj", "v_proj", "o_proj")
# What reads the residual stream: a norm, the block behind it, and the block's projections.
READERS = (("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj")), ("post_attention_layernorm", "mlp", ("gate_proj", "up_proj")))
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Which layer has the head, and the size of a head."""

    layer: int
    size: int

    def ranks(self, rank: int) -> dict[str, int]:
        """LoRA ranks of the layer's projections, as PEFT takes them: those of the recipe, and what the head takes."""
        taken = {"q_proj": self.size, "v_proj": 1, "o_proj": self.size}
        return {rf"layers\.{self.layer}\.self_attn\.{part}": rank + more for part, more in taken.items()}


def reading_place(model: Any, section: TuningSection) -> Place | None:
    """Where a head can be given the job: in the last layer but one, or the last before it that sees whole texts.

    None where a layer is not of the kind known here (separate projections without a bias on queries and no norm on them; one norm before attention and one
    before a gated MLP, each a product with its weight), or the recipe does not adapt what a head takes.
    """
    config = model.config.get_text_config()
    everywhere = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [everywhere] * int(config.num_hidden_layers)
    layers = getattr(model.get_decoder(), "layers", None)
    if section.use_dora or section.lora_dropout or not isinstance(layers, torch.nn.ModuleList):
        return None
    for number in range(len(layers) - 2, section.lora_first_layer - 1, -1):
        attention: Any = getattr(layers[number], "self_attn", None)
        parts = [getattr(attention, part, None) for part in PARTS]
        linear: list[Any] = [getattr(part, "base_layer", part) for part in parts]  # adapted or not
        if kinds[number] == "full_attention" and all(type(one) is torch.nn.Linear for one in linear):
            known = linear[0].bias is None and not hasattr(attention, "q_norm")
            known = known and _plain(model.get_decoder().norm) and all(map(_known, layers[number:]))
            wanted = section.lora_target_modules
            return Place(number, int(attention.head_dim)) if known and (wanted == "all-linear" or set(PARTS) <= set(wanted)) else None
    return None


def _known(layer: Any) -> bool:
    parts = [getattr(getattr(layer, block, None), part, None) for _, block, names in READERS for part in names]
    return None not in parts and not hasattr(layer, "pre_feedforward_layernorm") and all(_plain(getattr(layer, norm, None)) for norm, *_ in READERS)


def _plain(norm: Any) -> bool:
    """Whether a norm multiplies by its weight and does nothing else to a state of length one a component."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return False
    with torch.no_grad():
        return bool(torch.allclose(norm(torch.ones_like(weight)), weight, rtol=0.02, atol=1e-3))


@dataclass(slots=True)
class Read:
    """What training rows show.

    Each row's mean state over its document (over all of its prompt, where it has none), and over what stands around it (rows, size); whether it is to be
    refused; its weight; the mean length of each head's output (heads,); the mean length of a state at the layer; the covariance of states before the last norm
    (size, size).
    """

    means: torch.Tensor
    frames: torch.Tensor
    refuse: torch.Tensor
    weights: torch.Tensor
    work: torch.Tensor
    length: float
    spread: torch.Tensor


class Spread:
    """The covariance of states that come a few at a time, (size, size), in float64 until it is given."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count: int = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, states: torch.Tensor) -> None:
        """Take in states, (places, size)."""
        states = states.cpu().double()
        self.count, self.total, self.squares = self.count + len(states), self.total + states.sum(0), self.squares + states.T @ states

    def covariance(self) -> torch.Tensor:
        """What it is by now, float32."""
        mean = self.total / self.count
        found: torch.Tensor = (self.squares / self.count - torch.outer(mean, mean)).float()
        return found


@torch.no_grad()
def give_reading_head(
    model: Any, place: Place, groups: Sequence[Group], section: TuningSection, compute: Compute, progress: Progress = lambda *_: None
) -> torch.Tensor | None:
    """Write the head into a fresh adapter; gives the direction of the output layer's input along which it is heard, (size,), float32.

    None, and nothing is written, where training rows show no difference to read.

    Args:
        model: with the adapter, in the layout that `compute` wants.
        place: which layer, as the adapter's ranks allow for.
        groups: training rows.
        section: the recipe's.
        compute: the layout.
        progress: told how many passes are done.
    """
    attention = model.base_model.model.get_decoder().layers[place.layer].self_attn
    passes = fit_passes(groups, section.max_batch_tokens, compute)
    read = _read(model, attention, place, passes, compute, progress)
    if bool(read.refuse.all()) or not bool(read.refuse.any()):
        return None
    wanted = reading_direction(read.means, read.frames, read.refuse, read.weights)
    score = read.means @ wanted
    if not bool(score.std() > 0):
        return None
    head, direction = int(read.work.argmin()), unseen_direction(model, read.spread, place.layer)
    write_head(attention, place.size, head, wanted, direction, loud=LOUD * read.length / float(score.std()))
    states, rows = _answers(model, passes, compute, progress)
    return listening_direction(states, score[rows])


def _read(model: Any, attention: Any, place: Place, passes: Sequence[Sequence[Group]], compute: Compute, progress: Progress) -> Read:
    found: dict[str, torch.Tensor] = {}
    out = attention.o_proj.weight.float().view(-1, attention.o_proj.in_features // place.size, place.size)
    decoder = model.base_model.model.get_decoder()
    hooks = [
        attention.q_proj.register_forward_pre_hook(lambda _, given: found.update(states=given[0])),
        attention.o_proj.register_forward_pre_hook(lambda _, given: found.update(heads=given[0])),
        decoder.layers[place.layer].register_forward_pre_hook(lambda _, given: found.update(entering=given[0])),
        decoder.norm.register_forward_pre_hook(lambda _, given: found.update(last=given[0])),
    ]
    means, frames, refuse, weights, work, lengths, spread = [], [], [], [], [], [], Spread()
    try:
        for done, one in enumerate(passes):
            progress("what tells intent: passes", done, len(passes))
            batch = _batch(model, one, compute)
            decoder(**forward_inputs(batch), use_cache=False)
            states = found["states"].flatten(0, -2)
            for prompt, document in zip(batch["prompts"], batch["documents"], strict=True):
                text, whole = (states[places].float().sum(0) for places in (document, prompt))
                frames.append((whole - text) / (len(prompt) - len(document)))
                means.append(text / len(document) if len(document) else frames[-1])
            ends = torch.tensor([int(prompt[-1]) for prompt in batch["prompts"]], device=states.device)
            heads = found["heads"].flatten(0, -2)[ends].float().view(len(ends), -1, place.size)
            work.append(torch.einsum("nhd,ohd->nho", heads, out).norm(dim=-1))
            lengths.append(found["entering"].flatten(0, -2)[ends].float().norm(dim=-1))
            inside = torch.cat([prompt[1:] for prompt in batch["prompts"]])  # in many models a text's first state is a thing of its own, and huge
            spread.add(found["last"].flatten(0, -2)[inside[::SOME]])
            refuse += [term == DEFENSE for term in batch["terms"]]
            weights.append(batch["factors"])
    finally:
        for hook in hooks:
            hook.remove()
    return Read(
        torch.stack(means),
        torch.stack(frames),
        torch.tensor(refuse),
        torch.cat(weights),
        torch.cat(work).mean(0),
        float(torch.cat(lengths).mean()),
        spread.covariance(),
    )


def _batch(model: Any, groups: Sequence[Group], compute: Compute) -> dict[str, Any]:
    return {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in pass_of(groups, compute=compute, pad=0).items()}


def _answers(model: Any, passes: Sequence[Sequence[Group]], compute: Compute, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the output layer where answers begin and, of benign ones, at every SOME-th later place.

    (places, size), float32; and whose each is, (places,), by the order of rows in the passes.
    """
    found, rows, before = [], [], 0
    for done, one in enumerate(passes):
        progress("how it is heard: passes", done, len(passes))
        batch = _batch(model, one, compute)
        states = model.base_model.model.get_decoder()(**forward_inputs(batch), use_cache=False).last_hidden_state.flatten(0, -2)
        wanted, refused = batch["answer"].clone(), torch.tensor([term == DEFENSE for term in batch["terms"]], device=states.device)
        wanted &= (torch.arange(len(wanted), device=states.device) % SOME == 0) & ~refused[batch["owner"]]
        wanted[batch["first"]] = True
        places = batch["keep"].flatten().nonzero()[:, 0][batch["source"][batch["pair"][wanted]]]
        found.append(states[places].float())
        rows.append(batch["owner"][wanted] + before)
        before += len(refused)
    return torch.cat(found), torch.cat(rows)


def listening_direction(states: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """The direction along which states follow the score best, by ridge regression on the score in units of its spread.

    What is written has to be told from all else that states vary by, so this is not the direction in which it is written.

    Args:
        states: (rows, size).
        score: (rows,).

    Returns:
        (size,), float32.
    """
    spread = states.std(0).clamp(min=1e-6)
    seen, wanted = ((states - states.mean(0)) / spread).cpu().double(), ((score - score.mean()) / score.std().clamp(min=1e-9)).cpu().double()
    found: torch.Tensor = torch.linalg.solve(seen.T @ seen + RIDGE * torch.eye(seen.shape[1], dtype=seen.dtype), seen.T @ wanted)
    return found.float().to(spread.device) / spread


def reading_direction(means: torch.Tensor, frames: torch.Tensor, refuse: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The direction that tells the rows to refuse from all others best, by logistic regression; both sides weigh the same.

    The mean document gives nothing on it: whatever it gave would be written beside every text and disturb the model for nothing. And instructions and chat
    template differ by nothing from the mean document on it (FRAMES directions of theirs are taken out): the head reads them too, and else a long document would
    be read otherwise than a short one.

    Args:
        means: of documents, (rows, size).
        frames: of what stands around them, (rows, size).
        refuse: boolean (rows,).
        weights: (rows,), relative within a side.

    Returns:
        (size,), float32, on `means` as they are.
    """
    from sklearn.linear_model import LogisticRegression

    middle = means.mean(0)
    always = middle / middle.norm().clamp(min=1e-9)
    differ = frames - middle
    _, strengths, directions = torch.linalg.svd(differ - torch.outer(differ @ always, always), full_matrices=False)
    most = min(FRAMES, means.shape[1] // 16)
    around = torch.cat([always.unsqueeze(0), directions[:most][strengths[:most] > 1e-6 * means.norm(dim=1).max()]]).T
    inside = means - (means @ around) @ around.T
    truth, spread = refuse.cpu().numpy(), means.std(0).clamp(min=1e-6)
    shares = weights.double().cpu().numpy().copy()
    for side in (truth, ~truth):
        shares[side] *= len(truth) / 2 / max(float(shares[side].sum()), 1e-9)
    fitted = LogisticRegression(C=C, max_iter=1000).fit(((inside - inside.mean(0)) / spread).cpu().numpy(), truth, sample_weight=shares)
    found = torch.tensor(fitted.coef_[0], dtype=torch.float32, device=means.device) / spread
    clear: torch.Tensor = found - around @ (around.T @ found)
    return clear


@torch.no_grad()
def write_head(attention: Any, size: int, head: int, wanted: torch.Tensor, direction: torch.Tensor, *, loud: float) -> None:
    """Set the adapter so that the head gives `loud * wanted @ mean state` along a direction, and nothing else.

    Its queries become 0, so that it attends to all alike; its old output is taken away; one direction of its values (the one that heads which share them use
    least) carries what is read.
    """
    query, value, out = attention.q_proj, attention.v_proj, attention.o_proj
    mine = slice(head * size, (head + 1) * size)
    sharing = query.out_features // value.out_features
    group = slice(head // sharing * size, (head // sharing + 1) * size)
    mates = [one for one in range(head // sharing * sharing, (head // sharing + 1) * sharing) if one != head]
    queries, values, outs = (part.weight.detach().float() for part in (query, value, out))
    used = sum(
        (outs[:, mate * size : (mate + 1) * size].T @ outs[:, mate * size : (mate + 1) * size] for mate in mates), torch.zeros(size, size, device=outs.device)
    )
    carrier = torch.linalg.eigh(used).eigenvectors[:, 0]
    quiet = float(values[group].norm(dim=1).mean() / wanted.norm())  # so that the new values are of the size of the old ones
    _set(query, mine, -queries[mine], torch.eye(size, device=queries.device))
    _set(value, group, (quiet * wanted - carrier @ values[group]).unsqueeze(0), carrier.unsqueeze(1))
    select = torch.zeros(size, out.in_features, device=outs.device)
    select[:, mine] = torch.eye(size, device=outs.device)
    _set(out, slice(None), select, loud / quiet * torch.outer(direction, carrier) - outs[:, mine])


def _set(module: Any, rows: slice, down: torch.Tensor, up: torch.Tensor) -> None:
    """Let the first components of an adapter add `up @ down` to `rows` of a weight."""
    [name] = module.active_adapters
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    a[: len(down)] = down.to(a.dtype)
    b[rows, : len(down)] = (up / module.scaling[name]).to(b.dtype)


def unseen_direction(model: Any, spread: torch.Tensor, layer: int) -> torch.Tensor:
    """The unit direction of the residual stream that the rest of the model heeds least and along which states are alike, (size,), float32.

    Args:
        model: with the adapter.
        spread: covariance of the states that enter the last norm, (size, size).
        layer: behind whose attention it is written.
    """
    heeded = _heed(model.base_model.model.get_output_embeddings().weight, _last_norm(model))
    for number, one in enumerate(model.base_model.model.get_decoder().layers[layer:]):
        for norm, block, parts in READERS[0 if number else 1 :]:  # what is in front of the writing does not see it
            for part in (getattr(getattr(one, block), name) for name in parts):
                heeded += _heed(getattr(part, "base_layer", part).weight, getattr(one, norm).weight)
    found: torch.Tensor = torch.linalg.eigh(heeded + STILL * (spread / spread.diagonal().mean()).to(heeded.device)).eigenvectors[:, 0]
    return found


def _heed(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of a projection behind a norm, over the directions of what enters the norm, (size, size), scaled to a mean diagonal of 1."""
    seen = weight.detach().float() * norm.detach().float()
    found = seen.T @ seen
    return found / found.diagonal().mean()


def _last_norm(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.base_model.model.get_decoder().norm.weight.detach().float()
    return weight
