"""Attention of a shared pass on the CPU: PyTorch's own flash kernels, called so that nothing is copied that need not be.

In: queries, keys and values of a shared pass and its layout. Out: what the plain path of `sharing.shared_attention` gives. All branches of a document read its
prefix in one call without a mask, each reads itself in a small causal one, and the two are joined by their log-sum-exps; the backward parts, given the joined
output, then give the exact gradients of each (the identity that ring attention rests on, arXiv 2310.01889). The kernel goes backward in float32 and float64;
in bfloat16, where it is slow, matrix products do (`_by_products`). Where no gradient is wanted short documents go together, and all else is products
(`without_gradients`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from docward.evaluation.branching import in_blocks
from docward.tuning.packing import Layout

Span = slice
Parts = Iterator[tuple[Span, Span, bool]]
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
BLOCK = 256  # keys that `_by_products` takes at once where not all queries see all keys
TOGETHER, LEAST = 512, 0.8  # documents of at most so many tokens, of this share of the longest's, attend in one call: one each costs more than it computes


class Given(NamedTuple):
    """What the backward pass starts from: tensors (1, heads, tokens, size), and (1, heads, tokens) for the log-sum-exps."""

    gradient: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    scale: float


def available(query: torch.Tensor) -> bool:
    """Whether this PyTorch has the kernels for these queries."""
    return query.device.type == "cpu" and query.dtype != torch.float16 and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")


def _parts(layout: Layout) -> Parts:
    """(queries, keys, causal) of each call: prefixes, branches on their prefix, branches on themselves."""
    for start, prefix, branches in layout.documents:
        head = slice(start, start + prefix)
        yield head, head, True
        if branches:
            yield slice(branches[0][0], sum(branches[-1])), head, False
            for branch, own in branches:
                yield slice(branch, branch + own), slice(branch, branch + own), True


class FlashShared(torch.autograd.Function):
    """softmax(scale * q k') v, where each query sees its document's prefix and its own branch up to itself."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
        """Give (1, heads, tokens, size) for query of that shape, key and value (1, key and value heads, tokens, size)."""
        repeats = query.shape[1] // key.shape[1]
        keys, values = _repeated(key, repeats), _repeated(value, repeats)
        out, lse = torch.empty_like(query), query.new_empty(1, query.shape[1], query.shape[2], 1, dtype=_wide(query.dtype))
        joined: set[int] = set()
        for rows, seen, causal in _parts(layout):
            found, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, rows], keys[:, :, seen], values[:, :, seen], 0.0, causal, attn_mask=None, scale=scale
            )
            logs = logs.view(1, query.shape[1], -1, 1)
            if not causal:
                joined.update(range(rows.start, rows.stop))
            elif rows.start in joined:
                both = torch.logaddexp(lse[:, :, rows], logs)
                found = out[:, :, rows] * (lse[:, :, rows] - both).exp() + found * (logs - both).exp()
                logs = both
            out[:, :, rows], lse[:, :, rows] = found, logs
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, out, lse = ctx.saved_tensors
        repeats = query.shape[1] // key.shape[1]
        given = Given(gradients[0], query, _repeated(key, repeats), _repeated(value, repeats), out, lse.squeeze(-1), ctx.scale)
        found = (_by_products if query.dtype.itemsize < 4 else _by_kernel)(given, _parts(ctx.layout))
        grouped = (states.view(1, key.shape[1], repeats, *key.shape[2:]).sum(2) if repeats > 1 else states for states in found[1:])
        return found[0], *grouped, None, None


def without_gradients(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """What `FlashShared` gives, in half precision faster on a CPU.

    Prefixes of like lengths are padded and go in one call; long ones, and branches, by plain products as the evaluation reads documents.
    """
    out, repeats = torch.empty_like(query), query.shape[1] // key.shape[1]
    for spans in _alike([slice(start, start + prefix) for start, prefix, _ in layout.documents]):
        if len(spans) > 1:
            places, real = _padded(spans, query.device)
            asked, keys, values = (states[0][:, places].transpose(0, 1) for states in (query, _repeated(key, repeats), _repeated(value, repeats)))
            out[0][:, places[real]] = scaled_dot_product_attention(asked, keys, values, is_causal=True, scale=scale).transpose(0, 1)[:, real]
        else:
            head = spans[0]
            out[:, :, head] = in_blocks(query[:, :, head], key[:, :, head], value[:, :, head], scale, None)
    for start, prefix, branches in layout.documents:
        head = slice(start, start + prefix)
        for branch, own in branches:
            mine = slice(branch, branch + own)
            keys, values = (torch.cat([states[:, :, head], states[:, :, mine]], 2) for states in (key, value))
            unseen = torch.full((own, own), -torch.inf, dtype=query.dtype).triu_(1)
            out[:, :, mine] = in_blocks(query[:, :, mine], keys, values, scale, torch.cat([unseen.new_zeros(own, prefix), unseen], 1))
    return out


def _alike(spans: Sequence[slice]) -> Iterator[list[slice]]:
    """Spans, longest first, that waste little when they are padded to the longest of them; one of more than TOGETHER tokens by itself."""
    some: list[slice] = []
    for span in sorted(spans, key=lambda one: one.start - one.stop):
        if some and (_length(some[0]) > TOGETHER or _length(span) < LEAST * _length(some[0])):
            yield some
            some = []
        some.append(span)
    if some:
        yield some


def _length(span: slice) -> int:
    return int(span.stop - span.start)


def _padded(spans: Sequence[slice], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each span, the longest first, the places of its tokens, (spans, longest), the last one again behind its end; and which of them are its own."""
    steps = torch.arange(_length(spans[0]), device=device)
    starts, stops = (torch.tensor(ends, device=device)[:, None] for ends in ([one.start for one in spans], [one.stop for one in spans]))
    places = starts + steps
    return torch.minimum(places, stops - 1), places < stops


def _by_kernel(given: Given, parts: Parts) -> Found:
    found = torch.zeros_like(given.query), torch.zeros_like(given.key), torch.zeros_like(given.value)
    for rows, seen, causal in parts:
        mine = [states[:, :, rows] for states in (given.gradient, given.query)] + [states[:, :, seen] for states in (given.key, given.value)]
        mine += [given.out[:, :, rows], given.lse[:, :, rows]]
        some = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*mine, 0.0, causal, attn_mask=None, scale=given.scale)
        for whole, part, place in zip(found, some, (rows, seen, seen), strict=True):
            whole[:, :, place] += part
    return found


def _by_products(given: Given, parts: Parts) -> Found:
    """The formula of the flash backward (arXiv 2205.14135, algorithm 4), keys by queries, a block of keys with all queries that see it at once.

    log p = scale * (k q - lse / scale) and dp - delta come out of one product each, by two more columns that hold the subtrahend in two parts, so that nothing
    is rounded to bfloat16 before the difference is taken.
    """
    delta = (given.gradient * given.out).sum(-1, dtype=torch.float32)
    with_lse, with_delta = _less(given.query[0], given.lse[0] / given.scale), _less(given.gradient[0], delta[0])
    keys, values = _less(given.key[0]), _less(given.value[0])
    queries, gradients = with_lse[..., :-2], with_delta[..., :-2]
    found = torch.zeros_like(queries), torch.zeros_like(queries), torch.zeros_like(queries)
    for rows, seen, causal in parts:
        for start in range(seen.start, seen.stop, BLOCK if causal else seen.stop - seen.start):
            some = slice(start, min(start + BLOCK, seen.stop) if causal else seen.stop)
            after = slice(start, rows.stop) if causal else rows
            weights = torch.bmm(keys[:, some], with_lse[:, after].mT).mul_(given.scale)
            if causal:
                size = some.stop - start
                weights[:, :, :size] += torch.full((size, size), -torch.inf, dtype=weights.dtype).tril(-1)
            weights.exp_()
            found[2][:, some] += torch.bmm(weights, gradients[:, after])
            scores = torch.bmm(values[:, some], with_delta[:, after].mT).mul_(weights)
            found[1][:, some] += torch.bmm(scores, queries[:, after])
            found[0][:, after] += torch.bmm(scores.mT, keys[:, some, :-2])
    return found[0].mul_(given.scale)[None], found[1].mul_(given.scale)[None], found[2][None]


def _less(states: torch.Tensor, subtrahend: torch.Tensor | None = None) -> torch.Tensor:
    """States (heads, tokens, size) with two more columns: a product of two such, one of which has a subtrahend (heads, tokens), is less by it."""
    wider = torch.ones(*states.shape[:-1], states.shape[-1] + 2, dtype=states.dtype)
    wider[..., :-2] = states
    if subtrahend is not None:
        wider[..., -2] = -subtrahend
        wider[..., -1] = -subtrahend - wider[..., -2]
    return wider


def _repeated(states: torch.Tensor, repeats: int) -> torch.Tensor:
    return states.repeat_interleave(repeats, 1) if repeats > 1 else states


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else torch.float32
