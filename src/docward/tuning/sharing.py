"""One pass over a document for all its tasks: an attention in which the branches of a document see its prefix and themselves, and nothing else.

In: a model of transformers and a shared pass (see `packing`). Out: the loss and gradients that plain rows give, for K(P + s) tokens at the price of P + Ks.
Each key and value of the prefix is one node of the graph that K branches use, so its gradient is the sum of theirs. `why_not_shared` runs both computes on two
documents and says why a model cannot do it, if it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from docward.errors import TuningError
from docward.models import attention, unwrapped
from docward.rendering import Rendered
from docward.tuning import attention as flash
from docward.tuning.packing import Group, Layout, group_of, pass_of

NAME = "docward_shared"
# Largest difference of gradients between the two computes, over the gradient's norm, that is taken for rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
SAMPLE = 100  # tokens of a document that the check takes, besides those of a sliding window
STIR = 0.02  # spread of what the check adds to B matrices: enough for gradients of the A ones, too little for rounding to grow
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


Loss = Callable[[Any, dict[str, Any]], torch.Tensor]
Found = tuple[torch.Tensor, list[torch.Tensor]]


def why_not_shared(model: Any, groups: Sequence[Group], loss: Loss, *, pad: int) -> str:
    """Why a model cannot take shared passes; empty if it can.

    Its configuration is read first; then the losses and all gradients of two documents, cut short, under two of their tasks each are computed both ways: row by
    row, and all in one pass. Adapters are made to do something meanwhile, and are left as they were.

    Args:
        model: with or without an adapter.
        groups: the training data. Short documents with more than one row are tried, and one that is longer than the model's sliding window, if there is any.
        loss: a model and a pass to the mean nll of each example.
        pad: token id that fills short rows.

    Raises:
        TuningError: there is too little memory for the check, which says nothing of the model.
    """
    if why := _why_not_by_kind(model):
        return why
    sample = _sample(groups, getattr(unwrapped(model).config.get_text_config(), "sliding_window", None) or 0)
    alone = [group_of([row], document=group.document, matched=group.matched) for group in sample for row in group.rows]
    was_training = model.training
    model.eval()  # no dropout: it would differ between the two
    try:
        with _stirred(model):
            wanted = _nll_and_gradients(model, [pass_of([one], compute="rows", pad=pad) for one in alone], loss)
            with shared_layout(model):
                found = _nll_and_gradients(model, [pass_of(sample, compute="shared", pad=pad)], loss)
    except (NotImplementedError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):  # the CPU's has no type of its own
            raise TuningError(
                f"Too little memory to check that documents can be shared between tasks ({sum(one.shared_tokens for one in sample)} tokens in one pass). "
                "Lower tuning.max_length, or set tuning.compute=rows, which needs no check."
            ) from error
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    finally:
        model.train(was_training)
    return _difference(wanted, found, TOLERANCE[_precision(unwrapped(model))])


def _precision(model: Any) -> torch.dtype:
    """What a model computes in; one of few bits calls itself float32, and computes in half of that."""
    return torch.bfloat16 if getattr(model, "is_quantized", False) or model.dtype not in TOLERANCE else model.dtype


def _sample(groups: Sequence[Group], window: int) -> list[Group]:
    """Two documents of at most two rows each, cut short: the check must cost little memory and time.

    Documents with branches go before those without, short ones before long ones; but one is longer than the window, if there is such a one. The last has
    branches, if any has: they could read the first one's.
    """
    order = sorted(groups, key=lambda one: (len(one.rows) < 2, one.shared_tokens))
    long = [one for one in order if window and one.width > window][:1]
    short = [one for one in order if one not in long][: 2 - len(long)]
    return sorted([_cut(one, SAMPLE) for one in short] + [_cut(one, window + SAMPLE) for one in long], key=lambda one: len(one.rows))


def _cut(group: Group, most: int) -> Group:
    """Two rows of a group, and of their prefix at most so many tokens, the first and the last ones."""
    head, cut = most // 2, max(0, group.prefix - most)
    rows = []
    for row in group.rows[:2]:
        ids, start = row.rendered.ids, row.rendered.answer_start
        rows.append(replace(row, rendered=Rendered(ids[:head] + ids[head + cut :], max(min(start, head), start - cut), 0, range(0))))
    return group_of(rows, document=group.document, matched=group.matched)


@contextmanager
def _stirred(model: Any) -> Iterator[None]:
    """A model whose adapters do something while the block lasts: their B matrices begin as 0, and then no gradient reaches the A ones."""
    weights = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    before = [weight.detach().clone() for weight in weights]
    chance = torch.Generator().manual_seed(0)  # of its own: what a run draws must not depend on the check
    try:
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn(weight.shape, generator=chance).to(weight.device), alpha=STIR)
        yield
    finally:
        with torch.no_grad():
            for weight, was in zip(weights, before, strict=True):
                weight.copy_(was)


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


def _nll_and_gradients(model: Any, passes: Sequence[dict[str, Any]], loss: Loss) -> Found:
    """The nll of each example, and the gradients of their sum."""
    device = unwrapped(model).device
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    values: list[torch.Tensor] = []
    sums: list[torch.Tensor | None] = [None] * len(trained)
    for batch in passes:
        nll = loss(model, {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()})
        values.append(nll.detach())
        found = torch.autograd.grad(nll.sum(), trained, allow_unused=True) if trained else ()
        sums = [total if one is None else one if total is None else total + one for total, one in zip(sums, found, strict=True)]
    return torch.cat(values), [torch.zeros(()) if one is None else one for one in sums]


def _difference(wanted: Found, found: Found, tolerance: float) -> str:
    off = [_apart([wanted[0]], [found[0]], least=1.0), _apart(wanted[1], found[1], least=1e-12)]
    if max(off) <= tolerance:
        return ""
    return f"losses and gradients differ from those of plain rows by {off[0]:.1g} and {off[1]:.1g} (at most {tolerance:g} is rounding)"


def _apart(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor], *, least: float) -> float:
    """The norm of the difference, over the norm of what is wanted, or over `least` where that is smaller."""
    norm = math.hypot(*(float(one.double().norm()) for one in wanted))
    return math.hypot(*(float((one.double() - other.double()).norm()) for one, other in zip(wanted, found, strict=True))) / max(norm, least)
