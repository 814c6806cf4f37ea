"""One pass over a document for all its tasks gives the loss and the gradients of plain rows, or says why it cannot."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import pytest
import torch

from docward.errors import TuningError
from docward.models import Loaded
from docward.recipe import TuningSection
from docward.tuning import sharing
from docward.tuning.adapters import prepare
from docward.tuning.losses import anchor_kl, example_nll
from docward.tuning.packing import Group, fit_passes, group_of, pass_of, size_of
from docward.tuning.sharing import SAMPLE, shared_layout, why_not_shared
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
        "GptOss": {"head_dim": 8, "sliding_window": 24, "num_local_experts": 2, "num_experts_per_tok": 1},
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


@pytest.mark.parametrize(("name", "wanted"), [("Llama", ""), ("Gemma2", "its attention has softcap"), ("GptOss", "its attention has s_aux")])
def test_where_each_document_has_one_row_a_model_is_tried_too(name, wanted):
    loaded = family(name)
    groups, _ = training_groups(loaded, training_examples(2, ("summarize",)), TuningSection(**TOGETHER))
    assert {len(group.rows) for group in groups} == {1}
    model = loaded.model.float()  # experts have no float64
    assert choose_compute(loaded, model, groups, TuningSection()) == ("rows" if wanted else "shared", wanted)


def test_adapters_that_speak_before_the_prompt_are_found_out():
    from peft import PromptTuningConfig, get_peft_model

    loaded = family("Llama")
    model = get_peft_model(loaded.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    assert "put tokens of their own before the prompt" in choose_compute(loaded, model, groups, TuningSection())[1]


def nll(one, batch):
    return example_nll(one, batch)[0]


def each_other(layout):
    """Branches that see the branches before them."""
    for start, prefix, branches in layout.documents:
        head, tail = slice(start, start + prefix), slice(branches[0][0], sum(branches[-1]))
        yield from [(head, head, True), (tail, head, False), (tail, tail, True)]


def the_first_document(layout):
    """Branches that see the prefix of the pass's first document in place of their own."""
    first = slice(0, layout.documents[0][1])
    for start, prefix, branches in layout.documents:
        head = slice(start, start + prefix)
        yield from [(head, head, True), (slice(branches[0][0], sum(branches[-1])), first, False)]
        yield from ((slice(branch, branch + own), slice(branch, branch + own), True) for branch, own in branches)


@pytest.mark.parametrize("what", [each_other, the_first_document], ids=lambda what: what.__name__)
def test_an_attention_that_lets_branches_see_what_is_not_theirs_is_found_out(what, monkeypatch):
    from docward.tuning import attention

    loaded = family("Llama")
    model = adapted(loaded)
    groups, _ = training_groups(loaded, shared_examples(2), TuningSection(**TOGETHER))
    before = model.training
    assert why_not_shared(model, groups, nll, pad=256) == ""
    monkeypatch.setattr(attention, "_parts", what)
    assert "differ from those of plain rows" in why_not_shared(model, groups, nll, pad=256)
    assert model.training is before


def test_a_sliding_window_is_outgrown_in_the_check_where_it_is_in_training(monkeypatch):
    window = 400
    loaded = family("Mistral", sliding_window=window)
    examples = shared_examples(2)
    groups, _ = training_groups(loaded, examples, TuningSection(**TOGETHER))
    lengthy = [replace(one, document=" ".join([one.document] * 20)) if one.document_id == examples[0].document_id else one for one in examples]
    mixed, _ = training_groups(loaded, lengthy, TuningSection(**TOGETHER))
    assert max(group.width for group in groups) < window < max(group.width for group in mixed) - SAMPLE, "one document outgrows the window"
    assert why_not_shared(loaded.model, mixed, nll, pad=256) == ""
    mask = sharing._mask
    monkeypatch.setattr(sharing, "_mask", lambda layout, window, device, dtype: mask(layout, None, device, dtype))
    assert why_not_shared(loaded.model, groups, nll, pad=256) == ""
    assert "differ from those of plain rows" in why_not_shared(loaded.model, mixed, nll, pad=256)


@pytest.mark.parametrize("answer", ["A plain answer.", "A plain answer. " * 60])
def test_the_check_takes_two_documents_in_one_pass_and_a_bounded_part_of_them(answer):
    loaded = family("Llama")
    lengthy = [replace(one, document=" ".join([one.document] * 20), response=answer) for one in training_examples(2, ("summarize", "sentiment"))]
    seen = []

    def spy(one, batch):
        seen.append(batch)
        return nll(one, batch)

    for tasks in (("summarize", "sentiment"), ("summarize",)):
        groups, _ = training_groups(loaded, [one for one in lengthy if one.task in tasks], TuningSection(max_length=4096, max_batch_tokens=100_000))
        assert why_not_shared(loaded.model, groups, spy, pad=256) == ""
        documents = seen.pop()["layout"].documents
        assert [len(branches) for *_, branches in documents] == [2 * (len(tasks) > 1)] * 2
        assert [prefix for _, prefix, _ in documents] == [SAMPLE, SAMPLE]


def test_the_check_sees_an_adapter_at_work_and_leaves_all_as_it_was():
    loaded = family("Llama")
    model = prepare(loaded, TuningSection(lora_dropout=0.1)).double().train()
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    before, chance = {name: weight.clone() for name, weight in model.state_dict().items()}, torch.get_rng_state()
    at_work = []

    def spy(one, batch):
        at_work.append(all(weight.any() for name, weight in one.named_parameters() if "lora_B" in name))
        return nll(one, batch)

    def failing(one, batch):
        raise RuntimeError("shapes differ")

    assert why_not_shared(model, groups, spy, pad=256) == ""
    assert why_not_shared(model, groups, failing, pad=256) == "shapes differ"
    assert all(at_work)
    assert len(at_work) > 2
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert model.training


def no_room_on_the_cpu():
    torch.empty(10**15)


def no_room_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [no_room_on_the_cpu, no_room_on_a_gpu], ids=lambda fail: fail.__name__)
def test_too_little_memory_is_no_reason_to_take_rows(fail):
    loaded = family("Llama")
    groups, _ = training_groups(loaded, shared_examples(1), TuningSection(**TOGETHER))
    with pytest.raises(TuningError, match=r"Too little memory to check .*\d+ tokens in one pass.*Lower tuning\.max_length, or set tuning\.compute=rows"):
        why_not_shared(loaded.model, groups, lambda one, batch: fail(), pad=256)


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
