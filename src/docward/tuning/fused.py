"""The same layers with fewer passes over memory: adapted linear layers, RMS norms and gated units in forms that keep less and copy less.

In: a model with LoRA. Out: the same model, whose modules compute the same function another way while the `with` block lasts. A module is exchanged only if it
is of the kind that is known here, and, for norms and gated units, if it gives what the new form gives on a small input; all others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear, silu


class LoraLinear(torch.autograd.Function):
    """x W' + b + scaling * x A' B' (arXiv 2106.09685), with the adapter's part added in place and only x and x A' kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
        """Give (..., out) for x (..., in), weight (out, in), a (rank, in), b (out, rank)."""
        flat, down, up = x.reshape(-1, x.shape[-1]), a.to(x.dtype), (b * scaling).to(x.dtype)
        low = flat @ down.T
        ctx.save_for_backward(flat, weight, down, up, low)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (a.dtype, b.dtype)
        return linear(flat, weight, bias).addmm_(low, up.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, a and b; the thin products are written so that the long side is read once (transposed they take four times as long on a CPU)."""
        flat, weight, down, up, low = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        through = gradient @ up
        x = (gradient @ weight).addmm_(through, down).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return x, None, None, (through.T @ flat).to(ctx.dtypes[0]), (low.T @ gradient).T.to(ctx.dtypes[1]) * ctx.scaling, None


class RmsNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps), in float32 at least (arXiv 1910.07467); x and one number a row are kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Give (..., size) for x (..., size) and weight (size,)."""
        wide = x if x.dtype.itemsize >= 4 else x.float()
        scale = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        found: torch.Tensor = (wide * scale).to(x.dtype).mul_(weight)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, and of the weight where it is trained."""
        x, weight, scale = ctx.saved_tensors
        wide = x if x.dtype.itemsize >= 4 else x.float()
        weighed = gradients[0] * weight
        if weighed.dtype != wide.dtype:
            weighed = weighed.to(wide.dtype)
        along = torch.linalg.vecdot(weighed, wide).unsqueeze(-1).mul_(scale.pow(3)).div_(-x.shape[-1])
        inner = (gradients[0] * wide * scale).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return weighed.mul_(scale).addcmul_(wide, along).to(x.dtype), inner, None


class Gated(torch.autograd.Function):
    """silu(gate) * up (arXiv 2002.05202); only gate and up are kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Give (..., size) for two of that shape."""
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradients[0] * up, gate), silu(gate).mul_(gradients[0])


@contextmanager
def fused(model: torch.nn.Module) -> Iterator[int]:
    """Exchange what can be exchanged in `model` while the block lasts; yields how many modules were."""
    exchanged = []
    for module in model.modules():
        forward = _adapted(module) or _normed(module) or _gated(module)
        if forward is not None:
            module.forward = forward
            exchanged.append(module)
    try:
        yield len(exchanged)
    finally:
        for module in exchanged:
            del module.forward


Forward = Callable[..., torch.Tensor]


def _adapted(module: Any) -> Forward | None:
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or type(module.base_layer) is not torch.nn.Linear or len(module.active_adapters) != 1:
        return None
    name, plain = module.active_adapters[0], module.forward
    if name not in module.lora_A or module.use_dora.get(name) or module.lora_bias.get(name) or module.base_layer.weight.requires_grad:
        return None
    dropout = module.lora_dropout[name]

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = module.base_layer
        dropped = module.training and not isinstance(dropout, torch.nn.Identity)
        if module.disable_adapters or module.merged or dropped or args or kwargs or x.dtype != base.weight.dtype:
            found: torch.Tensor = plain(x, *args, **kwargs)
            return found
        given = (base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])
        result: torch.Tensor = LoraLinear.apply(x, *given)  # type: ignore[no-untyped-call]
        return result

    return forward


def _normed(module: Any) -> Forward | None:
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, torch.nn.Parameter) or eps is None or weight.device.type != "cpu":
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = RmsNorm.apply(x, module.weight, eps)  # type: ignore[no-untyped-call]
        return result

    return forward if _same(module, forward, weight) else None


def _gated(module: Any) -> Forward | None:
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    weight = next((weight for weight in module.parameters()), None)
    if any(not hasattr(module, part) for part in parts) or weight is None or weight.device.type != "cpu":
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = module.down_proj(Gated.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-untyped-call]
        return result

    inner = getattr(module.gate_proj, "base_layer", module.gate_proj)
    return forward if _same(module, forward, inner.weight) else None


def _same(module: Any, forward: Forward, weight: torch.Tensor) -> bool:
    """Whether a new form gives what the module gives, to rounding."""
    if not weight.dtype.is_floating_point:
        return False
    probe = torch.linspace(-2, 2, 3 * weight.shape[-1]).reshape(1, 3, -1).to(weight.dtype)
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.allclose(module(probe), forward(probe), rtol=1e-4 if weight.dtype.itemsize >= 4 else 0.02, atol=1e-5)
    finally:
        module.train(was)
