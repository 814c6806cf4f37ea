"""Heads that read: what they see, what they leave alone, and how they are heard."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from docward.models import Loaded, load
from docward.recipe import TuningSection
from docward.tuning import reading_head
from docward.tuning.adapters import prepare, reading_heads
from docward.tuning.head_weights import norm_behind, reading_places, scale_of, write_head
from docward.tuning.losses import GENERAL, example_nll
from docward.tuning.packing import fit_passes, pass_of
from docward.tuning.reading_head import (
    Seen,
    Spread,
    batch_of,
    give_reading_heads,
    harmless,
    left_out,
    missed,
    reading_directions,
    steady_direction,
    through_norm,
)
from docward.tuning.refusal_row import _choices, begin_from_a_fit
from docward.tuning.refusal_token import refusal_token_id
from docward.tuning.sharing import shared_layout
from docward.tuning.tuning import training_groups
from heads import attention_of, drawn, gemma3, llama, qwen, spread_of
from tiny import training_examples

SECTION = TuningSection(refusal_token="auto", decision_weight=1.0, lora_r=4)
ONE = torch.ones(3000, dtype=torch.long)  # piece a row
DOCUMENTS = [one for one in training_examples() if one.document]  # few as they are here, general rows would decide


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
    model = prepare(tokened, SECTION)
    [place] = reading_places(tokened.model, SECTION)
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
            found = missed(model, place, fit_passes(groups, 600, compute), compute, lambda *_: None)
        with monkeypatch.context() as context:
            context.setattr(reading_head, "ENOUGH", 5)
            few = missed(model, place, fit_passes(groups, 600, compute), compute, lambda *_: None)
        give_reading_heads(model, [place], groups, SECTION, compute)
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert few.tolist() != found.tolist()
    assert few.tolist() == pytest.approx(wanted, rel=0.2)  # a mean, too
    queries = attention.q_proj.base_layer.weight + attention.q_proj.get_delta_weight("default")
    assert [place for place, one in enumerate(queries.split(8)) if one.abs().max() < 1e-6] == [int(found.argmin())]  # it asks for nothing now


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


def test_where_rows_show_no_difference_no_head_is_written(tokened):
    examples = training_examples()
    section = SECTION.model_copy(update={"benign_weight": 0.0, "general_weight": 0.0})
    groups, _ = training_groups(tokened, examples, section)
    model = prepare(tokened, section)
    [place] = reading_places(tokened.model, section)
    assert not give_reading_heads(model, [place], groups, section, "rows")
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
    nothing = left_out(means.mean(0)[None], spread_of(means))
    [even] = reading_directions([(means, nothing)], refuse, torch.ones(400), ONE[:400])
    [without] = reading_directions([(means, nothing)], refuse, torch.where(trap, 1e-6, 1.0), ONE[:400])
    even, without = even * means.std(0), without * means.std(0)
    assert even[1] > even[0]
    assert without[1].abs() < 0.5 * without[0]


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_the_fit_sees_each_document_in_pieces_that_are_the_whole_of_it(tokened, compute, monkeypatch):
    monkeypatch.setattr(reading_head, "PIECE", 4)
    groups, _ = training_groups(tokened, DOCUMENTS, SECTION)
    model = prepare(tokened, SECTION)
    _, places = reading_heads(tokened, SECTION)
    passes, fitted = fit_passes(groups, 600, compute), []
    lengths = [len(row.rendered.document) for one in passes for group in one for row in group.rows]
    monkeypatch.setattr(reading_head, "reading_directions", lambda *given: fitted.append(given) or reading_directions(*given))
    with torch.no_grad(), shared_layout(model) if compute == "shared" else nullcontext():
        read = reading_head._read(model, places, passes, compute, lambda *_: None)
        give_reading_heads(model, places, groups, SECTION, compute)
    cut = [[len(piece) for piece in torch.arange(length).chunk(max(1, round(length / 4)))] for length in lengths]
    assert max(map(len, cut)) > 2
    assert read.pieces.tolist() == [len(some) for some in cut]
    for seen in read.seen:
        mine = zip(seen.pieces.split(read.pieces.tolist()), cut, seen.means, strict=True)
        assert all(torch.allclose(torch.tensor(some, dtype=torch.float) @ pieces / sum(some), mean, atol=1e-4) for pieces, some, mean in mine)
    [(features, _, _, pieces)] = fitted
    assert all(len(some) == int(pieces.sum()) for some, _ in features)
    assert int(pieces.sum()) > 2 * len(pieces)


def test_a_document_in_many_pieces_weighs_as_much_as_one_in_few():
    draw = torch.Generator().manual_seed(0)
    means, refuse = torch.randn(400, 6, generator=draw), torch.rand(400, generator=draw) < 0.5
    means[:, 0] += refuse
    long = torch.rand(400, generator=draw) < 0.15
    means[long, 1] += 4 * (2 * refuse[long].float() - 1)  # what tells long documents alone
    pieces = torch.where(long, 20, 1)
    nothing = torch.zeros(6, 1)
    [once] = reading_directions([(means, nothing)], refuse, torch.ones(400), ONE[:400])
    [many] = reading_directions([(means.repeat_interleave(pieces, 0), nothing)], refuse, torch.ones(400), pieces)
    assert torch.nn.functional.cosine_similarity(once, many, 0) > 0.95


def test_what_is_huge_around_documents_counts_for_nothing():
    """A direction that tells the labels is not read where a few states around documents (such as those of a template) are huge along it."""
    means = drawn(0, 300, 32) * torch.linspace(1, 4, 32)
    refuse = means[:, 0] + means[:, 1] > 0
    aside = torch.zeros(32)
    aside[1], aside[31] = 1.0, 0.5
    around = means[torch.arange(600) % 300] + torch.where(torch.arange(600) % 20 == 0, 60.0, 0.0).unsqueeze(1) * aside
    nothing = left_out(means.mean(0)[None], spread_of(around))
    assert torch.allclose(nothing.T @ nothing, torch.eye(nothing.shape[1]), atol=1e-5)
    [found] = reading_directions([(means, nothing)], refuse, torch.ones(300), ONE[:300])
    assert found[0] > 3 * found[2:].abs().max()
    assert abs(float(aside @ found)) < 0.05 * float(found[0])


def test_where_nothing_stands_around_documents_only_the_mean_is_left_out():
    means = drawn(0, 40, 32) + 1
    [found] = left_out(means.mean(0)[None], Spread()).T
    assert float(found @ torch.nn.functional.normalize(means.mean(0), dim=0)) ** 2 == pytest.approx(1)


def test_what_two_heads_see_is_read_together():
    """One sees intent with something beside it that is loud, the other that alone: together they tell what neither does."""
    intent, beside = drawn(0, 4000), drawn(1, 4000)
    first, second = 0.1 * drawn(2, 4000, 32), 0.1 * drawn(3, 4000, 32)
    first[:, 0] += intent + beside
    second[:, 5] += beside
    refuse = intent > 0

    def told(seen):
        found = reading_directions([(one[:3000], torch.zeros(32, 1)) for one in seen], refuse[:3000], torch.ones(3000), ONE)
        return float(torch.corrcoef(torch.stack([sum(one[3000:] @ way for one, way in zip(seen, found, strict=True)), intent[3000:]]))[0, 1])

    assert told([first]) < 0.75  # intent is half of what varies there
    assert told([first, second]) > 0.8


def test_for_the_mean_of_what_is_harmless_nothing_is_written():
    """That is benign documents, answers to them, and general prompts and their answers; what is to be refused does not count, nor general rows as documents."""
    draw = torch.Generator().manual_seed(0)
    refuse, general = torch.arange(300) < 100, torch.arange(300) >= 250
    means, answers = (torch.randn(300, 32, generator=draw) + 10 * torch.randn(32, generator=draw) for _ in range(2))
    means[refuse, 0] += 2
    means[general, 1] += 30
    answers[:, 2] += 30
    seen = Seen(means, means, answers, 1.0, spread_of(means), Spread(), Spread())
    calm = harmless(seen, refuse, general)
    assert torch.allclose(calm[0], means[100:250].mean(0))
    assert torch.allclose(calm[2], means[250:].mean(0))
    [found] = reading_directions([(means[:250], left_out(calm, spread_of(means)))], refuse[:250], torch.ones(250), ONE[:250])
    score = means[:250] @ found
    assert all(abs(float(one @ found)) < 1e-3 * float(score.std()) for one in calm)
    assert float(score[refuse[:250]].mean()) > float(score.std()) / 4
    assert len(harmless(seen, refuse, torch.zeros(300, dtype=torch.bool))) == 2  # no general rows


def test_general_rows_are_no_documents_and_nothing_is_written_for_their_mean(tokened, monkeypatch):
    loaded = replace(tokened, model=llama(vocab_size=len(tokened.tokenizer) + 8).eval())
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    general = [group for group in groups if group.rows[0].term == GENERAL]
    model = prepare(loaded, SECTION)
    _, places = reading_heads(loaded, SECTION)
    entered, fitted, seen = [], [], []
    hook = attention_of(model, places[-1].layer).q_proj.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    batch = pass_of(general, compute="rows", pad=0)
    with torch.no_grad():
        example_nll(model, batch)
    hook.remove()
    monkeypatch.setattr(reading_head, "reading_directions", lambda *given: fitted.append((given, reading_directions(*given))) or fitted[-1][1])
    monkeypatch.setattr(reading_head, "harmless", lambda *given: seen.append(given) or harmless(*given))
    assert give_reading_heads(model, places, groups, SECTION, "rows")
    [((_, refuse, *_), found)] = fitted
    assert len(refuse) == sum(len(group.rows) for group in groups) - len(general)
    written = torch.stack([one.means[which] @ reads for (one, _, which), reads in zip(seen, found, strict=True)]).sum(0)
    assert len(written) == len(general) > 1
    assert abs(float(written.mean())) < 1e-3 * float(written.std())
    last, _, which = seen[-1]
    answers = torch.stack([entered[0].flatten(0, -2)[place].mean(0) for place in batch["answers"]])
    assert [len(place) for place in batch["answers"]] == [len(row.rendered.ids) - row.rendered.answer_start for group in general for row in group.rows]
    torch.testing.assert_close(last.answers[which].sort(0).values, answers.sort(0).values, rtol=1e-4, atol=1e-5)


DEEP = {"num_hidden_layers": 8}
FULL = {"layer_types": ["full_attention" if number in (4, 6) else "sliding_attention" for number in range(8)]}


@pytest.mark.parametrize(("family", "more"), [(llama, DEEP), (qwen, DEEP), (gemma3, DEEP | FULL)], ids=["Llama", "Qwen 3", "Gemma 3"])
def test_heads_of_two_layers_write_one_score_together(tokened, family, more, monkeypatch):
    """Behind what norms there are, both write their part of one regression's score along one direction, one as loud as the other."""
    loaded = replace(tokened, model=family(vocab_size=len(tokened.tokenizer) + 8, **more).eval())
    for name, weight in loaded.model.named_parameters():
        weight.data *= 1 if "norm" in name else 4  # so that documents differ
    groups, _ = training_groups(loaded, DOCUMENTS, SECTION)
    model = prepare(loaded, SECTION)
    _, places = reading_heads(loaded, SECTION)
    assert [place.layer for place in places] == [4, 6]
    fitted, written, lengths = [], [], []
    monkeypatch.setattr(reading_head, "reading_directions", lambda *given: fitted.append((given, reading_directions(*given))) or fitted[-1][1])
    monkeypatch.setattr(reading_head, "write_head", lambda *given: written.append(given) or write_head(*given))
    monkeypatch.setattr(reading_head, "through_norm", lambda *given: lengths.append(given[2]) or through_norm(*given))
    assert give_reading_heads(model, places, groups, SECTION, "rows")
    [((features, refuse, _, pieces), found)] = fitted
    owner = torch.repeat_interleave(torch.arange(len(refuse)), pieces)
    parts = [
        torch.zeros(len(refuse)).index_add(0, owner, some @ reads) / pieces for (some, _), reads in zip(features, found, strict=True)
    ]  # pieces are alike long
    assert (sum(parts)[refuse].unsqueeze(1) > sum(parts)[~refuse]).float().mean() > 0.9
    behind = []
    for (attention, _, _, reads, mine, _), place, wanted in zip(written, places, found, strict=True):
        assert attention is attention_of(model, place.layer)
        assert reads is wanted
        norm = norm_behind(model.base_model.model.get_decoder().layers[place.layer])
        behind.append(mine if norm is None else mine * scale_of(norm) * 48**0.5 / lengths[len(behind)])
    torch.testing.assert_close(behind[0], behind[1])
    assert behind[0].norm() > 0
    for (_, _, _, _, mine, _), part, length in zip(written, parts, lengths, strict=False):
        assert float(part.std() * mine.norm()) <= 1.001 * reading_head.BESIDE * length


@pytest.mark.parametrize("compute", ["rows", "shared"])
@pytest.mark.parametrize("family", [qwen, gemma3], ids=["Qwen 3", "Gemma 3"])
def test_a_fit_alone_works_behind_norms(tokened, family, compute, monkeypatch):
    loaded = replace(tokened, model=family(vocab_size=len(tokened.tokenizer) + 8).eval())
    for name, weight in loaded.model.named_parameters():
        weight.data *= 1 if "norm" in name else 4  # so that documents differ
    groups, _ = training_groups(loaded, DOCUMENTS, SECTION)
    model = prepare(loaded, SECTION)
    _, [place] = reading_heads(loaded, SECTION)
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
        [((_, scale, length), (way, _))] = asked
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
