"""One pass over a document for all its tasks: an attention in which the branches of a document see its prefix and themselves, and nothing else.

In: a model of transformers and a shared pass (see `packing`). Out: the loss and gradients that plain rows give, for K(P + s) tokens at the price of P + Ks.
Each key and value of the prefix is one node of the graph that K branches use, so its gradient is the sum of theirs. `why_not_shared` runs both computes on one
document and says why a model cannot do it, if it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from docward.models import attention, unwrapped
from docward.rendering import Rendered
from docward.tuning import attention as flash
from docward.tuning.packing import Group, Layout, group_of, pass_of

NAME = "docward_shared"
# Largest difference of gradients between the two computes, over the gradient's norm, that is taken for rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
SAMPLE = 100  # tokens
ATTENDING = {"full_attention", "sliding_attention", "attention"}


def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a shared pass.

    Args:
        module: the model's attention layer.
        query: (1, heads, tokens, size).
        key: (1, key and value heads, tokens, size).
        value: as `key`.
        attention_mask: not used: the layout says who sees whom.
        layout: where prefixes and branches lie.
        scaling: of the scores; default: 1 / sqrt(size).
        dropout: of attention weights.
        sliding_window: a token sees itself and this many minus one before it.
        others: what a model passes along; a soft cap or sinks are refused.

    Returns:
        (1, tokens, heads, size), and no weights.

    Raises:
        NotImplementedError: the layer wants what this attention does not do.
    """
    if wanted := [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]:
        raise NotImplementedError(f"its attention has {' and '.join(wanted)}")
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves what was rotated in float32
    if not dropout and not _outgrown(layout, sliding_window) and flash.available(query):
        if query.dtype.itemsize < 4 and not (query.requires_grad or key.requires_grad or value.requires_grad):
            return flash.without_gradients(query, key, value, layout, scaling or query.shape[-1] ** -0.5).transpose(1, 2), None
        joined: torch.Tensor = flash.FlashShared.apply(query, key, value, layout, scaling or query.shape[-1] ** -0.5)  # type: ignore[no-untyped-call]
        return joined.transpose(1, 2), None
    return _plain(query, key, value, layout, sliding_window, {"scale": scaling, "dropout_p": dropout}), None


def _outgrown(layout: Layout, window: int | None) -> bool:
    """Whether a row is longer than a sliding window."""
    return window is not None and any(prefix + max((own for _, own in branches), default=0) > window for _, prefix, branches in layout.documents)


def _plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, sliding_window: int | None, how: dict[str, Any]) -> torch.Tensor:
    """One call with one mask; on any device, with any window."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    mask = _mask(layout, sliding_window, query.device, query.dtype)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, **how).transpose(1, 2)


@lru_cache(maxsize=2)  # the layers of a pass, with and without a window, have the same
def _mask(layout: Layout, window: int | None, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(tokens, tokens): 0 where a token (row) sees another (column), else -inf. Not of truth values: each layer would keep a copy in numbers."""
    places = []  # of each token: its document, its branch (0: the prefix), its position in the row
    for document, (_, prefix, branches) in enumerate(layout.documents):
        places += [(document, 0, position) for position in range(prefix)]
        places += [(document, branch, prefix + step) for branch, (_, own) in enumerate(branches, 1) for step in range(own)]
    document, branch, position = torch.tensor(places, device=device).T.unsqueeze(-1)
    before = position - position.T
    seen = (document == document.T) & ((branch.T == 0) | (branch == branch.T)) & (before >= 0)
    if window:
        seen &= before < window
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)


def shared_layout(model: Any) -> AbstractContextManager[None]:
    """Let a model take shared passes (`layout=...`) while the block lasts."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, shared_attention)
    return attention(model, NAME)


def why_not_shared(model: Any, groups: Sequence[Group], loss: Callable[[Any, dict[str, Any]], torch.Tensor], *, pad: int) -> str:
    """Why a model cannot take shared passes; empty if it can.

    Its configuration is read first; then the loss and all gradients of one document, cut short, under some of its tasks are computed both ways.

    Args:
        model: with or without an adapter.
        groups: the training data; the shortest document with more than one row is tried.
        loss: a model and a pass to the mean nll of each example.
        pad: token id that fills short rows.
    """
    if why := _why_not_by_kind(model):
        return why
    several = [group for group in groups if len(group.rows) > 1]
    if not several:
        return ""
    group = _sample(min(several, key=lambda one: one.shared_tokens))
    was_training = model.training
    model.eval()  # no dropout: it would differ between the two
    try:
        wanted, gradients = _loss_and_gradients(model, pass_of([group], compute="rows", pad=pad), loss)
        with shared_layout(model):
            found, same = _loss_and_gradients(model, pass_of([group], compute="shared", pad=pad), loss)
    except (NotImplementedError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    finally:
        model.train(was_training)
    return _difference(wanted, found, gradients, same, TOLERANCE[_precision(unwrapped(model))])


def _precision(model: Any) -> torch.dtype:
    """What a model computes in; one of few bits calls itself float32, and computes in half of that."""
    return torch.bfloat16 if getattr(model, "is_quantized", False) or model.dtype not in TOLERANCE else model.dtype


def _sample(group: Group) -> Group:
    """At most three rows of a group, and of their prefix at most the first and last SAMPLE tokens: the check must cost little memory and time."""
    cut = max(0, group.prefix - 2 * SAMPLE)
    rows = []
    for row in group.rows[:3]:
        ids = row.rendered.ids
        short = Rendered(ids[:SAMPLE] + ids[SAMPLE + cut :], row.rendered.answer_start - cut, 0, range(0)) if cut else row.rendered
        rows.append(replace(row, rendered=short))
    return group_of(rows, document=group.document, matched=group.matched)


def _why_not_by_kind(model: Any) -> str:
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        return f"{config.peft_type} adapters put tokens of their own before the prompt" if config else ""
    inner = unwrapped(model)
    text = inner.config.get_text_config()
    if text.is_encoder_decoder:
        return "it is an encoder and decoder"
    if other := sorted(set(getattr(text, "layer_types", None) or ()) - ATTENDING):
        return f"it has layers that are no attention over all tokens before ({', '.join(other)})"
    if not getattr(inner, "_supports_attention_backend", False):
        return "its attention cannot be exchanged (recurrent, or code of its own)"
    return ""


def _loss_and_gradients(model: Any, batch: dict[str, Any], loss: Callable[[Any, dict[str, Any]], torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    device = unwrapped(model).device
    total = loss(model, {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}).sum()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(total, trained, allow_unused=True) if trained else []
    return total.detach(), [torch.zeros(()) if gradient is None else gradient for gradient in found]


def _difference(wanted: torch.Tensor, found: torch.Tensor, gradients: list[torch.Tensor], same: list[torch.Tensor], tolerance: float) -> str:
    norm = torch.stack([gradient.double().norm() for gradient in gradients]).norm() if gradients else torch.ones(())
    apart = torch.stack([(a.double() - b.double()).norm() for a, b in zip(gradients, same, strict=True)]).norm() if gradients else torch.zeros(())
    off = [abs(float(found - wanted)) / max(1.0, abs(float(wanted))), float(apart / norm.clamp(min=1e-12))]
    if max(off) <= tolerance:
        return ""
    return f"loss and gradients differ from those of plain rows by {off[0]:.1g} and {off[1]:.1g} (at most {tolerance:g} is rounding)"
