"""The CPU's fast attention of a shared pass against the plain one, in every precision it takes."""

from __future__ import annotations

import pytest
import torch

from docward.tuning.attention import FlashShared, without_gradients
from docward.tuning.packing import Layout
from docward.tuning.sharing import _plain, shared_attention

# Two documents: one with a prefix of more than one block of keys and branches of unlike lengths, one short and with a single branch.
LAYOUT = Layout(((0, 600, ((600, 40), (640, 7), (647, 90))), (737, 20, ((757, 5),))))
TOKENS = 762
# Documents of like and unlike lengths, in no order: some attend together, two by themselves.
MANY = Layout(((0, 90, ()), (90, 100, ()), (190, 30, ()), (220, 95, ((315, 6), (321, 9))), (330, 40, ()), (370, 29, ()), (399, 363, ())))
# Relative errors against float64. Bfloat16 keeps 8 bits (0.4%), which the inputs are rounded to before either path sees them.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.015}


def states(heads: int, size: int, *, strength: float, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (strength * torch.randn(1, TOKENS, heads, size, generator=draw)).bfloat16().double().transpose(1, 2)


@pytest.mark.parametrize("strength", [1.0, 3.0], ids=["even", "peaked"])
@pytest.mark.parametrize("scale", [0.125, 0.11], ids=["power of two", "not one"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_the_fast_attention_is_the_plain_one(dtype, scale, strength):
    inputs = [states(heads, 64, strength=strength, seed=heads + place) for place, heads in enumerate((6, 2, 2))]
    gradient = states(6, 64, strength=1.0, seed=9)
    exact = [one.clone().requires_grad_() for one in inputs]
    wanted = _plain(*exact, LAYOUT, None, {"scale": scale, "dropout_p": 0.0}).transpose(1, 2)
    wanted.backward(gradient)
    fast = [one.to(dtype).requires_grad_() for one in inputs]
    found = FlashShared.apply(*fast, LAYOUT, scale)
    found.backward(gradient.to(dtype))
    pairs = [(found.detach(), wanted.detach()), *((a.grad, b.grad) for a, b in zip(fast, exact, strict=True))]
    apart = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    assert max(apart) < TOLERANCE[dtype], apart


@pytest.mark.parametrize("strength", [1.0, 3.0], ids=["even", "peaked"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("layout", [LAYOUT, MANY], ids=["few", "many"])
def test_without_gradients_it_is_the_plain_one_too(layout, dtype, strength):
    inputs = [states(heads, 64, strength=strength, seed=heads + place) for place, heads in enumerate((6, 2, 2))]
    wanted = _plain(*inputs, layout, None, {"scale": 0.11, "dropout_p": 0.0}).transpose(1, 2)
    found = without_gradients(*(one.to(dtype) for one in inputs), layout, 0.11)
    assert float((found.double() - wanted).norm() / wanted.norm()) < TOLERANCE[dtype]


def test_half_precision_takes_products_where_no_gradient_is_wanted(monkeypatch):
    asked = []
    monkeypatch.setattr("docward.tuning.attention.without_gradients", lambda query, *_: asked.append(query.dtype) or query)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [states(2, 64, strength=1.0, seed=place).to(dtype) for place in range(3)]
        shared_attention(None, *inputs, None, layout=LAYOUT)
        shared_attention(None, inputs[0].requires_grad_(), *inputs[1:], None, layout=LAYOUT)
    assert asked == [torch.bfloat16]
