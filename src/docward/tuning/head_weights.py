"""Which heads of a model can be given the job of reading, and the adapter weights that give it to them.

In: a model with a fresh adapter, which head, what it is to read, where it is to look, and where to write. Out: the adapter's weights, set so that the head does
that and nothing else. A head that looks at all alike has queries of 0. A head that looks at some places more has one constant query: a linear function of the
state that is nearly 1 wherever answers begin, in the pair of rotary components that turns slowest, so that places far away count like near ones; the keys that
it shares with other heads give up that pair for what it looks for, and the others no longer ask for it. Where queries and keys go through norms (Qwen 3,
Gemma 3), scores are capped, or positions turn other components, one head alone reads, the one that looks at all alike; behind a norm its query is no 0, since a
norm makes the rounding of a 0 as large as a query, but such a constant one, and the keys' pair is 0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from docward.recipe import TuningSection

STILL = 100.0  # how much a direction's own spread counts against it, beside what later layers and the logits make of it
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = {"input_layernorm", "post_attention_layernorm"}  # in front of attention, and in front of the MLP
# Gemma 2 and 3 have norms behind both, too; what Llama calls the norm in front of the MLP is there the one behind attention.
FOUR_NORMS = NORMS | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}


@dataclass(frozen=True, slots=True)
class Place:
    """Which layer has the heads, the size of a head, how many of them share keys and values, how many get the job, and whether queries go through a norm.

    The first of those looks at all alike, the second where intent shows.
    """

    layer: int
    size: int
    sharing: int
    heads: int
    normed: bool = False

    def ranks(self, rank: int) -> dict[str, int]:
        """LoRA ranks of the layer's projections, as PEFT takes them: those of the recipe, and what the heads take."""
        pair = 2 if self.heads > 1 or self.normed else 0
        taken = {"q_proj": self.heads * self.size + pair * (self.sharing - 1), "k_proj": pair, "v_proj": self.heads, "o_proj": self.heads * self.size}
        return {rf"layers\.{self.layer}\.self_attn\.{part}": rank + more for part, more in taken.items()}


def reading_place(model: Any, section: TuningSection) -> Place | None:
    """Where heads can be given the job: in the last layer but one, or the last before it that sees whole texts.

    None where a layer is not of the kind known here (four projections in attention and at most norms of each head's queries and keys; no bias on queries; norms
    before attention and before a gated MLP, and maybe behind both, each a product with a weight), or the recipe does not adapt what heads take.
    """
    config = model.config.get_text_config()
    everywhere = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [everywhere] * int(config.num_hidden_layers)
    layers = getattr(model.get_decoder(), "layers", None)
    if section.use_dora or section.lora_dropout or not isinstance(layers, torch.nn.ModuleList):
        return None
    wanted = section.lora_target_modules
    lowest = 0 if section.lora_first_layer == "auto" else section.lora_first_layer
    for number in range(len(layers) - 2, lowest - 1, -1):
        attention: Any = getattr(layers[number], "self_attn", None)
        parts = [getattr(attention, part, None) for part in PARTS]
        linear: list[Any] = [getattr(part, "base_layer", part) for part in parts]  # adapted or not
        if kinds[number] == "full_attention" and all(type(one) is torch.nn.Linear for one in linear):
            heads, normed = _heads(model, attention)
            known = linear[0].bias is None and linear[1].bias is None and linear[0].out_features == linear[3].in_features
            known = known and 0 < heads * int(attention.head_dim) <= linear[0].out_features
            known = known and scale_of(model.get_decoder().norm) is not None and all(map(_known, layers[number:]))
            sharing = linear[0].out_features // linear[1].out_features
            return Place(number, int(attention.head_dim), sharing, heads, normed) if known and (wanted == "all-linear" or set(PARTS) <= set(wanted)) else None
    return None


def _heads(model: Any, attention: Any) -> tuple[int, bool]:
    """How many heads can get the job, and whether queries go through a norm."""
    children = dict(attention.named_children())
    norms = [children.pop(name) for name in ("q_norm", "k_norm") if name in children]
    if set(children) != set(PARTS) or list(attention.named_parameters(recurse=False)):
        return 0, False
    if norms:
        alone = all((scale := scale_of(norm)) is not None and len(scale) == int(attention.head_dim) for norm in norms)
        return int(alone and _halves(attention)), True
    capped = getattr(attention, "attn_logit_softcapping", None) is not None
    return 2 if _turns_halves(model, attention) and not capped else 1, False


def _turns_halves(model: Any, attention: Any) -> bool:
    """Whether rotary positions turn each component of a head's first half with its like of the second, the last ones the least."""
    turns = getattr(getattr(model.get_decoder(), "rotary_emb", None), "inv_freq", None)
    return _halves(attention) and turns is not None and turns.shape == (int(attention.head_dim) // 2,) and bool(turns[-1] <= turns.min())


def _halves(attention: Any) -> bool:
    halves = getattr(sys.modules[type(attention).__module__], "rotate_half", None)
    return halves is not None and bool(torch.equal(halves(torch.arange(4.0)), torch.tensor([-2.0, -3.0, 0.0, 1.0])))


def _known(layer: Any) -> bool:
    parts = [getattr(getattr(layer, block, None), part, None) for _, block, names in _readers(layer) for part in names]
    there = {name: part for name, part in layer.named_children() if type(part) is not torch.nn.Identity}
    norms = there.keys() - {"self_attn", "mlp"}
    return None not in parts and norms in (NORMS, FOUR_NORMS) and None not in [scale_of(there[name]) for name in norms]


def _readers(layer: Any) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """What reads the residual stream in a layer: a norm, the block behind it, and the block's projections."""
    before_mlp = "pre_feedforward_layernorm" if norm_behind(layer) is not None else "post_attention_layernorm"
    return ("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj")), (before_mlp, "mlp", ("gate_proj", "up_proj"))


def norm_behind(layer: Any) -> Any:
    """The norm that what attention gives goes through before it is added to the stream; None where there is none."""
    return layer.post_attention_layernorm if hasattr(layer, "pre_feedforward_layernorm") else None


@torch.no_grad()
def scale_of(norm: Any) -> torch.Tensor | None:
    """What a norm multiplies a state of length one a component with, (size,), float32; None where it does anything else to it (LayerNorm, a bias)."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return None
    ones = torch.ones_like(weight)
    signs = ones.clone()
    signs[: len(ones) // 3] = -1
    found: torch.Tensor = norm(ones).float()
    return found if torch.allclose(norm(signs).float(), found * signs.float(), rtol=0.02, atol=1e-3) else None


@dataclass(frozen=True, slots=True)
class Head:
    """What a head is to do.

    Its `number` in the layer; the direction that it reads, (size,); and how `loud` it writes that. It looks at a state as much as `looks` @ state says, as a
    softmax does, whenever `steady` @ state is 1 where it looks from; without `looks` at all alike, with a query of `steady` @ state where there is one (it
    takes that for a norm), of 0 else.
    """

    number: int
    reads: torch.Tensor
    loud: float
    looks: torch.Tensor | None = None
    steady: torch.Tensor | None = None


@torch.no_grad()
def write_heads(attention: Any, size: int, heads: Sequence[Head], direction: torch.Tensor, *, turned: float = 1.0) -> None:
    """Set the adapter so that heads write what they read along one direction, and nothing else.

    Their old output is taken away; a direction of the values of each (the one that heads which share them use least) carries what it reads.

    Args:
        attention: of one layer, with a fresh adapter.
        size: of a head.
        heads: which are to do what; at most one of them looks.
        direction: unit, (size of a state,).
        turned: what rotary positions multiply queries and keys with.
    """
    queries, keys, values, outs = (getattr(attention, part).weight.detach().float().clone() for part in PARTS)
    sharing = len(queries) // len(keys)
    taken: dict[int, list[torch.Tensor]] = {}
    slowest = (size // 2 - 1, size - 1)
    for head in heads:
        mine, group = rows_of(head.number, size), head.number // sharing
        queries[mine] = 0
        if head.steady is not None:
            for mate in range(group * sharing, (group + 1) * sharing):
                queries[[mate * size + place for place in slowest]] = 0
            keys[[group * size + place for place in slowest]] = 0
            queries[mine.start + slowest[0]] = head.steady
        if head.looks is not None:
            asked = float(keys.norm(dim=1).mean() / head.looks.norm())  # so that the new keys are of the size of the old ones
            queries[mine.start + slowest[0]] /= asked * attention.scaling * turned**2
            keys[group * size + slowest[0]] = asked * head.looks
        mates = [one for one in range(group * sharing, (group + 1) * sharing) if one not in [other.number for other in heads]]
        used = sum((outs[:, rows_of(mate, size)].T @ outs[:, rows_of(mate, size)] for mate in mates), torch.zeros(size, size, device=outs.device))
        used = used + sum(((1 + float(used.trace())) * torch.outer(one, one) for one in taken.get(group, [])), torch.zeros_like(used))
        carrier = torch.linalg.eigh(used).eigenvectors[:, 0]
        taken.setdefault(group, []).append(carrier)
        there = values[rows_of(group, size)]
        quiet = float(there.norm(dim=1).mean() / head.reads.norm())  # as with the keys
        values[rows_of(group, size)] = there + torch.outer(carrier, quiet * head.reads - carrier @ there)
        outs[:, mine] = head.loud / quiet * torch.outer(direction, carrier)
    _set(attention.q_proj, queries)
    _set(attention.k_proj, keys)
    _set(attention.v_proj, values)
    _set(attention.o_proj, outs)


def rows_of(number: int, size: int) -> slice:
    """Where a head's components lie among those of all heads."""
    return slice(number * size, (number + 1) * size)


def _set(module: Any, wanted: torch.Tensor) -> None:
    """Let an adapter add what is wanted of a weight less what it is: few rows or columns, or a matrix of low rank."""
    [name] = module.active_adapters
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    change = wanted - module.weight.detach().float()
    rows, columns = (change.abs().amax(across).nonzero()[:, 0] for across in (1, 0))
    one_hot = torch.eye(max(change.shape), device=change.device)
    if len(rows) <= len(a):
        up, down = one_hot[: len(change), rows], change[rows]
    elif len(columns) <= len(a):
        up, down = change[:, columns], one_hot[columns, : change.shape[1]]
    else:
        left, strengths, right = torch.linalg.svd(change, full_matrices=False)
        up, down = (left * strengths)[:, : len(a)], right[: len(a)]
    a[: len(down)] = down.to(a.dtype)
    b[:, : up.shape[1]] = (up / module.scaling[name]).to(b.dtype)


def unseen_direction(model: Any, spread: torch.Tensor, layer: int) -> torch.Tensor:
    """The unit direction of the residual stream that the rest of the model heeds least and along which states are alike, (size,), float32.

    Args:
        model: with the adapter.
        spread: covariance of the states that enter the last norm, (size, size).
        layer: behind whose attention it is written.
    """
    heeded = _heed(model.base_model.model.get_output_embeddings().weight, model.base_model.model.get_decoder().norm)
    for number, one in enumerate(model.base_model.model.get_decoder().layers[layer:]):
        for norm, block, parts in _readers(one)[0 if number else 1 :]:  # what is in front of the writing does not see it
            for part in (getattr(getattr(one, block), name) for name in parts):
                heeded += _heed(getattr(part, "base_layer", part).weight, getattr(one, norm))
    found: torch.Tensor = torch.linalg.eigh(heeded + STILL * (spread / spread.diagonal().mean()).to(heeded.device)).eigenvectors[:, 0]
    return found


def _heed(weight: torch.Tensor, norm: Any) -> torch.Tensor:
    """The Gram matrix of a projection behind a norm, over the directions of what enters the norm, (size, size), scaled to a mean diagonal of 1."""
    scale = scale_of(norm)
    assert scale is not None, "a place has known norms only"
    seen = weight.detach().float() * scale
    found = seen.T @ seen
    return found / found.diagonal().mean()
