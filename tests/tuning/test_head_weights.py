"""Where neurons can read and a head can average, and the adapter weights that let them."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Ernie4_5Config,
    Ernie4_5ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from docward.models import Loaded, load
from docward.recipe import TuningSection
from docward.tuning.adapters import prepare, reading_head
from docward.tuning.head_weights import GATED, PARTS, Place, reading_place, unseen_direction, write_head, write_neurons
from docward.tuning.reading_head import steady_direction
from heads import SHAPE, attention_of, drawn, gemma3, outputs, qwen, spread_of

SECTION = TuningSection(refusal_token="auto", decision_weight=1.0, lora_r=4)


@pytest.fixture
def tokened(with_token) -> Loaded:
    return load(str(with_token), dtype="float32")


@pytest.mark.parametrize(("heads", "groups", "number"), [(6, 2, 0), (6, 2, 4), (4, 4, 3), (4, 1, 2), (1, 1, 0)])  # grouped, one a head, one for all, alone
@pytest.mark.parametrize("more", [{}, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}}])
def test_a_head_writes_what_it_reads_and_no_more(tokened, heads, groups, number, more):
    torch.manual_seed(0)
    shape = SHAPE | {"num_attention_heads": heads, "num_key_value_heads": groups} | more
    loaded = replace(tokened, model=LlamaForCausalLM(LlamaConfig(**shape)).eval())
    section = SECTION.model_copy(update={"refusal_token": None})
    place, size, ids = reading_place(loaded.model, section), 8, list(range(5, 40))
    assert place == Place(1, 16, 2, size)
    ranks = place.ranks(2)
    config = LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=[*PARTS, *GATED], rank_pattern=ranks, alpha_pattern=dict.fromkeys(ranks, 5))
    model = get_peft_model(loaded.model, config)
    attention = attention_of(model, place.layer)
    reads, direction = 0.3 * drawn(0, 48), torch.nn.functional.normalize(drawn(1, 48), dim=0)
    states, before = outputs(model, place.layer, ids)
    write_head(attention, size, number, reads, 3.0 * direction)
    same, after = outputs(model, place.layer, ids)
    assert torch.equal(states, same)
    so_far = states.cumsum(0) / torch.arange(1, len(ids) + 1).unsqueeze(1)
    said = 3.0 * (so_far @ reads).unsqueeze(1) * direction
    with torch.no_grad():  # the same layer without the head, and without what those that share with it gave up
        parts = {name: getattr(attention, name).base_layer.weight for name in PARTS}
        changed = {name: parts[name] + getattr(attention, name).get_delta_weight("default") for name in PARTS}
        assert torch.equal(changed["k_proj"], parts["k_proj"])
        parts["o_proj"][:, number * size : (number + 1) * size] = 0
        sharing = heads // groups
        rows = slice(number // sharing * size, (number // sharing + 1) * size)
        given = changed["v_proj"] - parts["v_proj"]
        assert torch.cat([given[: rows.start], given[rows.stop :]]).abs().sum() < 1e-5
        assert int(torch.linalg.matrix_rank(given[rows], tol=1e-4)) == 1  # of values, a direction, and one that heads left over read little
        for mate in set(range(number // sharing * sharing, (number // sharing + 1) * sharing)) - {number}:
            outs = parts["o_proj"][:, mate * size : (mate + 1) * size]
            assert (outs @ torch.linalg.svd(given[rows]).U[:, :1]).norm() < outs.norm() / size**0.5
        parts["v_proj"] += given
        with model.disable_adapter():
            _, without = outputs(model, place.layer, ids)
    assert torch.allclose(after, without + said, atol=1e-3)
    assert not torch.allclose(before, without, atol=1e-2)


def test_the_direction_is_heeded_little_and_lies_where_states_are_alike(tokened):
    model, draw = prepare(tokened, SECTION), torch.Generator().manual_seed(0)
    base = model.base_model.model
    layers = base.get_decoder().layers
    parts = [(base.get_output_embeddings().weight, base.get_decoder().norm.weight)]
    parts += [(getattr(layers[-1].self_attn, name).base_layer.weight, layers[-1].input_layernorm.weight) for name in ("q_proj", "k_proj", "v_proj")]
    draws = torch.nn.functional.normalize(torch.randn(20, 32, generator=draw), dim=1)
    last = torch.randn(200, 32, generator=draw)
    found = unseen_direction(model, torch.cov(last.T), len(layers) - 2, behind="self_attn")
    quiet = unseen_direction(model, 1e-9 * torch.eye(32), len(layers) - 2, behind="self_attn")

    def moved(directions):
        with torch.no_grad():
            return sum(float(((weight * norm) @ directions.T).norm() / (weight * norm).norm()) for weight, norm in parts) / len(directions) ** 0.5

    assert moved(found.unsqueeze(0)) < 1.05 * moved(draws)
    assert moved(quiet.unsqueeze(0)) < 0.95 * moved(draws)
    assert (last @ found).std() < (last @ draws.T).std(0).min()
    loud = last + 1000 * torch.randn(200, 1, generator=draw) * found
    assert (unseen_direction(model, torch.cov(loud.T), len(layers) - 2, behind="self_attn") @ found).abs() < 0.1


def test_what_stands_behind_the_head_is_asked_and_what_stands_before_is_not(tokened):
    model = prepare(tokened, SECTION)
    layers = model.base_model.model.get_decoder().layers
    alike = torch.eye(32)
    was = unseen_direction(model, alike, len(layers) - 2, behind="self_attn")
    with torch.no_grad():
        layers[-2].self_attn.q_proj.base_layer.weight += 100 * torch.outer(torch.ones(32), was)
    assert torch.allclose(unseen_direction(model, alike, len(layers) - 2, behind="self_attn"), was)
    for layer in (-1, -2):  # the head's own layer has its MLP behind it
        was, weight = unseen_direction(model, alike, len(layers) - 2, behind="self_attn"), layers[layer].mlp.up_proj.base_layer.weight
        with torch.no_grad():
            weight += 100 * torch.outer(torch.ones(len(weight)), was)
        assert (unseen_direction(model, alike, len(layers) - 2, behind="self_attn") @ was).abs() < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [qwen, gemma3], ids=["Qwen 3", "Gemma 3"])
def test_a_head_behind_norms_looks_at_all_alike_merged_or_not(family, dtype):
    """What attention gives, against the layer without that head, a norm behind attention left aside.

    In bfloat16 a query of 0 would be rounding, which a norm makes as long as a query.
    """
    model = family().eval().to(dtype)
    section = SECTION.model_copy(update={"refusal_token": None})
    place, size, ids = reading_place(model, section), 8, list(range(5, 40))
    ranks = place.ranks(2)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=[*PARTS, *GATED], rank_pattern=ranks, alpha_pattern=ranks))
    attention = attention_of(tuned, place.layer)
    for name in PARTS:
        getattr(attention, name).base_layer.weight.data *= 20  # so that there is something to round
    reads, direction = 0.3 * drawn(0, 48), torch.nn.functional.normalize(drawn(1, 48), dim=0)
    states, _ = outputs(tuned, place.layer, ids)
    write_head(attention, size, 4, reads, 3.0 * direction, 20 * steady_direction([spread_of(states.float())]))
    states, after = (one.float() for one in outputs(tuned, place.layer, ids))
    so_far = states.cumsum(0) / torch.arange(1, len(ids) + 1).unsqueeze(1)
    keys = attention.k_proj.base_layer.weight + attention.k_proj.get_delta_weight("default").to(dtype)
    given_up = (keys.float().abs().amax(1) < 1e-6).nonzero()[:, 0]
    assert len(given_up) == 2
    assert given_up[1] - given_up[0] == size // 2
    assert given_up[0] // size == 1
    with torch.no_grad():
        attention.v_proj.base_layer.weight += attention.v_proj.get_delta_weight("default").to(dtype)
        attention.o_proj.base_layer.weight[:, 4 * size : 5 * size] = 0
        attention.k_proj.base_layer.weight[given_up] = 0
        with tuned.disable_adapter():
            without = outputs(tuned, place.layer, ids)[1].float()
    wanted = 3.0 * (so_far @ reads).unsqueeze(1) * direction
    assert (after - without - wanted).norm() < (1e-5 if dtype == torch.float32 else 0.1) * wanted.norm()


def test_what_is_in_front_of_an_mlp_does_not_see_what_that_writes(tokened):
    model = prepare(tokened, SECTION)
    layers, alike = model.base_model.model.get_decoder().layers, torch.eye(32)
    was = unseen_direction(model, alike, 0, behind="mlp")
    for block in (layers[0].self_attn.q_proj, layers[0].mlp.up_proj):
        with torch.no_grad():
            block.base_layer.weight += 100 * torch.outer(torch.ones(len(block.base_layer.weight)), was)
    assert torch.allclose(unseen_direction(model, alike, 0, behind="mlp"), was)
    with torch.no_grad():
        layers[1].self_attn.q_proj.base_layer.weight += 100 * torch.outer(torch.ones(32), was)
    assert (unseen_direction(model, alike, 0, behind="mlp") @ was).abs() < 0.2


def test_a_second_direction_is_at_right_angles_to_the_first(tokened):
    model = prepare(tokened, SECTION)
    first = unseen_direction(model, torch.eye(32), 1, behind="self_attn")
    second = unseen_direction(model, torch.eye(32), 1, behind="self_attn", beside=first)
    assert float(first @ second) == pytest.approx(0, abs=1e-3)
    assert float(second.norm()) == pytest.approx(1, abs=1e-4)


def test_neurons_write_what_they_read_and_the_others_what_they_did(tokened):
    model = prepare(tokened, SECTION.model_copy(update={"lora_r": 8}))
    mlp = model.base_model.model.get_decoder().layers[1].mlp
    parts = {name: getattr(mlp, name).base_layer.weight.detach().clone() for name in GATED}
    chosen, states = torch.tensor([3, 17, 5]), drawn(0, 9, 32)
    gates, ups, written = drawn(1, 3, 32), drawn(2, 3, 32), drawn(3, 32, 3)
    write_neurons(mlp, chosen, gates, ups, written)
    with torch.no_grad():
        opened = mlp.act_fn(states @ parts["gate_proj"].T) * (states @ parts["up_proj"].T)
        opened[:, chosen] = 0
        wanted = opened @ parts["down_proj"].T + (mlp.act_fn(states @ gates.T) * (states @ ups.T)) @ written.T
        torch.testing.assert_close(mlp(states), wanted, rtol=1e-4, atol=1e-5)


def test_the_layers_are_those_of_the_neurons_and_the_head_where_a_token_can_listen_to_them(tokened, monkeypatch):
    def found(model, **changes):
        return reading_head(replace(tokened, model=model), SECTION.model_copy(update={"lora_first_layer": "auto", **changes}))

    here = SHAPE | {"vocab_size": len(tokened.tokenizer) + 8}
    llama = LlamaForCausalLM(LlamaConfig(**here))
    assert found(llama) == (1, Place(1, 16, 2, 8))
    assert found(gemma3(vocab_size=here["vocab_size"])) == (0, Place(0, 16, 1, 8, True))
    assert found(llama, refusal_token=None) == (0, None)
    assert found(Gemma2ForCausalLM(Gemma2Config(**here))) == (0, None)  # its logits are capped
    assert found(GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=2, vocab_size=here["vocab_size"]))) == (0, None)
    assert found(llama, lora_first_layer=0) == (0, Place(1, 16, 2, 8))
    deep = LlamaForCausalLM(LlamaConfig(**here | {"num_hidden_layers": 10}))
    assert found(deep) == (4, Place(4, 16, 5, 8))
    monkeypatch.setattr("docward.processes.spread", lambda: True)
    assert found(llama) == (0, None)


@pytest.mark.parametrize(("epochs", "layers"), [(0, {"1", "2"}), (1, {"1", "2", "3"})])
def test_without_steps_only_the_layers_of_neurons_and_head_are_adapted(tokened, epochs, layers):
    loaded = replace(tokened, model=LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": len(tokened.tokenizer) + 8})))
    model = prepare(loaded, SECTION.model_copy(update={"lora_first_layer": "auto", "num_train_epochs": epochs}))
    assert {name.split("layers.")[1].split(".")[0] for name, _ in model.named_parameters() if "lora_A" in name} == layers


def without_mlp(count, number):
    """A Llama of `count` layers, one of which has something else in place of its MLP."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": count}))
    model.get_decoder().layers[number].mlp = torch.nn.Identity()
    return model


def gating_with_bias():
    return LlamaForCausalLM(LlamaConfig(**SHAPE, mlp_bias=True))


@pytest.mark.parametrize(
    ("model", "section", "place"),
    [
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {}, Place(1, 16, 2, 8)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE | {"intermediate_size": 400})), {}, Place(1, 32, 2, 8)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_first_layer": 1}, Place(1, 16, 2, 8)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_first_layer": "auto"}, Place(1, 16, 2, 8)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_first_layer": 2}, None),  # its neurons would be below
        (LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": 8})), {}, Place(3, 16, 4, 8)),  # half-way up
        (LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": 8})), {"lora_first_layer": 5}, Place(5, 16, 6, 8)),
        (without_mlp(8, 7), {}, None),  # what is above matters
        (without_mlp(8, 3), {}, None),  # there the neurons would be
        (without_mlp(8, 2), {}, Place(3, 16, 4, 8)),  # what is below does not matter
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"use_dora": True}, None),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_target_modules": [*PARTS, "gate_proj", "up_proj"]}, None),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_target_modules": [*PARTS, *GATED]}, Place(1, 16, 2, 8)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)), {}, None),
        (gating_with_bias(), {}, None),
        (qwen(), {}, Place(1, 16, 2, 8, True)),  # norms on its queries
        (Ernie4_5ForCausalLM(Ernie4_5Config(**SHAPE)), {}, Place(1, 16, 2, 8)),  # rotary positions on neighbours: a query of 0 is none either way
        (GemmaForCausalLM(GemmaConfig(**SHAPE)), {}, Place(1, 16, 2, 8)),  # norms that multiply by one more than their weight
        (gemma3(), {}, Place(0, 16, 1, 8, True)),  # norms behind attention, too; layers 2 and 3 see windows
        (Gemma2ForCausalLM(Gemma2Config(**SHAPE)), {}, Place(0, 16, 1, 8)),  # scores that are capped
        (Olmo2ForCausalLM(Olmo2Config(**{name: value for name, value in SHAPE.items() if name != "head_dim"})), {}, None),  # a norm over all heads' queries
        (PhiForCausalLM(PhiConfig(**{name: value for name, value in SHAPE.items() if name != "head_dim"})), {}, None),  # LayerNorm
    ],
)
def test_where_neurons_and_head_can_be(model, section, place):
    assert reading_place(model, TuningSection(refusal_token="auto", **section)) == place
