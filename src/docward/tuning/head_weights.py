"""Where in a model neurons can be given the job of reading and a head that of averaging, and the adapter weights that give it to them.

In: a model with a fresh adapter, which neurons and which head, what they are to read, and where to write. Out: the adapter's weights, set so that the neurons
write what they read of each token, and the head, in the layer above, looks at all it may see alike, writes the mean of that and nothing else. To look at all
alike its queries are 0. Where queries and keys go through norms (Qwen 3, Gemma 3), a norm makes the rounding of a 0 as large as a query; there it asks with a
constant query (a linear function of the state that is nearly 1 wherever answers begin) in the pair of components that it and the keys use least, and the keys,
which it may share with other heads, give up that pair.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from docward.recipe import TuningSection

DEPTH = 0.53  # where the head is, as a share of the number of layers
NEURONS = 32  # that read; fewer in a narrow model
STILL = 100.0  # how much a direction's own spread counts against it, beside what later layers and the logits make of it
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
NORMS = {"input_layernorm", "post_attention_layernorm"}  # in front of attention, and in front of the MLP
# Gemma 2 and 3 have norms behind both, too; what Llama calls the norm in front of the MLP is there the one behind attention.
FOUR_NORMS = NORMS | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}


@dataclass(frozen=True, slots=True)
class Place:
    """Which layer has the neurons, how many, which the head, its size, and whether queries go through a norm."""

    reading: int
    neurons: int
    layer: int
    size: int
    normed: bool = False

    def ranks(self, rank: int) -> dict[str, int]:
        """LoRA ranks of both layers' projections, as PEFT takes them: those of the recipe, and what neurons and head take."""
        taken = {"q_proj": self.size, "k_proj": 2 if self.normed else 0, "v_proj": 1, "o_proj": self.size}
        found = {rf"layers\.{self.layer}\.self_attn\.{part}": rank + more for part, more in taken.items()}
        return found | {rf"layers\.{self.reading}\.mlp\.{part}": rank + self.neurons for part in GATED}


def reading_place(model: Any, section: TuningSection) -> Place | None:
    """Where neurons can be given the job, and a head above them; None where it cannot be done.

    The head is in the layer that sees whole texts nearest to DEPTH, the last one left out, the neurons are in the layer below. From theirs up all layers must
    be of the kind known here (four projections in attention and at most norms of each head's queries and keys; no bias on queries; norms before attention and
    before a gated MLP without bias, and maybe behind both, each a product with a weight), and the recipe must adapt what they take.
    """
    config = model.config.get_text_config()
    everywhere = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [everywhere] * int(config.num_hidden_layers)
    layers, norm = (getattr(model.get_decoder(), name, None) for name in ("layers", "norm"))
    if section.use_dora or section.lora_dropout or not isinstance(layers, torch.nn.ModuleList) or scale_of(norm) is None:
        return None
    if section.lora_target_modules != "all-linear" and not {*PARTS, *GATED} <= set(section.lora_target_modules):
        return None
    lowest = 0 if section.lora_first_layer == "auto" else section.lora_first_layer
    whole = [number for number in range(lowest + 1, len(layers) - 1) if kinds[number] == "full_attention"]
    if not whole:
        return None
    head = min(whole, key=lambda one: abs(one - DEPTH * len(layers)))
    return _place(model, head - 1, head)


def _place(model: Any, reading: int, number: int) -> Place | None:
    """A layer with neurons and one with a head; None where they, or what is above, are not of a known kind."""
    layers = model.get_decoder().layers
    if not all(map(_known, layers[reading:])) or not hasattr(layers[number].self_attn, "o_proj"):
        return None
    attention, projections = layers[number].self_attn, [_mlp(layers[reading], part) for part in GATED]
    queries, keys, _, outs = (getattr(part, "base_layer", part) for part in (getattr(attention, name) for name in PARTS))
    known = queries.bias is None and keys.bias is None and queries.out_features == outs.in_features
    known = known and type(outs) is torch.nn.Linear and all(type(part) is torch.nn.Linear and part.bias is None for part in projections)
    children = dict(attention.named_children())
    norms = [children.pop(name) for name in ("q_norm", "k_norm") if name in children]
    if not known or set(children) != set(PARTS) or list(attention.named_parameters(recurse=False)):
        return None
    if norms and not (_halves(attention) and all((scale := scale_of(norm)) is not None and len(scale) == int(attention.head_dim) for norm in norms)):
        return None
    return Place(reading, min(NEURONS, projections[0].out_features // 4), number, int(attention.head_dim), bool(norms))


def _mlp(layer: Any, part: str) -> Any:
    """A projection of a layer's gated MLP as the model came with it."""
    projection = getattr(layer.mlp, part)
    return getattr(projection, "base_layer", projection)


def _halves(attention: Any) -> bool:
    """Whether rotary positions turn each component of a head's first half with its like of the second."""
    halves = getattr(sys.modules[type(attention).__module__], "rotate_half", None)
    return halves is not None and bool(torch.equal(halves(torch.arange(4.0)), torch.tensor([-2.0, -3.0, 0.0, 1.0])))


def _known(layer: Any) -> bool:
    """Whether what reads the stream in a layer are plain projections behind norms that multiply; adapted or not, in few bits they are not plain."""
    parts = [getattr(getattr(layer, block, None), part, None) for _, block, names in _readers(layer) for part in names]
    there = {name: part for name, part in layer.named_children() if type(part) is not torch.nn.Identity}
    norms = there.keys() - {"self_attn", "mlp"}
    plain = all(type(getattr(part, "base_layer", part)) is torch.nn.Linear for part in parts)
    return plain and norms in (NORMS, FOUR_NORMS) and None not in [scale_of(there[name]) for name in norms]


def _readers(layer: Any) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """What reads the residual stream in a layer: a norm, the block behind it, and the block's projections."""
    before_mlp = "pre_feedforward_layernorm" if norm_behind(layer) is not None else "post_attention_layernorm"
    return ("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj")), (before_mlp, "mlp", ("gate_proj", "up_proj"))


def norm_behind(layer: Any, block: str = "self_attn") -> Any:
    """The norm that what a block, `self_attn` or `mlp`, gives goes through before it is added to the stream; None where there is none."""
    if not hasattr(layer, "pre_feedforward_layernorm"):
        return None
    return layer.post_attention_layernorm if block == "self_attn" else layer.post_feedforward_layernorm


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


@torch.no_grad()
def write_neurons(mlp: Any, chosen: torch.Tensor, gates: torch.Tensor, ups: torch.Tensor, written: torch.Tensor) -> None:
    """Set the adapter so that some neurons read and write what they are to, in place of what they did.

    Args:
        mlp: of one layer, with a fresh adapter.
        chosen: their numbers, (neurons,).
        gates: what opens each, (neurons, size of a state).
        ups: what it lets through, (neurons, size of a state).
        written: what each writes for 1, (size of a state, neurons).
    """
    gate, up, down = (getattr(mlp, part).weight.detach().float().clone() for part in GATED)
    gate[chosen], up[chosen], down[:, chosen] = gates.to(gate.device), ups.to(up.device), written.to(down.device)
    for part, wanted in zip(GATED, (gate, up, down), strict=True):
        _set(getattr(mlp, part), wanted)


@torch.no_grad()
def write_head(attention: Any, size: int, number: int, reads: torch.Tensor, written: torch.Tensor, asks: torch.Tensor | None = None) -> None:
    """Set the adapter so that a head writes what it reads, and nothing else.

    Its old output is taken away; a direction of its values (the one that heads which share them use least) carries what it reads.

    Args:
        attention: of one layer, with a fresh adapter.
        size: of a head.
        number: the head's in the layer.
        reads: the direction that it reads, (size of a state,).
        written: what it writes for a score of 1, (size of a state,).
        asks: the query that it asks with is its product with a state, where it takes one (behind a norm); default: 0.
    """
    queries, keys, values, outs = (getattr(attention, part).weight.detach().float().clone() for part in PARTS)
    sharing = len(queries) // len(keys)
    mine, group = rows_of(number, size), rows_of(number // sharing, size)
    if asks is not None:
        used = (keys[group].square().sum(1) * queries[mine].square().sum(1)).view(2, -1).sum(0)
        pair = torch.stack([used.argmin(), used.argmin() + size // 2])
        keys[group.start + pair] = 0
    queries[mine] = 0
    if asks is not None:
        queries[mine.start + pair[0]] = asks
    mates = [rows_of(one, size) for one in range(number // sharing * sharing, (number // sharing + 1) * sharing) if one != number]
    heard = sum((outs[:, mate].T @ outs[:, mate] for mate in mates), torch.zeros(size, size, device=outs.device))
    carrier = torch.linalg.eigh(heard).eigenvectors[:, 0]
    quiet = float(values[group].norm(dim=1).mean() / reads.norm())  # so that the new values are of the size of the old ones
    values[group] += torch.outer(carrier, quiet * reads - carrier @ values[group])
    outs[:, mine] = torch.outer(written / quiet, carrier)
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


def unseen_direction(model: Any, spread: torch.Tensor, layer: int, *, behind: str, beside: torch.Tensor | None = None) -> torch.Tensor:
    """The unit direction of the residual stream that the rest of the model heeds least and along which states are alike, (size,), float32.

    Args:
        model: with the adapter.
        spread: covariance of states, (size, size).
        layer: where it is written.
        behind: which of its blocks: `self_attn` or `mlp`.
        beside: a unit direction that it is to be at right angles to.
    """
    whole = model.base_model.model
    readers = [(one, reader) for one in whole.get_decoder().layers[layer:] for reader in _readers(one)]
    heeded = _heed(whole.get_output_embeddings().weight, whole.get_decoder().norm)
    for one, (norm, block, parts) in readers[1 if behind == "self_attn" else 2 :]:  # what is in front of the writing does not see it
        for part in (getattr(getattr(one, block), name) for name in parts):
            heeded += _heed(getattr(part, "base_layer", part).weight, getattr(one, norm))
    costs = heeded + STILL * (spread / spread.diagonal().mean()).to(heeded.device)
    if beside is not None:
        costs += costs.trace() * torch.outer(beside, beside).to(costs.device)
    found: torch.Tensor = torch.linalg.eigh(costs).eigenvectors[:, 0]
    return found


def _heed(weight: torch.Tensor, norm: Any) -> torch.Tensor:
    """The Gram matrix of a projection behind a norm, over the directions of what enters the norm, (size, size), scaled to a mean diagonal of 1."""
    scale = scale_of(norm)
    assert scale is not None, "a place has known norms only"
    seen = weight.detach().float() * scale
    found = seen.T @ seen
    return found / found.diagonal().mean()
