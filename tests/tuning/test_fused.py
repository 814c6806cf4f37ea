"""The fast forms of layers and attention give what the plain ones give, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from test_sharing import TOGETHER, adapted, both_ways, family, norm, shared_examples

from docward.recipe import TuningSection
from docward.tuning import attention, sharing
from docward.tuning.fused import fused
from docward.tuning.packing import Layout
from docward.tuning.sharing import shared_attention
from docward.tuning.tuning import training_groups

LAYOUT = Layout(((0, 40, ((40, 7), (47, 9))), (56, 11, ()), (67, 5, ((72, 3), (75, 1)))))
# Modules that are exchanged in three layers: all adapted linear ones; two norms a layer and the last; gated units.
EXCHANGED = {"Llama": 21 + 7 + 3, "Mistral": 21 + 7 + 3, "Qwen3": 21 + 13 + 3, "Gemma3": 21, "Phi3": 12 + 7}


@pytest.mark.parametrize("name", list(EXCHANGED))
def test_exchanged_modules_give_the_same_loss_and_gradients(name):
    loaded = family(name)
    model = adapted(loaded)
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    plain = both_ways(model, groups)
    with fused(model) as count:
        assert count == EXCHANGED[name]
        fast = both_ways(model, groups)
    after = both_ways(model, groups)
    for (wanted, gradients), (found, same), (again, _) in zip(plain, fast, after, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)
        assert norm([gradients[key] - same[key] for key in gradients]) < 2e-6 * norm(gradients.values())
        assert torch.equal(again, wanted), "the model is not as it was"


def test_trained_norms_get_their_gradients():
    loaded = family("Llama")
    model = loaded.model.requires_grad_(True)
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    (_, wanted), _ = both_ways(model, groups)
    with fused(model):
        (_, found), _ = both_ways(model, groups)
    assert norm([wanted[key] - found[key] for key in wanted]) < 2e-6 * norm(wanted.values())


def test_dropout_and_an_adapter_switched_off_take_the_plain_way():
    loaded = family("Llama")
    model = adapted(loaded, lora_dropout=0.5)
    ids = torch.arange(20)[None]
    model.train()
    with fused(model), torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        model.eval()
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            untuned = model(input_ids=ids).logits
    assert not torch.allclose(tuned, untuned)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, untuned, rtol=1e-6, atol=1e-7)


def test_a_norm_of_another_kind_stays_as_it_is():
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight * 2

    with fused(torch.nn.Sequential(OddRMSNorm())) as count:
        assert count == 0


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
def test_the_flash_path_gives_the_attention_and_gradients_of_the_plain_one(dtype, apart, heads):
    torch.manual_seed(0)
    states = [torch.randn(1, count, 76, 16, dtype=dtype, requires_grad=True) for count in (heads[0], heads[1], heads[1])]
    upstream = torch.randn(1, 76, heads[0], 16, dtype=dtype)
    assert attention.available(states[0])
    fast, _ = shared_attention(None, *states, None, layout=LAYOUT)
    plain = sharing._plain(*states, LAYOUT, None, {"scale": None, "dropout_p": 0.0})
    assert type(fast.grad_fn.next_functions[0][0]).__name__ == "FlashSharedBackward"
    torch.testing.assert_close(fast, plain, rtol=apart, atol=apart)
    for mine, theirs in zip(torch.autograd.grad(fast, states, upstream), torch.autograd.grad(plain, states, upstream), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=apart, atol=apart)


def test_a_row_longer_than_its_window_takes_the_plain_path():
    states = [torch.randn(1, 2, 76, 16, requires_grad=True) for _ in range(3)]
    assert type(shared_attention(None, *states, None, layout=LAYOUT, sliding_window=48)[0].grad_fn).__name__ != "FlashSharedBackward"
    inside = shared_attention(None, *states, None, layout=LAYOUT, sliding_window=49)[0]
    torch.testing.assert_close(inside, sharing._plain(*states, LAYOUT, 49, {"scale": None, "dropout_p": 0.0}))
    assert type(inside.grad_fn.next_functions[0][0]).__name__ == "FlashSharedBackward"
