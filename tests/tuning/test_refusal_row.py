"""The decision's own loss, and the refusal token's first row, fitted on the untuned model's states."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from docward.models import load
from docward.recipe import TuningSection
from docward.rendering import Rendered
from docward.tuning import refusal_row
from docward.tuning.adapters import prepare
from docward.tuning.losses import decision_nll, example_nll
from docward.tuning.packing import Row, group_of, pass_of
from docward.tuning.refusal_row import HEAT, RIDGE, _choices, begin_from_a_fit, fitted_row, log_odds
from docward.tuning.refusal_token import refusal_token_id
from docward.tuning.sharing import shared_layout
from docward.tuning.tuning import training_groups
from tiny import training_examples

SECTION = TuningSection(refusal_token="auto", decision_weight=1.0)


def test_the_decision_is_logistic_regression_on_the_margin_of_greedy_decoding():
    logits, refuse = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([True, False, True, False])
    wanted = []
    for row, one in zip(logits.tolist(), refuse.tolist(), strict=True):
        margin = row[5] - max(row[:5] + row[6:])
        wanted.append(math.log(1 + math.exp(-margin if one else margin)))
    assert decision_nll(logits, 5, refuse).tolist() == pytest.approx(wanted, rel=1e-5)
    assert ((decision_nll(logits, 5, refuse) < math.log(2)) == ((logits.argmax(-1) == 5) == refuse)).all()


def test_a_hopeless_decision_has_a_finite_loss_and_a_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    far = logits + torch.tensor([[-200.0, 0.0, 0.0], [200.0, 0.0, 0.0]])
    loss = decision_nll(far, 0, torch.tensor([True, False])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(400, rel=0.01)
    assert logits.grad[:, 0].tolist() == pytest.approx([-1, 1])


def test_with_a_refusal_token_the_decision_takes_the_first_tokens_place(tiny):
    rows = [([3, 4, 5, 9, 7, 8], "defense"), ([3, 4, 6, 7, 8], "benign")]
    made = [group_of([Row(Rendered(ids, 3, 0, range(0)), 1.0, term)], document=term, matched="") for ids, term in rows]
    batch = pass_of(made, compute="rows", pad=0)
    with torch.no_grad():
        plain = example_nll(tiny.model, batch)[0]
        found = example_nll(tiny.model, batch, decision_weight=0.25, refusal_token=9)[0]
        for place, (ids, term) in enumerate(rows):
            logits = tiny.model(input_ids=torch.tensor([ids[:3]])).logits[0, -1].tolist()
            margin = logits[9] - max(logits[:9] + logits[10:])
            decision = math.log(1 + math.exp(-margin if term == "defense" else margin))
            assert found[place].item() == pytest.approx(0.75 * plain[place].item() + 0.25 * decision, rel=1e-4)


def test_the_fit_is_that_of_scikit_learn():
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(300, 6, generator=draw)
    refuse = (states[:, 0] + 0.5 * torch.randn(300, generator=draw)) > 0.8
    states = torch.cat([states, torch.ones(300, 1)], 1) * torch.tensor([1.0, 1, 1, 1, 1, 1, 1])
    states[:, 6] += 1e-3 * torch.randn(300, generator=draw)
    found = fitted_row(states, torch.zeros(300), refuse, torch.zeros(7), torch.ones(300))
    peer = LogisticRegression(C=1 / RIDGE, fit_intercept=False, class_weight="balanced", tol=1e-8, max_iter=1000).fit(
        states / states.std(0, correction=0), refuse
    )
    assert torch.allclose(found / HEAT * states.std(0, correction=0), torch.tensor(peer.coef_[0], dtype=torch.float32), atol=2e-3)


def test_what_the_other_tokens_do_by_chance_decides_little(monkeypatch):
    monkeypatch.setattr(refusal_row, "RIDGE", 100.0)
    draw = torch.Generator().manual_seed(3)
    states, others = torch.randn(400, 1, generator=draw), 3 * torch.randn(400, generator=draw)
    refuse = (states[:, 0] + 0.5 * torch.randn(400, generator=draw)) > 0

    def ranked():
        score = states @ fitted_row(states, others, refuse, torch.zeros(1), torch.ones(400)) - others
        return float((score[refuse].unsqueeze(1) > score[~refuse]).float().mean())

    loud = ranked()
    monkeypatch.setattr(refusal_row, "HEAT", 1.0)
    assert loud > ranked() + 0.1


def test_the_fit_heeds_weights_and_is_drawn_to_where_it_begins(monkeypatch):
    draw = torch.Generator().manual_seed(2)
    states, weights = torch.randn(200, 3, generator=draw), torch.rand(200, generator=draw) + 0.1
    refuse = (states[:, 0] + torch.randn(200, generator=draw)) > 0.5
    start = torch.tensor([0.0, 0.0, 2.0])
    monkeypatch.setattr(refusal_row, "RIDGE", 1e9)
    assert torch.allclose(fitted_row(states, torch.zeros(200), refuse, start, weights), start, atol=1e-3)
    monkeypatch.setattr(refusal_row, "RIDGE", 1.0)
    doubled = torch.cat([states, states[:50]])
    twice = [torch.cat([weights, weights[:50]]), torch.cat([weights[:50] * 2, weights[50:]])]
    both = (
        fitted_row(doubled, torch.zeros(250), torch.cat([refuse, refuse[:50]]), torch.zeros(3), twice[0]),
        fitted_row(states, torch.zeros(200), refuse, torch.zeros(3), twice[1]),
    )
    assert torch.allclose(*both, atol=0.02 * HEAT)
    assert not torch.allclose(both[1], fitted_row(states, torch.zeros(200), refuse, torch.zeros(3), torch.ones(200)), atol=0.02 * HEAT)


def test_later_places_do_not_shift_where_refusals_begin(monkeypatch):
    monkeypatch.setattr(refusal_row, "RIDGE", 1.0)
    draw = torch.Generator().manual_seed(4)
    begun = torch.cat([torch.randn(300, 1, generator=draw), 1 + 0.3 * torch.randn(300, 1, generator=draw), torch.zeros(300, 1)], 1)
    refuse = (begun[:, 0] + 0.5 * torch.randn(300, generator=draw)) > 0.5
    later = torch.cat([torch.randn(900, 1, generator=draw), 1 + 0.3 * torch.randn(900, 1, generator=draw), torch.ones(900, 1)], 1)
    states, first = torch.cat([begun, later]), torch.arange(1200) < 300
    wanted = torch.cat([refuse, torch.zeros(900, dtype=torch.bool)])

    def shift(row):
        return float(row[1] / row[0])

    alone = fitted_row(begun[:, :2], torch.zeros(300), refuse, torch.zeros(2), torch.ones(300))
    both = fitted_row(states, torch.zeros(1200), wanted, torch.zeros(3), torch.ones(1200), first)
    mixed = fitted_row(states, torch.zeros(1200), wanted, torch.zeros(3), torch.ones(1200))
    assert shift(both) == pytest.approx(shift(alone), abs=0.1)
    assert abs(shift(mixed) - shift(alone)) > 0.3
    assert (states[~first] @ both).max() < 0


def test_the_row_is_fitted_where_refusals_begin_and_against_each_token_of_all_other_answers(tiny):
    rows = [([3, 4, 5, 9, 7], "defense"), ([3, 4, 6, 7, 8], "benign"), ([3, 4, 6, 5], "benign")]
    made = [group_of([Row(Rendered(ids, 3, 0, range(0)), 2.0, term)], document=term, matched="") for ids, term in rows]
    batch = pass_of(made, compute="rows", pad=0)
    states, others, refuse, first, weights, scores = _choices(tiny.model, batch, 9)
    assert scores.isfinite().tolist() == [True, True, False, True]
    assert (refuse.tolist(), first.tolist()) == ([True, False, False, False], [True, True, False, True])
    assert weights.tolist() == [2.0] * 4
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([[3, 4, 6, 7]])).logits[0, -1]
    logits[9] = -torch.inf
    assert others[2] == pytest.approx(float(logits.max()), abs=1e-5)
    assert states.shape == (4, 32)


@pytest.mark.parametrize(("place", "few"), [(None, "SOME_ROWS"), (SimpleNamespace(layer=0), "AIMED_ROWS")], ids=["labels", "aimed"])
def test_all_labels_are_among_the_rows_that_the_token_is_fitted_on(with_token, monkeypatch, place, few):
    """They take turns in the data: every third document would be of one label."""
    monkeypatch.setattr(refusal_row, few, 6)
    monkeypatch.setattr(refusal_row, "reading_head", lambda *_: (0, place))
    monkeypatch.setattr(refusal_row, "give_reading_head", lambda *_: torch.ones(32))
    loaded = load(str(with_token), dtype="float32")
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    mixed = [
        group
        for turn in zip(*([one for one in groups if one.rows[0].term == term] for term in ("defense", "benign", "benign")), strict=False)
        for group in turn
    ] * 6
    seen = []
    monkeypatch.setattr(refusal_row, "fit_passes", lambda some, *_: seen.extend(some) or [some])
    begin_from_a_fit(loaded, prepare(loaded, SECTION), mixed, SECTION, "rows")
    assert {group.rows[0].term for group in seen} == {"defense", "benign"}
    assert len(seen) == 6


def test_nothing_is_fitted_where_logits_are_scaled(with_token):
    loaded = load(str(with_token), dtype="float32")
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    loaded.model.config.logit_scale = 0.25
    assert begin_from_a_fit(loaded, prepare(loaded, SECTION), groups, SECTION, "rows") is False


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_the_first_row_tells_training_documents_apart_and_leaves_all_else(with_token, compute, monkeypatch):
    monkeypatch.setattr(refusal_row, "RIDGE", 0.01)  # random weights know little of documents
    monkeypatch.setattr(refusal_row, "reading_head", lambda *_: (0, None))
    loaded = load(str(with_token), dtype="float32")
    token = refusal_token_id(loaded, "auto")
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    with torch.no_grad():
        untuned = loaded.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].clone()
    model = prepare(loaded, SECTION)
    batch = pass_of(groups, compute="rows", pad=0)

    def loss() -> float:
        with torch.no_grad():
            return float(example_nll(model, batch, decision_weight=1.0, refusal_token=token)[0].mean())

    before = loss()
    if compute == "shared":
        with shared_layout(model):
            begin_from_a_fit(loaded, model, groups, SECTION, "shared")
    else:
        begin_from_a_fit(loaded, model, groups, SECTION, "rows")
    assert loss() < 0.7 * before
    with torch.no_grad():
        tuned = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    others = torch.arange(len(tuned)) != token
    assert torch.allclose(tuned[others], untuned[others], atol=1e-5)


def test_the_output_layer_gets_states_that_need_no_copy_of_it_while_a_token_is_tuned(with_token):
    loaded = load(str(with_token))
    model = prepare(loaded, TuningSection(refusal_token="auto"))
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(torch.arange(5, 17).view(2, 6), logits_to_keep=1)
    assert [states.stride() for states in seen] == [torch.empty(states.shape).stride() for states in seen]
    assert len(seen) == 1


def test_a_row_that_aims_at_scores_takes_no_shortcut_that_labels_offer(monkeypatch):
    monkeypatch.setattr(refusal_row, "AIMED_RIDGE", 0.1)
    monkeypatch.setattr(refusal_row, "RIDGE", 0.1)
    draw = torch.Generator().manual_seed(5)
    told, shortcut = torch.randn(400, generator=draw), torch.randn(400, generator=draw)
    refuse = told + shortcut > 0
    states, weights = torch.stack([told, shortcut], 1), torch.ones(400)
    by_label = fitted_row(states, torch.zeros(400), refuse, torch.zeros(2), weights)
    aiming = fitted_row(states, torch.zeros(400), refuse, torch.zeros(2), weights, aims=2 * told)
    assert by_label[1] > 0.5 * by_label[0]
    assert aiming[0] == pytest.approx(2 * HEAT, rel=0.1)
    assert abs(aiming[1]) < 0.05 * aiming[0]


def test_where_there_is_no_aim_labels_tell():
    draw = torch.Generator().manual_seed(6)
    states = torch.randn(400, 1, generator=draw)
    refuse = states[:, 0] > 0
    row = fitted_row(states, torch.zeros(400), refuse, torch.zeros(1), torch.ones(400), aims=torch.full((400,), torch.nan))
    assert torch.equal(row, fitted_row(states, torch.zeros(400), refuse, torch.zeros(1), torch.ones(400)))


def test_scores_become_log_odds_in_which_both_sides_weigh_the_same():
    draw = torch.Generator().manual_seed(7)
    scores = torch.cat([torch.randn(9000, generator=draw), 2 + torch.randn(1000, generator=draw), torch.tensor([torch.nan])])
    refuse = torch.arange(10001) >= 9000
    odds = log_odds(scores, refuse, torch.ones(10001))
    assert odds.isfinite().tolist() == [True] * 10000 + [False]
    slope = float((odds[0] - odds[1]) / (scores[0] - scores[1]))
    assert slope == pytest.approx(2, abs=0.3)  # two normal distributions, two apart
    assert float(odds[0] + slope * (1 - scores[0])) == pytest.approx(0, abs=0.3)  # even odds are half-way, however many there are of each
    assert log_odds(scores, refuse & False, torch.ones(10001)).isnan().all()


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_what_the_head_reads_is_told_at_the_beginning_of_answers_on_documents(with_token, compute):
    loaded = load(str(with_token), dtype="float32")
    model = prepare(loaded, SECTION)
    rows = [([3, 4, 5, 9, 7], "defense"), ([3, 4, 6, 7, 8], "benign"), ([3, 6, 7, 8], "general")]
    made = [group_of([Row(Rendered(ids, 3, 0, range(0)), 2.0, term)], document=term, matched="") for ids, term in rows]
    decoder = model.base_model.model.get_decoder()
    draw, seen = torch.Generator().manual_seed(8), []
    place, reads = SimpleNamespace(layer=1), torch.randn(decoder.config.hidden_size, generator=draw)
    with shared_layout(model) if compute == "shared" else nullcontext():
        _, _, _, first, _, scores = _choices(model, pass_of(made, compute=compute, pad=0), 9, (place, reads))
    assert first.tolist() == [True, True, False, True]
    assert scores.isfinite().tolist() == [True, True, False, False]
    decoder.layers[place.layer].self_attn.q_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for (ids, _), found in zip(rows, scores[:2], strict=False):
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([ids[:3]]))
        assert float(found) == pytest.approx(float((seen[0][0] @ reads).mean()), abs=1e-4)


def test_few_rows_that_do_not_overlap_have_no_endless_odds():
    odds = log_odds(torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([False, False, True, True]), torch.ones(4))
    assert 1 < float(odds.max()) < 5


@pytest.mark.parametrize("read", [True, False], ids=["a head", "nothing to read"])
def test_the_row_aims_where_a_head_was_written_and_at_labels_where_none_was(with_token, monkeypatch, read):
    loaded = load(str(with_token), dtype="float32")
    groups, _ = training_groups(loaded, training_examples(), SECTION)
    direction = torch.randn(loaded.model.config.hidden_size, generator=torch.Generator().manual_seed(9))
    monkeypatch.setattr(refusal_row, "reading_head", lambda *_: (0, SimpleNamespace(layer=0)))
    monkeypatch.setattr(refusal_row, "give_reading_head", lambda *_: direction if read else None)
    given = []
    monkeypatch.setattr(refusal_row, "fitted_row", lambda states, *others: given.append(others) or states[0])
    begin_from_a_fit(loaded, prepare(loaded, SECTION), groups, SECTION, "rows")
    [(_, _, _, _, first, aims)] = given
    if read:
        assert aims.isfinite().any()
        assert not aims[~first].isfinite().any()
    else:
        assert aims is None
