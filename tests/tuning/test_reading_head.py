"""Neurons that read and a head that averages: what they see, what they leave alone, and how they are heard."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from docward.models import Loaded, load
from docward.recipe import TuningSection
from docward.tuning import reading_head
from docward.tuning.adapters import prepare
from docward.tuning.adapters import reading_head as place_of
from docward.tuning.head_weights import norm_behind, reading_place, scale_of, unseen_direction, write_head
from docward.tuning.losses import GENERAL, example_nll
from docward.tuning.neurons import fit_neurons
from docward.tuning.packing import fit_passes, pass_of
from docward.tuning.reading_head import Spread, batch_of, give_reading_head, missed, steady_direction, through_norm
from docward.tuning.refusal_row import _choices, begin_from_a_fit
from docward.tuning.refusal_token import refusal_token_id
from docward.tuning.sharing import shared_layout
from docward.tuning.tuning import training_groups
from heads import attention_of, drawn, gemma3, llama, qwen, spread_of
from tiny import training_examples

SECTION = TuningSection(refusal_token="auto", decision_weight=1.0, lora_r=4)
DOCUMENTS = [one for one in training_examples() if one.document]  # few as they are here, general rows would decide


FAMILIES = pytest.mark.parametrize("family", [llama, qwen, gemma3], ids=["Llama", "Qwen 3", "Gemma 3"])


def telling(tokened, family):
    """A model whose states differ from document to document."""
    loaded = replace(tokened, model=family(vocab_size=len(tokened.tokenizer) + 8).eval())
    for name, weight in loaded.model.named_parameters():
        weight.data *= 1 if "norm" in name else 4
    return loaded


@pytest.fixture
def tokened(with_token) -> Loaded:
    return load(str(with_token), dtype="float32")


def test_the_steady_direction_gives_one_for_all_states():
    usual = drawn(0, 900, 32) + 5 * drawn(1, 32)
    ends = drawn(2, 90, 32) + 5 * drawn(1, 32) + 3 * drawn(3, 32)
    found = steady_direction([spread_of(usual[:600]), spread_of(ends[:60])])
    for states in (usual[600:], ends[60:]):  # few ends count like many others
        assert (states @ found).mean() == pytest.approx(1, abs=0.03)
        assert (states @ found).std() < 0.1


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_the_head_that_is_missed_least_gets_the_job(tokened, compute, monkeypatch):
    loaded = telling(tokened, llama)
    model = prepare(loaded, SECTION)
    place = reading_place(loaded.model, SECTION)
    attention = attention_of(model, place.layer)
    with torch.no_grad():  # so that heads matter
        attention.o_proj.base_layer.weight *= torch.tensor([30.0, 3.0, 30.0, 20.0, 1.0, 30.0]).repeat_interleave(8)
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    batch = pass_of(groups, compute="rows", pad=0)
    benign = torch.tensor([term != "defense" for term in batch["terms"]])
    wanted = []
    for head in range(6):
        kept = attention.o_proj.base_layer.weight[:, head * 8 : head * 8 + 8].detach().clone()
        with torch.no_grad():
            attention.o_proj.base_layer.weight[:, head * 8 : head * 8 + 8] = 0
            wanted.append(float(example_nll(model, batch)[0][benign].mean()))
            attention.o_proj.base_layer.weight[:, head * 8 : head * 8 + 8] = kept
    small = SECTION.model_copy(update={"max_batch_tokens": 600})
    with shared_layout(model) if compute == "shared" else nullcontext():
        with torch.no_grad():
            found = missed(model, place, groups, small, compute, lambda *_: None)
        with monkeypatch.context() as context:
            context.setattr(reading_head, "ENOUGH", 5)
            few = missed(model, place, groups, small, compute, lambda *_: None)
        give_reading_head(model, place, groups, SECTION, compute)
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert few.tolist() != found.tolist()
    assert few.tolist() == pytest.approx(wanted, rel=0.2)  # a mean, too
    queries = attention.q_proj.base_layer.weight + attention.q_proj.get_delta_weight("default")
    assert [place for place, one in enumerate(queries.split(8)) if one.abs().max() < 1e-6] == [int(found.argmin())]  # it asks for nothing now


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_a_fit_alone_tells_training_documents_apart(tokened, compute):
    loaded = telling(tokened, llama)
    token = refusal_token_id(loaded, "auto")
    groups, _ = training_groups(loaded, DOCUMENTS, SECTION)
    model = prepare(loaded, SECTION)
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
            begin_from_a_fit(loaded, model, groups, SECTION, "shared")
    else:
        begin_from_a_fit(loaded, model, groups, SECTION, "rows")
    assert ranked() > max(0.8, before)


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_what_the_row_is_fitted_on_are_the_states_where_answers_begin_and_go_on(tokened, compute):
    groups, _ = training_groups(tokened, training_examples(), SECTION)
    model = prepare(tokened, SECTION)
    passes = fit_passes(groups, 600, compute)
    assert len(passes) > 1
    for one in passes:
        with torch.no_grad(), shared_layout(model) if compute == "shared" else nullcontext():
            states, others, refuse, *_ = _choices(model, batch_of(model, one, compute), 9)
        wanted, malicious = [], []
        for row in (row for group in one for row in group.rows):
            with torch.no_grad():
                whole = model.base_model.model.get_decoder()(torch.tensor([row.rendered.ids])).last_hidden_state[0]
            some = range(row.rendered.answer_start - 1, len(row.rendered.ids) - 1 if row.term != "defense" else row.rendered.answer_start)
            wanted += [whole[place] for place in some]
            malicious += [row.term == "defense"] * len(some)
        apart, nearest = torch.cdist(states, torch.stack(wanted), compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert len(states) == len(others) == len(wanted)
        assert len(set(nearest.tolist())) == len(wanted)
        assert apart.max() < 1e-3
        assert refuse.tolist() == [malicious[place] for place in nearest]


def test_where_rows_show_no_difference_nothing_is_written(tokened):
    loaded, examples = telling(tokened, llama), training_examples()
    section = SECTION.model_copy(update={"benign_weight": 0.0, "general_weight": 0.0})
    groups, _ = training_groups(loaded, examples, section)
    model = prepare(loaded, section)
    place = reading_place(loaded.model, section)
    assert give_reading_head(model, place, groups, section, "rows") is None
    assert not any(parameter.any() for name, parameter in model.named_parameters() if "lora_B" in name)


def test_the_covariance_is_that_of_all_states_at_once():
    states, spread = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3, Spread()
    for some in states.split(7):
        spread.add(some)
    assert torch.allclose(spread.covariance(), torch.cov(states.T, correction=0), atol=1e-5)
    assert torch.allclose(spread.mean().float(), states.mean(0), atol=1e-5)
    middle = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    away = states.double() - middle
    assert torch.allclose(spread.about(middle), away.T @ away / 50, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_the_head_reads_the_mean_of_what_neurons_read(tokened, family, compute, monkeypatch):
    """Along the direction that it is given, of what enters its layer, where answers begin; general rows are no documents."""
    loaded, fitted = telling(tokened, family), []
    monkeypatch.setattr(reading_head, "TOKENS", 1000)
    monkeypatch.setattr(reading_head, "fit_neurons", lambda *given: fitted.append((given[0], fit_neurons(*given))) or fitted[-1][1])
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    model = prepare(loaded, SECTION)
    _, place = place_of(loaded, SECTION)
    with shared_layout(model) if compute == "shared" else nullcontext():
        passes = fit_passes(groups, SECTION.max_batch_tokens, compute)
        reads = give_reading_head(model, place, groups, SECTION, compute)
        found = torch.cat([_choices(model, batch_of(model, one, compute), 9, (place, reads))[-1] for one in passes])
    [(read, neurons)] = fitted
    act = model.base_model.model.get_decoder().layers[place.reading].mlp.act_fn
    wanted = torch.stack([neurons.read(states, act).mean() for states in read.texts])
    assert [row.term == GENERAL for one in passes for group in one for row in group.rows] == read.general.tolist()
    assert int(read.general.sum()) > 0
    found = found[found.isfinite()]
    assert len(found) == int(read.told.sum())
    assert float(torch.corrcoef(torch.stack([found, wanted[read.told]]))[0, 1]) > 0.95
    apart = wanted[read.told & read.refuse].unsqueeze(1) > wanted[read.told & ~read.refuse]
    assert float(apart.float().mean()) > 0.9


def test_neurons_write_where_states_are_next_to_nothing_not_just_alike(tokened, monkeypatch):
    """What states always are along the carrier would be read beside every text."""
    loaded, given = telling(tokened, llama), []
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    model = prepare(loaded, SECTION)
    place = reading_place(loaded.model, SECTION)
    layers = model.base_model.model.get_decoder().layers
    always = torch.nn.functional.normalize(drawn(5, 48), dim=0)
    layers[place.layer].register_forward_pre_hook(lambda _, states: (states[0] + 30 * always, *states[1:]), prepend=True)
    monkeypatch.setattr(reading_head, "unseen_direction", lambda *taken, **more: given.append((taken, more)) or unseen_direction(*taken, **more))
    give_reading_head(model, place, groups, SECTION, "rows")
    carrier, direction = given
    assert (carrier[1]["behind"], direction[1]["behind"]) == ("mlp", "self_attn")
    assert float(always @ carrier[0][1] @ always) > 0.9 * 30**2  # were they centred, next to nothing
    assert float(unseen_direction(*carrier[0], **carrier[1]) @ always) == pytest.approx(0, abs=0.05)


def test_neurons_and_head_are_as_loud_as_they_are_to_be(tokened, monkeypatch):
    """Spread over tokens and over documents, as shares of the length of states behind the neurons and before the last norm."""
    loaded, fitted, neurons, head = telling(tokened, llama), [], [], []
    monkeypatch.setattr(reading_head, "TOKENS", 1000)
    monkeypatch.setattr(reading_head, "fit_neurons", lambda *given: fitted.append((given[0], fit_neurons(*given))) or fitted[-1][1])
    monkeypatch.setattr(reading_head, "write_neurons", lambda *given: neurons.append(given))
    monkeypatch.setattr(reading_head, "write_head", lambda *given: head.append(given))
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    model = prepare(loaded, SECTION)
    place, decoder = reading_place(loaded.model, SECTION), model.base_model.model.get_decoder()
    give_reading_head(model, place, groups, SECTION, "rows")
    [(read, found)], [(*_, written)], [(*_, loud, _)] = fitted, neurons, head
    held, batch = {}, pass_of(groups, compute="rows", pad=0)
    decoder.layers[place.reading + 1].register_forward_pre_hook(lambda _, given: held.update(behind=given[0].flatten(0, -2)))
    decoder.norm.register_forward_pre_hook(lambda _, given: held.update(last=given[0].flatten(0, -2)))
    with torch.no_grad():
        example_nll(model, batch)
    tokens = [found.read(states, decoder.layers[place.reading].mlp.act_fn) for states in read.texts]
    documents = torch.stack([one.mean() for one in tokens])[read.told]
    whisper = (written.norm(dim=0) / found.counts.abs()).mean()
    inside = held["behind"][torch.cat([prompt[1:] for prompt in batch["prompts"]])]
    ends = held["last"][torch.tensor([int(prompt[-1]) for prompt in batch["prompts"]])]
    assert float(whisper * torch.cat(tokens).std() / inside.norm(dim=-1).mean()) == pytest.approx(reading_head.WHISPER, rel=0.03)
    assert float(loud.norm() * documents.std() / ends.norm(dim=-1).mean()) == pytest.approx(reading_head.LOUD, rel=0.03)


def test_neurons_that_give_least_get_the_job(tokened, monkeypatch):
    loaded = telling(tokened, llama)
    model = prepare(loaded, SECTION)
    place = reading_place(loaded.model, SECTION)
    down = model.base_model.model.get_decoder().layers[place.reading].mlp.down_proj
    quiet = torch.arange(1, len(down.base_layer.weight.T), 4)[: place.neurons]
    with torch.no_grad():
        down.base_layer.weight[:, quiet] *= 1e-3
    written = []
    monkeypatch.setattr(reading_head, "write_neurons", lambda *given: written.append(given))
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    give_reading_head(model, place, groups, SECTION, "rows")
    [(_, chosen, *_)] = written
    assert sorted(chosen.tolist()) == quiet.tolist()


@pytest.mark.parametrize("compute", ["rows", "shared"])
@pytest.mark.parametrize("family", [qwen, gemma3], ids=["Qwen 3", "Gemma 3"])
def test_a_fit_alone_works_behind_norms(tokened, family, compute, monkeypatch):
    loaded = telling(tokened, family)
    groups, _ = training_groups(loaded, DOCUMENTS, SECTION)
    model = prepare(loaded, SECTION)
    _, place = place_of(loaded, SECTION)
    attention, given = attention_of(model, place.layer), []
    batch = pass_of(groups, compute="rows", pad=0)
    hook = attention.o_proj.register_forward_hook(lambda _, taken, gave: given.append(gave))
    with torch.no_grad():
        example_nll(model, batch)
    hook.remove()
    ends = torch.stack([given[0].flatten(0, -2)[int(prompt[-1])] for prompt in batch["prompts"]])
    asked, written = [], []
    monkeypatch.setattr(reading_head, "through_norm", lambda *given: asked.append((given, through_norm(*given))) or asked[-1][1])
    monkeypatch.setattr(reading_head, "write_head", lambda *given, **more: written.append(given) or write_head(*given, **more))
    with shared_layout(model) if compute == "shared" else nullcontext():
        assert begin_from_a_fit(loaded, model, groups, SECTION, compute)
    [(_, _, _, _, mine, asks)] = written
    assert asks is not None
    if family is gemma3:
        [_, ((_, scale, length), (way, _))] = asked  # first of the neurons
        assert length == pytest.approx(float(ends.norm(dim=1).mean()), rel=1e-4)
        torch.testing.assert_close(scale, 1 + norm_behind(model.base_model.model.get_decoder().layers[place.layer]).weight.detach(), rtol=1e-4, atol=1e-4)
        assert float(mine @ way / mine.norm() / way.norm()) == pytest.approx(1)
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
    way, most = through_norm(direction, scale_of(norm), given)
    with torch.no_grad():
        moved = norm(others + 0.05 * score.unsqueeze(1) * way) - norm(others)
    wanted = 0.05 * score.unsqueeze(1) * direction
    assert (moved - wanted).norm() < 0.3 * wanted.norm()  # what is divided by a length that differs from row to row
    assert most * float(way.norm()) == pytest.approx(reading_head.BESIDE * given)
