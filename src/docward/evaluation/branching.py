"""Greedy decoding of all tasks of a document together: its keys and values are held once, and each branch holds only its own.

In: token ids of documents and of what each of their prompts adds. Out: the tokens of each answer, those that `generate` gives with one padded row a prompt.
Documents are read one behind the other without padding, each followed by its branches; then all branches go on together, a token a step. A step reads a
document's keys once for all its branches; branches that have ended are dropped. A layer with a sliding window sees as far back as that says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from docward.models import Loaded, attention

NAME = "docward_branches"
PASS = 1024  # tokens read at once, or one document: enough for matrix products at full rate, and few enough for a CPU's cache to hold what they make
MASKED = 256  # tokens of several branches that attend in one call; a longer branch has a call of its own, or most of its mask would be for nothing
BLOCK = 128  # tokens that attend at once in half precision on a CPU: their scores stay in its cache, and little is computed of what they do not see
CHECKED = 4  # tokens after which it is asked again whether an answer need not go on: a sentence more or less costs little, and so does asking
GONE = 0.25  # share of ended branches from which the rest is copied to places of its own: a step costs more than a copy
SLIDING = "sliding_attention"  # a layer with a window, as transformers calls it
Choose = Callable[[torch.Tensor], torch.Tensor]  # (rows, vocabulary) logits to (rows,) tokens
Enough = Callable[[int, list[int]], bool]  # an answer's number and its tokens so far
Masked = tuple[slice, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """Some documents in one pass, each followed by its branches.

    `ids` and `positions` are (1, tokens). `documents` has each one's number, where it stands, and its branches: runs of them with what is added to their scores
    on document and run, (tokens of the run, tokens of document and run). `tails` says of each token of a branch where it stands and where its states go, (row,
    place); `last` where each branch ends.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    documents: tuple[tuple[int, slice, tuple[Masked, ...]], ...]
    tails: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    last: torch.Tensor


class Branches:
    """Keys and values of documents, (documents, heads, tokens, size) in each layer, and of their branches, (rows, heads, tokens, size)."""

    def __init__(self, documents: Sequence[int], tails: Sequence[Sequence[int]], new: int, windows: Sequence[int | None], device: torch.device) -> None:
        """Make room for documents and their branches, by their lengths in tokens, and for `new` more tokens a branch; `windows` are the layers'."""
        lengths = [length for some in tails for length in some]
        self.next = max(lengths)  # where the next token's states go
        self.prefixes: dict[int, tuple[torch.Tensor, ...]] = {}
        self.own: dict[int, tuple[torch.Tensor, ...]] = {}
        self.sizes = (len(documents), max(documents)), (len(lengths), self.next + new)
        owner = torch.tensor([place for place, some in enumerate(tails) for _ in some])
        ends = torch.tensor(documents)[owner, None]
        prefix = torch.arange(max(documents)).expand(len(owner), -1) < ends
        places = torch.arange(self.next + new) - self.next + torch.tensor(lengths)[:, None]
        own = places >= 0
        # What is added to scores: -inf where there is nothing, behind a document and in front of a branch.
        self.mask = _added(torch.cat([prefix, own], 1))[:, None, None].to(device)
        self.windows = windows
        self.positions = torch.cat([torch.arange(max(documents)).expand(len(owner), -1), ends + places], 1)[:, None, None].to(device)
        self._order(owner.to(device))

    def _order(self, owner: torch.Tensor) -> None:
        """Lay rows out as documents x branches; where a document has fewer than another, its first stands in and is not read."""
        self.owner = owner  # the document of each row; rows of one document follow one another
        counts = owner.bincount(minlength=int(owner.max()) + 1)
        first = counts.cumsum(0) - counts
        within = torch.arange(len(owner), device=owner.device) - first[owner]
        column = torch.arange(int(counts.max()), device=owner.device)
        self.grid = first[:, None] + column * (column < counts[:, None])
        self.place = owner * len(column) + within
        self.even = self.grid.numel() == len(owner)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these, and documents that have none left; layer by layer, so that little is held twice."""
        documents, owner = torch.unique(self.owner[rows], return_inverse=True)
        fewer = len(documents) < len(self.grid)
        for layer in self.own:
            self.own[layer] = tuple(states[rows] for states in self.own[layer])
            if fewer:
                self.prefixes[layer] = tuple(states[documents] for states in self.prefixes[layer])
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self._order(owner)

    def read(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, reading: Reading) -> torch.Tensor:
        """Attention of a pass, (1, heads, tokens, size), on documents, branches and themselves, which are kept; gives (1, tokens, heads, size)."""
        if layer not in self.own:
            states = (key, value)
            prefixes, own = (tuple(one.new_zeros(rows, one.shape[1], tokens, one.shape[-1]) for one in states) for rows, tokens in self.sizes)
            self.prefixes[layer], self.own[layer] = prefixes, own
        where, rows, places = reading.tails
        for one, held, kept in zip((key, value), self.prefixes[layer], self.own[layer], strict=True):
            kept[rows, :, places] = one[0, :, where].transpose(0, 1)
            for number, span, _ in reading.documents:
                held[number, :, : span.stop - span.start] = one[0, :, span]
        out = value.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        window = self.windows[layer]
        for _, span, runs in reading.documents:
            document = key[:, :, span], value[:, :, span]
            asked = query[:, :, span]
            seen = _in_window(asked, *document, scale, window) if window and window < span.stop - span.start else _attended(asked, *document, scale, None)
            out[:, span] = seen.transpose(1, 2)
            for run, mask in runs:
                if window:
                    before, within = reading.positions[0, span], reading.positions[0, run]
                    mask = mask.masked_fill(_beyond(window, within[:, None], torch.cat([before, within])), -torch.inf)
                keys, values = (torch.cat([first, then[:, :, run]], 2) for first, then in zip(document, (key, value), strict=True))
                out[:, run] = _attended(query[:, :, run], keys, values, scale, mask.to(query.dtype)).transpose(1, 2)
        return out

    def step(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of (rows, heads, 1, size) on documents, earlier tokens and themselves, which are kept; gives (rows, 1, heads, size)."""
        for kept, new in zip(self.own[layer], (key, value), strict=True):
            kept[:, :, self.next] = new[:, :, 0]
        keys, values = (states[:, :, : self.next + 1] for states in self.own[layer])
        prefix_keys, prefix_values = self.prefixes[layer]
        rows, heads, _, size = query.shape
        query = (query * scale).view(rows, keys.shape[1], -1, size)  # (rows, key heads, query heads of each, size)
        scores = torch.cat([self._on_prefix(query, prefix_keys.mT), query @ keys.mT], -1)
        prefix = prefix_keys.shape[2]
        mask = self.mask[..., : scores.shape[-1]]
        if window := self.windows[layer]:
            positions = self.positions[..., : scores.shape[-1]]
            mask = mask.masked_fill(_beyond(window, positions[..., -1:], positions), -torch.inf)
        weights = (scores + mask.to(scores.dtype)).softmax(-1)  # taken in float32 in any case, and rounded
        out = self._on_prefix(weights[..., :prefix], prefix_values) + weights[..., prefix:] @ values
        return out.reshape(rows, 1, heads, -1)

    def _on_prefix(self, states: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """(rows, heads, n, a) times (documents, heads, a, b) of each row's document, as one product a document and head."""
        documents, columns = self.grid.shape
        rows = states if self.even else states[self.grid.flatten()]
        together = rows.view(documents, columns, *rows.shape[1:]).transpose(1, 2).flatten(2, 3) @ theirs  # (documents, heads, columns x n, b)
        apart = together.view(*together.shape[:2], columns, -1, together.shape[-1]).transpose(1, 2).flatten(0, 1)
        return apart if self.even else apart[self.place]


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of (1, heads, tokens, size); `mask` is what is added to scores, (tokens, keys), or None where each token sees those up to itself."""
    if query.device.type == "cpu" and query.dtype != torch.float32:
        return in_blocks(query, key, value, scale, mask)
    grouped = query.shape[1] > key.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)


def _in_window(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """As `_attended` without a mask, but each token sees itself and the `window - 1` before it; some at a time, so that little is computed of the rest."""
    tokens, out = query.shape[2], []
    for first in range(0, tokens, BLOCK):
        seen = slice(max(0, first - window + 1), min(tokens, first + BLOCK))
        keys = torch.arange(seen.start, seen.stop, device=query.device)
        queries = keys[first - seen.start :, None]
        mask = _added((keys <= queries) & ~_beyond(window, queries, keys)).to(query.dtype)
        out.append(_attended(query[:, :, first : seen.stop], key[:, :, seen], value[:, :, seen], scale, mask))
    return torch.cat(out, 2)


def _beyond(window: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Whether a key's position is out of the window of a query's."""
    return key <= query - window


def in_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of (1, heads, tokens, size) as plain matrix products of some tokens at a time; `mask` as in `_attended`.

    In half precision a CPU does these at twice the rate of its fused attention.
    """
    (_, heads, tokens, size), groups = query.shape, key.shape[1]
    query = (query * scale).view(groups, -1, tokens, size)
    out = []
    for first in range(0, tokens, BLOCK):
        some = query[:, :, first : first + BLOCK]
        stop = first + some.shape[2]
        seen = key.shape[2] if mask is not None else stop
        scores = (some.flatten(1, 2) @ key[0, :, :seen].mT).view(groups, -1, stop - first, seen)
        if mask is not None:
            scores += mask[first:stop]
        else:
            scores[..., first:] += torch.full((stop - first, stop - first), -torch.inf, dtype=scores.dtype).triu_(1)
        out.append((scores.softmax(-1).flatten(1, 2) @ value[0, :, :seen]).view(1, heads, stop - first, -1))
    return torch.cat(out, 2)


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
    reading: Reading | None = None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer; `branches` and, in a pass over documents, `reading` say who sees whom."""
    layer: Any = module.layer_idx
    given = query.to(value.dtype), key.to(value.dtype), value, scaling or query.shape[-1] ** -0.5
    return (branches.read(layer, *given, reading) if reading else branches.step(layer, *given)), None


def decode(
    loaded: Loaded, documents: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]], new: int, *, choose: Choose, enough: Enough | None = None
) -> list[list[int]]:
    """Answer all prompts of some documents.

    Args:
        loaded: a model whose layers attend to all that is before them, or to a window of it.
        documents: the tokens that all prompts of a document begin with, at least one.
        tails: for each document, what each of its prompts adds, at least one token.
        new: most tokens of an answer.
        choose: the next tokens.
        enough: is asked every CHECKED tokens whether an answer, by its number, need not go on.

    Returns:
        Tokens of each answer, in order of documents and prompts; what follows an end token, or enough, is of no meaning.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, branches_attention)
    model: Any = loaded.model
    device, ends = model.device, torch.tensor(sorted(ends_of(loaded)), device=model.device)
    branches = Branches([len(document) for document in documents], [[len(tail) for tail in some] for some in tails], new, windows_of(model), device)
    where = torch.tensor([len(document) + len(tail) for document, some in zip(documents, tails, strict=True) for tail in some], device=device)
    answers: list[list[int]] = [[] for _ in where]
    live = torch.arange(len(where), device=device)  # the answer of each row
    ended = torch.zeros(len(where), dtype=torch.bool, device=device)

    def logits(ids: torch.Tensor, positions: torch.Tensor, **how: Any) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids, position_ids=positions, branches=branches, use_cache=False, **how).logits
        return found

    with attention(model, NAME):
        passes = _readings(documents, tails, device)
        tokens = torch.cat([choose(logits(one.ids, one.positions, reading=one, logits_to_keep=one.last)[0]) for one in passes])
        for step in range(new):
            for answer, token in zip(live.tolist(), tokens.tolist(), strict=True):
                answers[answer].append(token)
            ended |= torch.isin(tokens, ends)
            if enough and (step + 1) % CHECKED == 0 and step < new - 1:
                said = [not over and enough(answer, answers[answer]) for answer, over in zip(live.tolist(), ended.tolist(), strict=True)]
                ended |= torch.tensor(said, device=device)
            if bool(ended.all()) or step == new - 1:
                break
            if int(ended.sum()) >= GONE * len(ended):
                rows = (~ended).nonzero()[:, 0]
                branches.keep(rows)
                live, ended, tokens, where = live[rows], ended[rows], tokens[rows], where[rows]
            tokens = choose(logits(tokens[:, None], where[:, None])[:, -1])
            where, branches.next = where + 1, branches.next + 1
    return answers


def _readings(documents: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Iterator[Reading]:
    """All documents, as many in one pass as PASS tokens hold, at least one."""
    sizes = [len(document) + sum(map(len, some)) for document, some in zip(documents, tails, strict=True)]
    width = max(len(tail) for some in tails for tail in some)
    rows = [0, *accumulate(map(len, tails))]
    first = 0
    while first < len(documents):
        stop = first + 1
        while stop < len(documents) and sum(sizes[first : stop + 1]) <= PASS:
            stop += 1
        yield _reading(documents, tails, range(first, stop), width, rows[first], device)
        first = stop


def _reading(
    documents: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]], numbers: range, width: int, row: int, device: torch.device
) -> Reading:
    """Documents of these numbers in one pass. `width` is the length of the longest branch of all, `row` the number of their first one."""
    ids: list[int] = []
    positions: list[int] = []
    spans, last, own = [], [], []
    for number in numbers:
        prefix = len(documents[number])
        span = slice(len(ids), len(ids) + prefix)
        ids += documents[number]
        positions += range(prefix)
        starts = []
        for tail in tails[number]:
            starts.append(len(ids))
            own += [(len(ids) + place, row, width - len(tail) + place) for place in range(len(tail))]
            ids += tail
            positions += range(prefix, prefix + len(tail))
            last.append(len(ids) - 1)
            row += 1
        spans.append((number, span, tuple(_runs([*starts, len(ids)], prefix, device))))
    where = tuple(torch.tensor(own, device=device).T)
    return Reading(torch.tensor([ids], device=device), torch.tensor([positions], device=device), tuple(spans), where, torch.tensor(last, device=device))


def _runs(edges: Sequence[int], prefix: int, device: torch.device) -> Iterator[Masked]:
    """Branches between these places, as many in one run as MASKED tokens hold, at least one: each sees its document and itself up to each token."""
    first = 0
    while first < len(edges) - 1:
        stop = first + 1
        while stop < len(edges) - 1 and edges[stop + 1] - edges[first] <= MASKED:
            stop += 1
        blocks = [torch.ones(end - start, end - start).tril() for start, end in pairwise(edges[first : stop + 1])]
        seen: torch.Tensor = torch.block_diag(*blocks).bool()  # type: ignore[no-untyped-call]
        yield slice(edges[first], edges[stop]), _added(torch.cat([torch.ones(len(seen), prefix, dtype=torch.bool), seen], 1)).to(device)
        first = stop


def left_padded(rows: Sequence[Sequence[int]], loaded: Loaded) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, each (rows, longest)."""
    width = max(len(row) for row in rows)
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(loaded.model.device), mask.to(loaded.model.device)


def windows_of(model: Any) -> list[int | None]:
    """How many tokens each layer sees, itself among them; None: all. Where layers are not told apart, a window is all layers'."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or [SLIDING] * text.num_hidden_layers
    return [window if kind == SLIDING else None for kind in kinds]


def ends_of(loaded: Loaded) -> set[int]:
    """Tokens that end an answer."""
    ends = loaded.model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(token) for token in [*listed, loaded.tokenizer.eos_token_id] if token is not None}
