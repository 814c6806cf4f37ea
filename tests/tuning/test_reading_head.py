"""Heads that read: what they write, what they leave alone, and which heads get the job."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    Ernie4_5Config,
    Ernie4_5ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
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
    Qwen3Config,
    Qwen3ForCausalLM,
)

from docward.models import Loaded, load
from docward.recipe import TuningSection
from docward.tuning import reading_head
from docward.tuning.adapters import prepare, reading_heads
from docward.tuning.head_weights import PARTS, Head, Place, norm_behind, reading_place, scale_of, unseen_direction, write_heads
from docward.tuning.losses import example_nll
from docward.tuning.packing import fit_passes, pass_of
from docward.tuning.reading_head import (
    Spread,
    _answers,
    _looked,
    give_reading_heads,
    left_out,
    listening_direction,
    missed,
    reading_directions,
    steady_direction,
    through_norm,
)
from docward.tuning.refusal_row import begin_from_a_fit
from docward.tuning.refusal_token import refusal_token_id
from docward.tuning.sharing import shared_layout
from docward.tuning.tuning import training_groups, tune
from tiny import training_examples

SECTION = TuningSection(refusal_token="auto", decision_weight=1.0, lora_r=4)
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture
def tokened(with_token) -> Loaded:
    return load(str(with_token), dtype="float32")


def attention_of(model, layer):
    return model.base_model.model.get_decoder().layers[layer].self_attn


def outputs(model, layer, ids):
    """What the layer's attention takes and gives, each (length, size)."""
    held = {}
    attention = attention_of(model, layer)
    hooks = [
        attention.q_proj.register_forward_pre_hook(lambda _, given: held.update(taken=given[0][0])),
        attention.register_forward_hook(lambda _, given, gave: held.update(given=gave[0][0])),
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return held["taken"], held["given"]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread_of(states):
    found = Spread()
    found.add(states)
    return found


@pytest.mark.parametrize(
    ("heads", "groups", "numbers"),
    [(6, 2, (0, 4)), (6, 2, (2, 0)), (6, 2, (0, 1)), (4, 4, (3, 1)), (4, 1, (2, 3)), (2, 1, (0, 1))],  # grouped, one a head, one for all, none left over
)
@pytest.mark.parametrize("more", [{}, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}}])
def test_heads_write_what_they_read_and_no_more(tokened, heads, groups, numbers, more):
    torch.manual_seed(0)
    shape = SHAPE | {"num_attention_heads": heads, "num_key_value_heads": groups} | more
    loaded = replace(tokened, model=LlamaForCausalLM(LlamaConfig(**shape)).eval())
    section = SECTION.model_copy(update={"refusal_token": None})
    place, size, ids = reading_place(loaded.model, section), 8, list(range(5, 40))
    assert place == Place(2, size, heads // groups, 2)
    ranks = place.ranks(2)
    config = LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=list(PARTS), rank_pattern=ranks, alpha_pattern=dict.fromkeys(ranks, 5))
    model = get_peft_model(loaded.model, config)
    attention, turns = attention_of(model, place.layer), loaded.model.get_decoder().rotary_emb
    reads, direction = 0.3 * drawn(0, 2, 48), torch.nn.functional.normalize(drawn(1, 48), dim=0)
    states, before = outputs(model, place.layer, ids)
    looks, steady = drawn(2, 48) / (states @ drawn(2, 48)).std(), steady_direction([spread_of(states)])
    jobs = [Head(numbers[0], reads[0], 3.0), Head(numbers[1], reads[1], 2.0, looks, steady)]
    write_heads(attention, size, jobs, direction, turned=float(turns.attention_scaling))
    same, after = outputs(model, place.layer, ids)
    assert torch.equal(states, same)
    so_far = states.cumsum(0) / torch.arange(1, len(ids) + 1).unsqueeze(1)
    far = torch.cos(turns.inv_freq[-1] * (torch.arange(len(ids)).unsqueeze(1) - torch.arange(len(ids))))
    asked = ((states @ steady).unsqueeze(1) * (states @ looks) * far).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
    looked = asked.softmax(1) @ states
    assert not torch.allclose(so_far, looked, atol=0.05)
    said = (3.0 * so_far @ reads[0] + 2.0 * looked @ reads[1]).unsqueeze(1) * direction
    with torch.no_grad():  # the same layer without the heads, and without what those that share with them gave up
        parts = {name: getattr(attention, name).base_layer.weight for name in PARTS}
        changed = {name: parts[name] + getattr(attention, name).get_delta_weight("default") for name in PARTS}
        sharing, left = heads // groups, [one for one in range(heads) if one not in numbers]
        group = numbers[1] // sharing
        for number in range(group * sharing, (group + 1) * sharing):
            parts["q_proj"][[number * size + size // 2 - 1, number * size + size - 1]] = 0
        for number in numbers:
            parts["o_proj"][:, number * size : (number + 1) * size] = 0
        for one in range(groups):  # of values, at most a direction a head, and one that heads left over read little
            rows, taking = slice(one * size, (one + 1) * size), [number for number in numbers if number // sharing == one]
            given = changed["v_proj"][rows] - parts["v_proj"][rows]
            assert int(torch.linalg.matrix_rank(given, tol=1e-4)) == len(taking)
            for mate in [number for number in left if number // sharing == one and taking]:
                outs = parts["o_proj"][:, mate * size : (mate + 1) * size]
                up = torch.linalg.svd(given).U[:, : len(taking)]
                assert (outs @ up).norm() / len(taking) ** 0.5 < outs.norm() / size**0.5
            parts["v_proj"][rows] += given
        with model.disable_adapter():
            _, without = outputs(model, place.layer, ids)
    assert torch.allclose(after, without + said, atol=1e-3)
    assert not torch.allclose(before, without, atol=1e-2)


def test_the_steady_direction_gives_one_for_all_states():
    usual = drawn(0, 900, 32) + 5 * drawn(1, 32)
    ends = drawn(2, 90, 32) + 5 * drawn(1, 32) + 3 * drawn(3, 32)
    found = steady_direction([spread_of(usual[:600]), spread_of(ends[:60])])
    for states in (usual[600:], ends[60:]):  # few ends count like many others
        assert (states @ found).mean() == pytest.approx(1, abs=0.03)
        assert (states @ found).std() < 0.1


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_a_looking_head_sees_what_a_softmax_over_the_prompt_gives(tokened, compute):
    groups, _ = training_groups(tokened, training_examples(), SECTION)
    model = prepare(tokened, SECTION)
    place = reading_place(tokened.model, SECTION)
    passes, looks = fit_passes(groups, 600, compute), drawn(0, 32)
    with shared_layout(model) if compute == "shared" else nullcontext():
        found = _looked(model, attention_of(model, place.layer), passes, compute, looks, lambda *_: None)
    rows = [row for one in passes for group in one for row in group.rows]
    assert len(found) == len(rows)
    for mine, row in zip(found, rows, strict=True):
        states, _ = outputs(model, place.layer, row.rendered.ids[: row.rendered.answer_start])
        assert torch.allclose(mine, (states @ looks).softmax(0) @ states, atol=1e-4)


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_the_heads_that_are_missed_least_get_the_job(tokened, compute, monkeypatch):
    model = prepare(tokened, SECTION)
    place = reading_place(tokened.model, SECTION)
    attention = attention_of(model, place.layer)
    with torch.no_grad():  # so that heads matter
        attention.o_proj.base_layer.weight *= torch.tensor([30.0, 3.0, 30.0, 1.0]).repeat_interleave(8)
    groups, _ = training_groups(tokened, training_examples(), SECTION)
    batch = pass_of(groups, compute="rows", pad=0)
    benign = torch.tensor([term != "defense" for term in batch["terms"]])
    wanted = []
    for head in range(4):
        kept = attention.o_proj.base_layer.weight[:, head * 8 : head * 8 + 8].detach().clone()
        with torch.no_grad():
            attention.o_proj.base_layer.weight[:, head * 8 : head * 8 + 8] = 0
            wanted.append(float(example_nll(model, batch)[0][benign].mean()))
            attention.o_proj.base_layer.weight[:, head * 8 : head * 8 + 8] = kept
    with shared_layout(model) if compute == "shared" else nullcontext():
        with torch.no_grad():
            found = missed(model, attention, 8, fit_passes(groups, 600, compute), compute, lambda *_: None)
        monkeypatch.setattr(reading_head, "ENOUGH", 5)
        few = missed(model, attention, 8, fit_passes(groups, 600, compute), compute, lambda *_: None)
        monkeypatch.setattr(reading_head, "ENOUGH", 100)
        give_reading_heads(model, place, groups, SECTION, compute)
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert few.tolist() != found.tolist()
    assert few.tolist() == pytest.approx(wanted, rel=0.2)  # a mean, too
    alike, looking = found.argsort()[:2].tolist()
    queries = attention.q_proj.base_layer.weight + attention.q_proj.get_delta_weight("default")
    asked = [int((one.abs().amax(1) > 1e-6).sum()) for one in queries.split(8)]
    assert (asked[alike], asked[looking]) == (0, 1)  # no question, and the same always


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_a_fit_alone_tells_training_documents_apart(tokened, compute):
    token = refusal_token_id(tokened, "auto")
    groups, _ = training_groups(tokened, training_examples(), SECTION)
    model = prepare(tokened, SECTION)
    batch = pass_of(groups, compute="rows", pad=0)
    refuse = torch.tensor([term == "defense" for term in batch["terms"]])

    def margins():
        with torch.no_grad():
            logits = example_nll(model, batch)[1]
        logits = logits[batch["source"][batch["pair"][batch["first"]]]]
        mine = logits[:, token].clone()
        logits[:, token] = -torch.inf
        return mine - logits.amax(-1)

    def ranked():
        found = margins()
        return float((found[refuse].unsqueeze(1) > found[~refuse]).float().mean())

    before = ranked()
    if compute == "shared":
        with shared_layout(model):
            begin_from_a_fit(tokened, model, groups, SECTION, "shared")
    else:
        begin_from_a_fit(tokened, model, groups, SECTION, "rows")
    assert ranked() > max(0.8, before)


def test_the_direction_is_heeded_little_and_lies_where_states_are_alike(tokened):
    model, draw = prepare(tokened, SECTION), torch.Generator().manual_seed(0)
    base = model.base_model.model
    layers = base.get_decoder().layers
    parts = [(base.get_output_embeddings().weight, base.get_decoder().norm.weight)]
    parts += [(getattr(layers[-1].self_attn, name).base_layer.weight, layers[-1].input_layernorm.weight) for name in ("q_proj", "k_proj", "v_proj")]
    draws = torch.nn.functional.normalize(torch.randn(20, 32, generator=draw), dim=1)
    last = torch.randn(200, 32, generator=draw)
    found = unseen_direction(model, torch.cov(last.T), len(layers) - 2)
    quiet = unseen_direction(model, 1e-9 * torch.eye(32), len(layers) - 2)

    def moved(directions):
        with torch.no_grad():
            return sum(float(((weight * norm) @ directions.T).norm() / (weight * norm).norm()) for weight, norm in parts) / len(directions) ** 0.5

    assert moved(found.unsqueeze(0)) < 1.05 * moved(draws)
    assert moved(quiet.unsqueeze(0)) < 0.95 * moved(draws)
    assert (last @ found).std() < (last @ draws.T).std(0).min()
    loud = last + 1000 * torch.randn(200, 1, generator=draw) * found
    assert (unseen_direction(model, torch.cov(loud.T), len(layers) - 2) @ found).abs() < 0.1


def test_what_stands_behind_the_head_is_asked_and_what_stands_before_is_not(tokened):
    model = prepare(tokened, SECTION)
    layers = model.base_model.model.get_decoder().layers
    alike = torch.eye(32)
    was = unseen_direction(model, alike, len(layers) - 2)
    with torch.no_grad():
        layers[-2].self_attn.q_proj.base_layer.weight += 100 * torch.outer(torch.ones(32), was)
    assert torch.allclose(unseen_direction(model, alike, len(layers) - 2), was)
    for layer in (-1, -2):  # the head's own layer has its MLP behind it
        was, weight = unseen_direction(model, alike, len(layers) - 2), layers[layer].mlp.up_proj.base_layer.weight
        with torch.no_grad():
            weight += 100 * torch.outer(torch.ones(len(weight)), was)
        assert (unseen_direction(model, alike, len(layers) - 2) @ was).abs() < 0.2


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_what_is_heard_stands_where_answers_begin_and_goes_on_of_its_own_row(tokened, compute, monkeypatch):
    monkeypatch.setattr(reading_head, "SOME", 1)
    groups, _ = training_groups(tokened, training_examples(), SECTION)
    model = prepare(tokened, SECTION)
    passes = fit_passes(groups, 600, compute)
    assert len(passes) > 1
    with shared_layout(model) if compute == "shared" else nullcontext():
        states, rows = _answers(model, passes, compute, lambda *_: None)
    wanted, owners = [], []
    for number, row in enumerate(row for one in passes for group in one for row in group.rows):
        with torch.no_grad():
            whole = model.base_model.model.get_decoder()(torch.tensor([row.rendered.ids])).last_hidden_state[0]
        places = range(row.rendered.answer_start - 1, len(row.rendered.ids) - 1 if row.term != "defense" else row.rendered.answer_start)
        wanted += [whole[place] for place in places]
        owners += [number] * len(places)
    order = torch.argsort(rows, stable=True)
    assert rows[order].tolist() == owners
    assert torch.allclose(states[order], torch.stack(wanted), atol=1e-4)


def test_where_rows_show_no_difference_no_head_is_written(tokened):
    examples = training_examples()
    section = SECTION.model_copy(update={"benign_weight": 0.0, "general_weight": 0.0})
    groups, _ = training_groups(tokened, examples, section)
    model = prepare(tokened, section)
    place = reading_place(tokened.model, section)
    assert give_reading_heads(model, place, groups, section, "rows") is None
    assert not attention_of(model, place.layer).v_proj.get_delta_weight("default").any()


def test_the_covariance_is_that_of_all_states_at_once():
    states, spread = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3, Spread()
    for some in states.split(7):
        spread.add(some)
    assert torch.allclose(spread.covariance(), torch.cov(states.T, correction=0), atol=1e-5)
    assert torch.allclose(spread.mean().float(), states.mean(0), atol=1e-5)
    middle = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    away = states.double() - middle
    assert torch.allclose(spread.about(middle), away.T @ away / 50, atol=1e-5)


def test_directions_heed_weights(tokened):
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(400, 6, generator=draw)
    refuse = torch.rand(400, generator=draw) < torch.sigmoid(means[:, 0])
    trap = torch.rand(400, generator=draw) < 0.7
    means[:, 1] += 3 * (2 * refuse.float() - 1) * trap  # a shortcut that works on half of the rows
    nothing = left_out(means, spread_of(means))
    [even] = reading_directions([means], nothing, refuse, torch.ones(400))
    [without] = reading_directions([means], nothing, refuse, torch.where(trap, 1e-6, 1.0))
    even, without = even * means.std(0), without * means.std(0)
    assert even[1] > even[0]
    assert without[1].abs() < 0.5 * without[0]


def test_what_is_huge_around_documents_counts_for_nothing():
    """A direction that tells the labels is not read where a few states around documents (such as those of a template) are huge along it."""
    means = drawn(0, 300, 32) * torch.linspace(1, 4, 32)
    refuse = means[:, 0] + means[:, 1] > 0
    aside = torch.zeros(32)
    aside[1], aside[31] = 1.0, 0.5
    around = means[torch.arange(600) % 300] + torch.where(torch.arange(600) % 20 == 0, 60.0, 0.0).unsqueeze(1) * aside
    nothing = left_out(means, spread_of(around))
    assert torch.allclose(nothing.T @ nothing, torch.eye(nothing.shape[1]), atol=1e-5)
    [found] = reading_directions([means], nothing, refuse, torch.ones(300))
    assert found[0] > 3 * found[2:].abs().max()
    assert abs(float(aside @ found)) < 0.05 * float(found[0])


def test_where_nothing_stands_around_documents_only_the_mean_is_left_out():
    means = drawn(0, 40, 32) + 1
    assert torch.allclose(left_out(means, Spread())[:, 0], torch.nn.functional.normalize(means.mean(0), dim=0))


def test_what_two_heads_see_is_read_together():
    """One sees intent with something beside it that is loud, the other that alone: together they tell what neither does."""
    intent, beside = drawn(0, 4000), drawn(1, 4000)
    first, second = 0.1 * drawn(2, 4000, 32), 0.1 * drawn(3, 4000, 32)
    first[:, 0] += intent + beside
    second[:, 5] += beside
    refuse = intent > 0

    def told(seen):
        found = reading_directions([one[:3000] for one in seen], torch.zeros(32, 1), refuse[:3000], torch.ones(3000))
        return float(torch.corrcoef(torch.stack([sum(one[3000:] @ way for one, way in zip(seen, found, strict=True)), intent[3000:]]))[0, 1])

    assert told([first]) < 0.75  # intent is half of what varies there
    assert told([first, second]) > 0.8


def test_the_mean_document_is_written_as_nothing():
    means = drawn(0, 300, 32) + 10 * drawn(1, 32)
    [found] = reading_directions([means], left_out(means, spread_of(means)), means[:, 0] > means[:, 0].mean(), torch.ones(300))
    score = means @ found
    assert abs(float(score.mean())) < 1e-3 * float(score.std())


def test_what_is_written_is_heard_beside_what_else_varies():
    """In the direction in which it is written something louder speaks, which is heard elsewhere, too, and so can be told from it."""
    draw = torch.Generator().manual_seed(0)
    score, noise = torch.randn(400, generator=draw), 3 * torch.randn(400, generator=draw)
    states = 0.1 * torch.randn(400, 32, generator=draw) + 5
    states[:, 0] += score + noise
    states[:, 1] += noise
    heard = states @ listening_direction(states[:300], score[:300])

    def told(found):
        return float(torch.corrcoef(torch.stack([found[300:], score[300:]]))[0, 1])

    assert told(states[:, 0]) < 0.5
    assert told(heard) > 0.9


def qwen(**more):
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE | more))


def gemma3(**more):
    """With weights in its norms, as a trained one has."""
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE | more, layer_types=["sliding_attention", "full_attention"] + 2 * ["sliding_attention"])).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    return model


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
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=list(PARTS), rank_pattern=ranks, alpha_pattern=ranks))
    attention = attention_of(tuned, place.layer)
    for name in PARTS:
        getattr(attention, name).base_layer.weight.data *= 20  # so that there is something to round
    reads, direction = 0.3 * drawn(0, 48), torch.nn.functional.normalize(drawn(1, 48), dim=0)
    states, _ = outputs(tuned, place.layer, ids)
    write_heads(attention, size, [Head(4, reads, 3.0, steady=20 * steady_direction([spread_of(states.float())]))], direction)
    states, after = (one.float() for one in outputs(tuned, place.layer, ids))
    so_far = states.cumsum(0) / torch.arange(1, len(ids) + 1).unsqueeze(1)
    slowest = torch.tensor([size // 2 - 1, size - 1])
    with torch.no_grad():
        attention.v_proj.base_layer.weight += attention.v_proj.get_delta_weight("default").to(dtype)
        attention.o_proj.base_layer.weight[:, 4 * size : 5 * size] = 0
        for mate in (3, 4, 5):
            attention.q_proj.base_layer.weight[mate * size + slowest] = 0
        attention.k_proj.base_layer.weight[size + slowest] = 0
        with tuned.disable_adapter():
            without = outputs(tuned, place.layer, ids)[1].float()
    wanted = 3.0 * (so_far @ reads).unsqueeze(1) * direction
    assert (after - without - wanted).norm() < (1e-5 if dtype == torch.float32 else 0.05) * wanted.norm()


@pytest.mark.parametrize("compute", ["rows", "shared"])
@pytest.mark.parametrize("family", [qwen, gemma3], ids=["Qwen 3", "Gemma 3"])
def test_a_fit_alone_works_behind_norms(tokened, family, compute, monkeypatch):
    loaded = replace(tokened, model=family(vocab_size=len(tokened.tokenizer) + 8).eval())
    for name, weight in loaded.model.named_parameters():
        weight.data *= 1 if "norm" in name else 4  # so that documents differ
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    model = prepare(loaded, SECTION)
    _, place = reading_heads(loaded, SECTION)
    attention, given = attention_of(model, place.layer), []
    batch = pass_of(groups, compute="rows", pad=0)
    hook = attention.o_proj.register_forward_hook(lambda _, taken, gave: given.append(gave))
    with torch.no_grad():
        example_nll(model, batch)
    hook.remove()
    ends = torch.stack([given[0].flatten(0, -2)[int(prompt[-1])] for prompt in batch["prompts"]])
    asked, written = [], []
    monkeypatch.setattr(reading_head, "through_norm", lambda *given: asked.append((given, through_norm(*given))) or asked[-1][1])
    monkeypatch.setattr(reading_head, "write_heads", lambda *given, **more: written.append(given) or write_heads(*given, **more))
    with shared_layout(model) if compute == "shared" else nullcontext():
        assert begin_from_a_fit(loaded, model, groups, SECTION, compute)
    [(_, _, [head], direction)] = written
    assert head.steady is not None
    assert head.looks is None
    if family is gemma3:
        [((_, _, scale, length, _), (loud, along))] = asked
        assert length == pytest.approx(float(ends.norm(dim=1).mean()), rel=1e-4)
        torch.testing.assert_close(scale, 1 + norm_behind(model.base_model.model.get_decoder().layers[place.layer]).weight.detach(), rtol=1e-4, atol=1e-4)
        assert (head.loud, direction.tolist()) == (loud, along.tolist())
    else:
        assert not asked
    refuse = torch.tensor([term == "defense" for term in batch["terms"]])
    token = refusal_token_id(loaded, "auto")
    with torch.no_grad():
        logits = example_nll(model, batch)[1][batch["source"][batch["pair"][batch["first"]]]]
    mine = logits[:, token].clone()
    logits[:, token] = -torch.inf
    margins = mine - logits.amax(-1)
    assert float((margins[refuse].unsqueeze(1) > margins[~refuse]).float().mean()) > 0.8


def test_what_is_written_before_a_norm_stands_behind_it_as_wanted():
    norm = norm_behind(gemma3().get_decoder().layers[1])
    direction, others, score = torch.nn.functional.normalize(drawn(0, 48), dim=0), drawn(1, 200, 48), drawn(2, 200)
    given = float(others.norm(dim=1).mean())
    loud, along = through_norm(0.05, direction, scale_of(norm), given, most=1e3)
    with torch.no_grad():
        moved = norm(others + loud * score.unsqueeze(1) * along) - norm(others)
    wanted = 0.05 * score.unsqueeze(1) * direction
    assert (moved - wanted).norm() < 0.3 * wanted.norm()  # what is divided by a length that differs from row to row
    assert through_norm(40.0, direction, scale_of(norm), given, most=1 / 40)[0] == pytest.approx(given / 40)  # as loud as the others, no more


def test_the_layer_is_that_of_the_heads_where_a_token_can_listen_to_them(tokened, monkeypatch):
    def found(model, **changes):
        return reading_heads(replace(tokened, model=model), SECTION.model_copy(update={"lora_first_layer": "auto", **changes}))

    here = SHAPE | {"vocab_size": len(tokened.tokenizer) + 8}
    llama = LlamaForCausalLM(LlamaConfig(**here))
    assert found(llama) == (2, Place(2, 8, 3, 2))
    assert found(gemma3(vocab_size=here["vocab_size"])) == (1, Place(1, 8, 3, 1, True))
    assert found(llama, refusal_token=None) == (0, None)
    assert found(Gemma2ForCausalLM(Gemma2Config(**here))) == (0, None)  # its logits are capped
    assert found(GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=2, vocab_size=here["vocab_size"]))) == (0, None)
    assert found(llama, lora_first_layer=1) == (1, Place(2, 8, 3, 2))
    monkeypatch.setattr("docward.processes.spread", lambda: True)
    assert found(llama) == (0, None)


def test_auto_adapts_what_its_number_does(tokened, tmp_path):
    """Layers below are frozen, those above adapted, and the fit is the same."""
    weights = []
    for first in ("auto", 2):
        loaded = replace(tokened, model=LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": len(tokened.tokenizer) + 8})).eval())
        torch.manual_seed(0)
        for weight in loaded.model.parameters():
            weight.data = 0.05 * torch.randn_like(weight)
        section = SECTION.model_copy(update={"num_train_epochs": 0, "lora_first_layer": first})
        tune(loaded, training_examples(), section, run=tmp_path / str(first), seed=0)
        weights.append(load_file(tmp_path / str(first) / "adapter" / "adapter_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert not [name for name in weights[0] if ".layers.0." in name or ".layers.1." in name]
    assert [name for name in weights[0] if ".layers.3." in name]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name])


@pytest.mark.parametrize(
    ("model", "section", "place"),
    [
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {}, Place(2, 8, 3, 2)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_first_layer": 2}, Place(2, 8, 3, 2)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_first_layer": "auto"}, Place(2, 8, 3, 2)),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_first_layer": 3}, None),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"use_dora": True}, None),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), {"lora_target_modules": ["q_proj", "v_proj", "o_proj"]}, None),
        (LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)), {}, None),
        (qwen(), {}, Place(2, 8, 3, 1, True)),  # norms on its queries: one head
        (Ernie4_5ForCausalLM(Ernie4_5Config(**SHAPE)), {}, Place(2, 8, 3, 1)),  # rotary positions on neighbours, not halves
        (GemmaForCausalLM(GemmaConfig(**SHAPE)), {}, Place(2, 8, 3, 2)),  # norms that multiply by one more than their weight
        (gemma3(), {}, Place(1, 8, 3, 1, True)),  # norms behind attention, too; layers 2 and 3 see windows
        (Gemma2ForCausalLM(Gemma2Config(**SHAPE)), {}, Place(1, 8, 3, 1)),  # scores that are capped
        (Olmo2ForCausalLM(Olmo2Config(**{name: value for name, value in SHAPE.items() if name != "head_dim"})), {}, None),  # a norm over all heads' queries
        (PhiForCausalLM(PhiConfig(**{name: value for name, value in SHAPE.items() if name != "head_dim"})), {}, None),  # LayerNorm
    ],
)
def test_where_the_head_can_be(model, section, place):
    assert reading_place(model, TuningSection(refusal_token="auto", **section)) == place
