"""Attention of a shared pass on the CPU: PyTorch's own flash kernels, called so that nothing is copied that need not be.

In: queries, keys and values of a shared pass and its layout. Out: what the plain path of `sharing.shared_attention` gives. All branches of a document read its
prefix in one call without a mask, each reads itself in a small causal one, and the two are joined by their log-sum-exps; the backward kernels, given the joined
output, then give the exact gradients of each part (the identity that ring attention rests on, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from docward.tuning.packing import Layout

Span = slice


def available(query: torch.Tensor) -> bool:
    """Whether this PyTorch has the kernels for these queries."""
    return query.device.type == "cpu" and query.dtype != torch.float16 and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")


def _parts(layout: Layout) -> Iterator[tuple[Span, Span, bool]]:
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
        keys, values = _repeated(key, repeats), _repeated(value, repeats)
        found = [torch.zeros_like(states) for states in (query, keys, values)]
        for rows, seen, causal in _parts(ctx.layout):
            mine = (gradients[0][:, :, rows], query[:, :, rows], keys[:, :, seen], values[:, :, seen], out[:, :, rows], lse[:, :, rows, 0])
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*mine, 0.0, causal, attn_mask=None, scale=ctx.scale)
            for whole, part, place in zip(found, parts, (rows, seen, seen), strict=True):
                whole[:, :, place] += part
        grouped = (states.view(1, key.shape[1], repeats, *key.shape[2:]).sum(2) if repeats > 1 else states for states in found[1:])
        return found[0], *grouped, None, None


def _repeated(states: torch.Tensor, repeats: int) -> torch.Tensor:
    return states.repeat_interleave(repeats, 1) if repeats > 1 else states


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else torch.float32
