"""One pass over a document for all its tasks gives the loss and the gradients of plain rows, or says why it cannot."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import cache

import pytest
import torch

from docward.models import Loaded
from docward.recipe import TuningSection
from docward.tuning.adapters import prepare
from docward.tuning.losses import anchor_kl, example_nll
from docward.tuning.packing import Group, fit_passes, group_of, pass_of, size_of
from docward.tuning.sharing import shared_layout, why_not_shared
from docward.tuning.tuning import choose_compute, training_groups
from tiny import byte_tokenizer, training_examples

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
TOGETHER = {"max_batch_tokens": 100_000, "max_length": 1024}


def shared_examples(groups: int):
    return training_examples(groups, ("summarize", "sentiment", "case", "translate"))


@cache
def word_tokenizer():
    """Of the examples' words: rows still outgrow the windows below, and attention costs a tenth of what it does on bytes."""
    return byte_tokenizer(words=[text for one in shared_examples(2) for text in (one.instruction, one.document, one.response)])


def family(name: str, **changes) -> Loaded:
    """A tiny model of a family, with random weights, in float64."""
    import transformers

    tokenizer = word_tokenizer()
    ends = {"vocab_size": len(tokenizer)} | {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    extra = {
        "Llama": {},
        "Mistral": {"sliding_window": 40},
        "Qwen3": {"head_dim": 16},
        "Gemma3": {"head_dim": 8, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "Gemma2": {"head_dim": 8, "sliding_window": 24},
        "Phi3": {"sliding_window": 33},
        "Mamba": {},
        "Lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    }[name]
    suffix = "TextConfig" if name == "Gemma3" else "Config"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4} if name == "Mamba" else SMALL
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}{suffix}")(**{**shape, **ends, **extra, **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config).double().eval()
    return Loaded(name, model, tokenizer, name)


def adapted(loaded: Loaded, **changes):
    """With an adapter that does something: B is not 0, so gradients reach A too."""
    model = prepare(loaded, TuningSection(**changes)).double()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def both_ways(model, groups: list[Group], decision_weight: float = 0.3):
    found = []
    for compute in ("rows", "shared"):
        model.zero_grad()
        batch = pass_of(groups, compute=compute, pad=256)
        if compute == "shared":
            with shared_layout(model):
                nll, _ = example_nll(model, batch, decision_weight=decision_weight)
                (batch["factors"] * nll).sum().backward()
        else:
            nll, _ = example_nll(model, batch, decision_weight=decision_weight)
            (batch["factors"] * nll).sum().backward()
        found.append((nll.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}))
    return found


def norm(gradients) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


@pytest.mark.parametrize("switches", [{}, {"use_dora": True}, {"use_rslora": True, "lora_target_modules": "all-linear", "lora_r": 3}], ids=str)
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "Gemma3", "Phi3"])
def test_loss_and_every_adapter_gradient_are_those_of_plain_rows(name, switches):
    loaded = family(name)
    model = adapted(loaded, **switches)
    groups, _ = training_groups(loaded, shared_examples(2), TuningSection(**TOGETHER))
    assert max(len(group.rows) for group in groups) > 1, "nothing is shared, so nothing is tested"
    (rows, wanted), (shared, found) = both_ways(model, groups)
    assert float((rows - shared).abs().max()) < 1e-9
    assert float(rows.mean()) > 1
    assert wanted.keys() == found.keys()
    assert len(wanted) >= 2 * 7 or name == "Phi3"
    for key in wanted:
        assert float((wanted[key] - found[key]).norm()) < 1e-6 * float(wanted[key].norm()), key


@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
def test_all_weights_get_the_gradients_of_plain_rows_too(name):
    loaded = family(name)
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    (_, wanted), (_, found) = both_ways(loaded.model.requires_grad_(True), groups)
    assert norm([wanted[key] - found[key] for key in wanted]) < 1e-6 * norm(wanted.values())


def test_the_anchor_is_the_same_both_ways_and_grows_with_the_adapter():
    loaded = family("Llama")
    model = adapted(loaded)
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    found = []
    for compute in ("rows", "shared"):
        batch = pass_of(groups, compute=compute, pad=256)
        if compute == "shared":
            with shared_layout(model):
                found.append(anchor_kl(model, model.disable_adapter, batch, example_nll(model, batch)[1]))
        else:
            found.append(anchor_kl(model, model.disable_adapter, batch, example_nll(model, batch)[1]))
    torch.testing.assert_close(*found)
    benign = torch.tensor([term == "benign" for term in batch["terms"]])
    assert (found[0][benign] > 0).all()
    assert (found[0][~benign] == 0).all()


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_a_bound_on_tokens_divides_the_work_and_changes_nothing(compute):
    loaded = family("Llama")
    model = adapted(loaded)
    groups, _ = training_groups(loaded, shared_examples(2), TuningSection(**TOGETHER))
    whole = both_ways(model, groups)[0][1]
    for most in (max(group.width for group in groups), 250):
        passes = fit_passes(groups, most, compute)
        assert len(passes) > 1
        assert all(size_of(one, compute) <= most for one in passes)
        assert sum(len(group.rows) for one in passes for group in one) == sum(len(group.rows) for group in groups)
        model.zero_grad()
        for one in passes:
            batch = pass_of(one, compute=compute, pad=256)
            if compute == "shared":
                with shared_layout(model):
                    (batch["factors"] * example_nll(model, batch, decision_weight=0.3)[0]).sum().backward()
            else:
                (batch["factors"] * example_nll(model, batch, decision_weight=0.3)[0]).sum().backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                torch.testing.assert_close(weight.grad, whole[name], rtol=1e-5, atol=1e-8)


def test_the_loss_on_everything_learns_the_prompt_too_and_is_the_same_both_ways():
    loaded = family("Llama")
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    with torch.no_grad():
        rows = example_nll(loaded.model, pass_of(groups, compute="rows", pad=256, loss_on="everything"))[0]
        with shared_layout(loaded.model):
            shared = example_nll(loaded.model, pass_of(groups, compute="shared", pad=256, loss_on="everything"))[0]
        ids = [row.rendered.ids for group in groups for row in group.rows]
        wanted = [loaded.model(input_ids=torch.tensor([one]), labels=torch.tensor([one])).loss for one in ids]
    torch.testing.assert_close(rows, shared)
    torch.testing.assert_close(rows, torch.stack(wanted).to(rows.dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "why"),
    [("Mamba", "no attention over all tokens before"), ("Lfm2", r"no attention over all tokens before \(conv\)"), ("Gemma2", "its attention has softcap")],
)
def test_a_model_that_cannot_share_is_found_out_and_told_why(name, why):
    loaded = family(name)
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    compute, said = choose_compute(loaded, loaded.model, groups, TuningSection())
    assert compute == "rows"
    assert re.search(why, said), said


def test_adapters_that_speak_before_the_prompt_are_found_out():
    from peft import PromptTuningConfig, get_peft_model

    loaded = family("Llama")
    model = get_peft_model(loaded.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    assert "put tokens of their own before the prompt" in choose_compute(loaded, model, groups, TuningSection())[1]


def test_an_attention_that_lets_branches_see_each_other_is_found_out(monkeypatch):
    from docward.tuning import attention

    def leaking(layout):
        for start, prefix, branches in layout.documents:
            head, tail = slice(start, start + prefix), slice(branches[0][0], sum(branches[-1]))
            yield from [(head, head, True), (tail, head, False), (tail, tail, True)]

    loaded = family("Llama")
    model = adapted(loaded)
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    loss = lambda one, batch: example_nll(one, batch)[0]  # noqa: E731
    before = model.training
    assert why_not_shared(model, groups, loss, pad=256) == ""
    monkeypatch.setattr(attention, "_parts", leaking)
    assert "differ from those of plain rows" in why_not_shared(model, groups, loss, pad=256)
    assert model.training is before


def test_a_shared_pass_has_no_padding_and_no_document_twice():
    loaded = family("Llama")
    groups, _ = training_groups(loaded, shared_examples(2), TuningSection(**TOGETHER))
    batch = pass_of(groups, compute="shared", pad=256)
    assert batch["input_ids"].shape == (1, sum(group.prefix + sum(group.own) for group in groups))
    assert batch["input_ids"].numel() < sum(len(row.rendered.ids) for group in groups for row in group.rows)


def test_rows_that_are_the_same_to_the_last_token_can_be_shared():
    loaded = family("Llama")
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    row = groups[0].rows[0]
    twins = group_of([row, row], document="d", matched="d")
    (rows, _), (shared, _) = both_ways(adapted(loaded), [twins])
    assert float((rows - shared).abs().max()) < 1e-9


def test_in_bfloat16_the_default_model_is_as_near_to_float32_shared_as_in_rows(real):
    """What README states: the two computes differ by bfloat16's rounding, which plain rows have too."""
    from docward.models import load
    from docward.tuning.fused import fused

    gradients = {}
    for loaded in (real, load("smollm2-135m", dtype="bfloat16")):
        groups, _ = training_groups(loaded, shared_examples(1), TuningSection())
        torch.manual_seed(0)
        model = prepare(loaded, TuningSection())
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        try:
            for compute in ("rows", "shared"):
                with ExitStack() as stack:
                    if compute == "shared":
                        stack.enter_context(shared_layout(model))
                        stack.enter_context(fused(model))
                    nll = example_nll(model, pass_of(groups[:1], compute=compute, pad=0))[0].sum()
                    trained = [weight for weight in model.parameters() if weight.requires_grad]
                    gradients[loaded.model.dtype, compute] = torch.cat([one.flatten().double() for one in torch.autograd.grad(nll, trained)])
        finally:
            model.unload()
    exact = gradients[torch.float32, "rows"]
    apart = {key: float((found - exact).norm() / exact.norm()) for key, found in gradients.items()}
    assert apart[torch.float32, "shared"] < 1e-4
    assert apart[torch.bfloat16, "rows"] < 0.1
    assert apart[torch.bfloat16, "shared"] < 1.5 * apart[torch.bfloat16, "rows"]
