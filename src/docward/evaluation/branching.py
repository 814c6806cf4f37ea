"""Greedy decoding of all tasks of a document together: its keys and values are held once, and each branch holds only its own.

In: token ids of documents and of what each of their prompts adds. Out: the tokens of each answer, those that `generate` gives with one padded row a prompt.
A step of decoding reads a document's keys once for all its branches; branches that have ended are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from docward.models import Loaded, attention

NAME = "docward_branches"
Choose = Callable[[torch.Tensor], torch.Tensor]  # (rows, vocabulary) logits to (rows,) tokens


class Branches:
    """Keys and values of documents, (documents, heads, tokens, size) in each layer, and of their branches, (rows, heads, tokens, size)."""

    def __init__(self, prefixes: Sequence[tuple[torch.Tensor, torch.Tensor]], prefix_mask: torch.Tensor, owner: torch.Tensor, own_mask: torch.Tensor) -> None:
        """Start with what a prefill gives.

        Args:
            prefixes: keys and values of the documents, layer by layer.
            prefix_mask: (documents, tokens), False where there is padding.
            owner: (rows,) the document of each branch; rows of one document follow one another.
            own_mask: (rows, most tokens a branch will have), False where there is padding.
        """
        self.prefixes, self.own = list(prefixes), [()] * len(prefixes)  # type: list[Any], list[Any]
        self.prefix_mask, self.own_mask = (_added(mask)[:, None, None] for mask in (prefix_mask, own_mask))
        self.start = self.stop = 0  # of the tokens that go through the model now
        self._order(owner)

    def _order(self, owner: torch.Tensor) -> None:
        """Lay rows out as documents x branches; where a document has fewer than another, its first stands in and is not read."""
        self.owner = owner
        counts = owner.bincount(minlength=int(owner.max()) + 1)
        first = counts.cumsum(0) - counts
        within = torch.arange(len(owner), device=owner.device) - first[owner]
        column = torch.arange(int(counts.max()), device=owner.device)
        self.grid = first[:, None] + column * (column < counts[:, None])
        self.place = owner * len(column) + within

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these, and documents that have none left."""
        self.own = [tuple(states[rows] for states in layer) for layer in self.own]
        self.own_mask = self.own_mask[rows]
        documents, owner = torch.unique(self.owner[rows], return_inverse=True)
        if len(documents) < len(self.prefix_mask):
            self.prefixes = [tuple(states[documents] for states in layer) for layer in self.prefixes]
            self.prefix_mask = self.prefix_mask[documents]
        self._order(owner)

    def add(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new states of a layer and give all of each branch so far."""
        if not self.own[layer]:
            rows, heads, _, size = key.shape
            self.own[layer] = tuple(key.new_empty(rows, heads, self.own_mask.shape[-1], size) for _ in range(2))
        for kept, new in zip(self.own[layer], (key, value), strict=True):
            kept[:, :, self.start : self.stop] = new
        keys, values = self.own[layer]
        return keys[:, :, : self.stop], values[:, :, : self.stop]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of (rows, heads, new tokens, size) on documents, earlier tokens and themselves; gives (rows, new tokens, heads, size)."""
        keys, values = self.add(layer, key, value)
        rows, heads, new, size = query.shape
        query = (query * scale).reshape(rows, keys.shape[1], -1, size)  # (rows, key heads, query heads of each x new tokens, size)
        causal = _added(torch.ones(new, self.stop, dtype=torch.bool, device=query.device).tril(self.stop - new))
        own = (query @ keys.mT).view(rows, keys.shape[1], -1, new, self.stop) + (self.own_mask[:, :, None, :, : self.stop] + causal)
        on_prefix = self._on_prefix(query, self.prefixes[layer][0].mT) + self.prefix_mask[self.owner]
        weights = torch.cat([on_prefix, own.flatten(2, 3)], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
        prefix = on_prefix.shape[-1]
        out = self._on_prefix(weights[..., :prefix], self.prefixes[layer][1]) + weights[..., prefix:] @ values
        return out.reshape(rows, heads, new, size).transpose(1, 2)

    def _on_prefix(self, states: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """(rows, heads, n, a) times (documents, heads, a, b) of each row's document, as one product a document and head."""
        documents, columns = self.grid.shape
        together = states[self.grid].transpose(1, 2).flatten(2, 3) @ theirs  # (documents, heads, columns x n, b)
        apart = together.view(documents, states.shape[1], columns, states.shape[2], -1).transpose(1, 2).flatten(0, 1)
        return apart[self.place]


def _added(mask: torch.Tensor) -> torch.Tensor:
    """What to add to scores."""
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)


def branches_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    branches: Branches,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer; `branches` says who sees whom."""
    place: Any = module.layer_idx
    return branches.attend(place, query, key, value, scaling or query.shape[-1] ** -0.5), None


def decode(loaded: Loaded, documents: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]], new: int, *, choose: Choose) -> list[list[int]]:
    """Answer all prompts of some documents.

    Args:
        loaded: a model whose layers attend to everything before them.
        documents: the tokens that all prompts of a document begin with, at least one.
        tails: for each document, what each of its prompts adds, at least one token.
        new: most tokens of an answer.
        choose: the next tokens.

    Returns:
        Tokens of each answer, in order of documents and prompts; what follows an end token is of no meaning.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, branches_attention)
    model: Any = loaded.model
    device, ends = model.device, torch.tensor(sorted(ends_of(loaded)), device=model.device)
    ids, mask = left_padded(documents, loaded)
    cache = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1).past_key_values
    owner = torch.tensor([place for place, some in enumerate(tails) for _ in some], device=device)
    ids, tail_mask = left_padded([tail for some in tails for tail in some], loaded)
    room = torch.ones(len(owner), new, dtype=torch.bool, device=device)
    branches = Branches([(layer.keys, layer.values) for layer in cache.layers], mask.bool(), owner, torch.cat([tail_mask.bool(), room], 1))
    del cache
    where = mask.sum(-1)[owner][:, None] + positions(tail_mask)
    answers: list[list[int]] = [[] for _ in range(len(owner))]
    live = torch.arange(len(owner), device=device)  # the answer of each row
    ended = torch.zeros(len(owner), dtype=torch.bool, device=device)
    with attention(model, NAME):
        for step in range(new):
            branches.start, branches.stop = branches.stop, branches.stop + ids.shape[1]
            logits = model(input_ids=ids, position_ids=where, branches=branches, use_cache=False, logits_to_keep=1).logits[:, -1]
            tokens = choose(logits)
            for answer, token in zip(live.tolist(), tokens.tolist(), strict=True):
                answers[answer].append(token)
            ended |= torch.isin(tokens, ends)
            if bool(ended.all()) or step == new - 1:
                break
            ids, where = tokens[:, None], where[:, -1:] + 1
            if 2 * int(ended.sum()) >= len(ended):  # half of the work is for nothing by now
                rows = (~ended).nonzero()[:, 0]
                branches.keep(rows)
                live, ended, ids, where = live[rows], ended[rows], ids[rows], where[rows]
    return answers


def left_padded(rows: Sequence[Sequence[int]], loaded: Loaded) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, each (rows, longest)."""
    width = max(len(row) for row in rows)
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(loaded.model.device), mask.to(loaded.model.device)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Each token's place in its row, padding not counted."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def ends_of(loaded: Loaded) -> set[int]:
    """Tokens that end an answer."""
    ends = loaded.model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(token) for token in [*listed, loaded.tokenizer.eos_token_id] if token is not None}
