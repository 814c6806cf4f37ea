from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest
import torch

from docward.models import Loaded, load
from docward.recipe import TuningSection
from docward.tuning.adapters import with_lora
from docward.tuning.frozen import from_layer, frozen_below
from docward.tuning.losses import example_nll
from docward.tuning.packing import Group, fit_passes, pass_of
from docward.tuning.sharing import shared_layout
from docward.tuning.tuning import training_groups
from tiny import training_examples

COMPUTES = pytest.mark.parametrize("compute", ["rows", "shared"])


def some_groups(loaded: Loaded) -> list[Group]:
    return training_groups(loaded, training_examples(1, ("summarize", "sentiment", "case")), TuningSection(max_length=512))[0]


def nll_of(model: torch.nn.Module, groups: list[Group], compute: str) -> torch.Tensor:
    with shared_layout(model) if compute == "shared" else nullcontext():
        return example_nll(model, pass_of(groups, compute=compute, pad=0))[0]


def loss_and_gradients(model: torch.nn.Module, groups: list[Group], compute: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = nll_of(model, groups, compute).sum()
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def frozen(loaded: Loaded, groups: list[Group], first: int, compute: str) -> ExitStack:
    stack = ExitStack()
    if compute == "shared":
        stack.enter_context(shared_layout(loaded.model))
    stack.done = stack.enter_context(frozen_below(loaded, groups, first, compute))
    return stack


@COMPUTES
def test_starting_at_the_first_adapted_layer_changes_no_loss_and_no_gradient(tiny_folder, compute):
    loaded = load(str(tiny_folder), dtype="float64")
    torch.manual_seed(0)
    model = with_lora(loaded, TuningSection(lora_first_layer=1, lora_dropout=0.0)).double()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    groups = some_groups(loaded)
    wanted, gradients = loss_and_gradients(model, groups, "rows")
    with frozen(loaded, groups, 1, compute) as stack:
        assert stack.done.done
        assert all(group.states for group in groups)
        found, same = loss_and_gradients(model, groups, compute)
        parts = [part for group in groups for part in fit_passes([group], group.width, compute)]
        assert len(parts) > len(groups)
        model.zero_grad()
        apart = sum(nll_of(model, part, compute).sum().item() for part in parts)
    assert apart == pytest.approx(wanted.item(), rel=1e-7)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-7)
    assert gradients
    assert gradients.keys() == same.keys()
    for name in gradients:
        torch.testing.assert_close(same[name], gradients[name], rtol=1e-5, atol=1e-8)


def test_the_model_is_whole_again_afterwards_and_where_it_must_generate(tiny):
    groups = some_groups(tiny)
    before = nll_of(tiny.model, groups, "rows")
    with frozen_below(tiny, groups, 1, "rows") as done:
        with done.whole():
            whole = example_nll(tiny.model, pass_of([replace(group, states=()) for group in groups], compute="rows", pad=0))[0]
        assert torch.equal(whole, before)
        torch.testing.assert_close(nll_of(tiny.model, groups, "rows"), before)
    assert torch.equal(nll_of(tiny.model, groups, "rows"), before)
    assert all(group.states == () for group in groups)


def test_nothing_is_frozen_where_all_layers_are_adapted(tiny):
    with frozen_below(tiny, some_groups(tiny), 0, "rows") as done:
        assert not done.done


def test_a_model_that_scales_its_embeddings_gives_the_same_loss():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    loaded = Loaded("gemma2", Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **shape)).eval(), tokenizer, "gemma2")
    groups = some_groups(loaded)
    before = nll_of(loaded.model, groups, "rows")
    with frozen_below(loaded, groups, 1, "rows"):
        torch.testing.assert_close(nll_of(loaded.model, groups, "rows"), before)


@COMPUTES
@pytest.mark.parametrize("held", [0, 1])
def test_a_pass_goes_on_from_a_layer_and_what_is_below_is_not_computed_again(tiny_folder, compute, held):
    loaded = load(str(tiny_folder), dtype="float64")
    groups = some_groups(loaded)
    decoder = loaded.model.get_decoder()
    wanted = nll_of(loaded.model, groups, compute)
    ran = []
    lowest = decoder.layers[0]
    hook = lowest.register_forward_hook(lambda *_: ran.append(1))
    with shared_layout(loaded.model) if compute == "shared" else nullcontext(), frozen_below(loaded, groups, held, compute):
        ran.clear()
        with torch.no_grad(), from_layer(decoder, 1, pass_of(groups, compute=compute, pad=0)) as begun:
            found = [example_nll(loaded.model, begun)[0] for _ in range(3)]
        assert len(ran) == (0 if held else 1)
    hook.remove()
    assert decoder.layers[0] is lowest
    for one in found:
        torch.testing.assert_close(one, wanted, rtol=1e-7, atol=1e-9)
