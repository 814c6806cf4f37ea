"""The refusal token: refusals are learned behind it, and its logit bias is the dial that validation documents set."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from docward.cli.showing import console, show_dial
from docward.errors import RecipeError
from docward.evaluation.evaluating import Settings, planned_replies
from docward.evaluation.generating import Prompt, first_logits, generate
from docward.loop import build, open_run, tune
from docward.models import load, token_biases
from docward.recipe import Recipe, TuningSection, load_recipe
from docward.records import read_rows, write_rows
from docward.rendering import render
from docward.serving.exporting import export
from docward.tasks import get_tasks, system_prompt
from docward.tuning import calibrating
from docward.tuning.adapters import prepare, refusal_starts, token_rows
from docward.tuning.calibrating import PLACE, allowed, asked, bias_for, calibrate, margins
from docward.tuning.refusal_token import WORDS, refusal_token_id
from docward.types import Label, Split
from tiny import some_documents

TASKS = ("summarize", "case")


def test_the_token_is_learned_and_begins_like_a_refusal(with_token):
    loaded = load(str(with_token), dtype="float32")
    token = refusal_token_id(loaded, "auto")
    ends = loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()
    before = [end.weight.detach().clone() for end in ends]
    rows = token_rows(prepare(loaded, TuningSection(refusal_token="auto")))
    assert len(rows) == 2  # its embeddings are not those of its output layer
    for row, was in zip(rows, before, strict=True):
        assert row.requires_grad
        assert torch.allclose(row[0], was[refusal_starts(loaded.tokenizer, "en")].mean(0), atol=1e-6)
        assert not torch.allclose(row[0], was[token])


def test_where_embeddings_and_output_layer_are_one_the_token_has_one_row_that_learns_small_steps(with_token):
    loaded = load(str(with_token), dtype="bfloat16")
    loaded.model.set_output_embeddings(torch.nn.Linear(32, loaded.model.config.vocab_size, bias=False))
    loaded.model.lm_head.weight = loaded.model.get_input_embeddings().weight
    loaded.model.config.tie_word_embeddings = True
    [row] = token_rows(prepare(loaded, TuningSection(refusal_token="auto")))
    assert row.dtype == torch.float32
    assert row.requires_grad


def test_the_highest_bias_is_taken_that_refuses_no_more():
    values = [-3.0, 5.0, 1.0, -1.0]
    for most in range(5):
        assert sum(value + bias_for(values, most) > 0 for value in values) == most
    assert bias_for(values, 1) == -1.0


@pytest.mark.parametrize(("share", "count"), [(0.05, 131), (0.05, 40), (0.29, 99), (0.2, 9), (0.05, 19)])
def test_new_prompts_are_refused_no_more_often_than_promised(share, count):
    most = allowed(share, count)
    draw = np.random.default_rng(0)
    rates = []
    for _ in range(4000):
        values, new = draw.normal(size=count).tolist(), draw.normal(size=50)
        rates.append(float((new + bias_for(values, most) > 0).mean()))
    assert np.mean(rates) == pytest.approx((most + 1) / (count + 1), abs=0.01)
    assert np.mean(rates) <= share + 0.006
    assert (most + 2) / (count + 1) > share + 1e-9  # and one more would be too many


def test_of_few_prompts_none_may_be_refused_and_of_all_all():
    assert [allowed(0.05, count) for count in (0, 1, 18, 19, 38, 39)] == [0, 0, 0, 0, 0, 1]
    assert allowed(1.0, 7) == 7
    assert allowed(0.0, 7) == 0


SHIFTS = {Label.MALICIOUS: 10, Label.SENSITIVE: 0, Label.ORDINARY: -5}
SPREAD = [(label, place / 10 + shift) for label, shift in SHIFTS.items() for place in range(100)]  # margins: sensitive 0 to 9.9, ordinary -5 to 4.9


@pytest.fixture
def dial(tmp_path, monkeypatch):
    """What calibration says of prompts with margins that are made up, and writes."""
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda token: f"token {token}")

    def calibrated(found, **shares):
        monkeypatch.setattr(calibrating, "margins", lambda *_: found)
        loaded = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(generation_config=GenerationConfig()))
        report = calibrate(loaded, [], Settings(tuple(get_tasks(TASKS))), token=7, folder=tmp_path, **shares)
        assert json.loads((tmp_path / PLACE).read_text(encoding="utf-8")) == report
        assert token_biases(GenerationConfigHolder(tmp_path)) == {7: pytest.approx(report["bias"])}
        return report

    return calibrated


@pytest.mark.parametrize("ordinary", [None, 0.05, 1])
def test_a_share_of_their_own_for_ordinary_prompts_changes_nothing_where_it_does_not_bind(dial, ordinary):
    report = dial(SPREAD, max_over_refusal=0.05, max_false_refusal=ordinary)
    assert report["bias"] == pytest.approx(-9.501)
    assert (report["sensitive"]["refused"], report["ordinary"]["refused"]) == (0.04, 0.0)
    assert (report["max_over_refusal"], report["max_false_refusal"]) == (0.05, 0.05 if ordinary is None else ordinary)


def test_the_dial_is_the_lower_of_what_sensitive_and_ordinary_prompts_allow(dial):
    report = dial(SPREAD, max_over_refusal=0.9, max_false_refusal=0.02)
    assert report["bias"] == pytest.approx(-4.801, abs=2e-3)  # sensitive ones alone would allow -1.001
    assert [report[label]["refused"] for label in ("malicious", "sensitive", "ordinary")] == [1.0, 0.51, 0.01]
    assert dial(SPREAD, max_over_refusal=0.9)["bias"] == pytest.approx(-1.001)


def test_where_every_benign_prompt_may_be_refused_the_token_keeps_its_logit(dial):
    ordinary = [(label, value) for label, value in SPREAD if label == Label.ORDINARY]
    assert dial(ordinary, max_over_refusal=0.05, max_false_refusal=1)["bias"] == pytest.approx(-0.001)
    assert dial(SPREAD[:100], max_over_refusal=0.05)["bias"] == pytest.approx(-0.001)  # no benign ones at all


def test_the_curve_goes_from_nothing_to_all_refused_and_has_the_dial_and_each_label_at_small_shares(dial):
    report = dial(SPREAD, max_over_refusal=0.33, max_false_refusal=1)
    rows = report["curve"]
    assert [rows[0][label] for label in SHIFTS] == [0, 0, 0]
    assert [rows[-1][label] for label in SHIFTS] == [1, 1, 1]
    for label in ("bias", *SHIFTS):
        assert [row[label] for row in rows] == sorted(row[label] for row in rows)
    assert [row for row in rows if row["bias"] == report["bias"]] == [{"bias": report["bias"], **{label: report[label]["refused"] for label in SHIFTS}}]
    for label in SHIFTS:
        assert {0, 0.01, 0.02, 0.05, 0.1, 0.5, 0.9, 0.99, 1} <= {row[label] for row in rows}
    for row in rows:
        assert all(row[label] == pytest.approx(sum(value + row["bias"] > 0 for one, value in SPREAD if one == label) / 100) for label in SHIFTS)


def test_the_curve_is_short_however_many_prompts_there_are_and_has_the_labels_there_are(dial):
    many = [(label, value + place / 1e4) for place in range(70) for label, value in SPREAD]
    assert 40 < len(dial(many, max_over_refusal=0.031)["curve"]) <= 60
    few = dial([(Label.SENSITIVE, 0.5), (Label.SENSITIVE, 0.5)], max_over_refusal=0.5)["curve"]
    assert few == [{"bias": pytest.approx(-0.501), "sensitive": 0}, {"bias": pytest.approx(-0.499), "sensitive": 1}]


@pytest.mark.parametrize("wrong", ["-0.1", "1.5", "some"])
def test_a_share_that_is_none_is_refused_with_its_place_and_what_is_allowed(tmp_path, wrong):
    path = tmp_path / "my.yaml"
    path.write_text(f"tuning:\n  max_false_refusal: {wrong}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "my.yaml has 1 mistake:\n  line 2, tuning.max_false_refusal: input should be " in str(caught.value)
    assert {"-0.1": "greater than or equal to 0", "1.5": "less than or equal to 1", "some": "a valid number"}[wrong] in str(caught.value)
    assert f"(found {wrong if wrong != 'some' else repr(wrong)})" in str(caught.value)


def test_no_prompt_of_those_it_is_set_on_ties(with_token, tmp_path, monkeypatch):
    """Logits of 16 bits lie an eighth apart, and where two are alike the token with the lower id is chosen."""
    loaded = load(str(with_token), dtype="float32")
    coarse = [(label, value) for label in Label for value in (0.125, 0.25, 0.25, 0.25, 0.375)]
    monkeypatch.setattr(calibrating, "margins", lambda *_: coarse)
    report = calibrate(loaded, [], Settings(tuple(get_tasks(TASKS))), token=7, max_over_refusal=0.4, folder=tmp_path)
    assert report["bias"] == pytest.approx(-0.251)
    assert report["sensitive"] == {"prompts": 5, "refused_before": 1.0, "refused": 0.2}


def test_margins_are_those_of_one_plain_prompt_at_a_time(with_token):
    loaded = load(str(with_token), dtype="float32")
    token = refusal_token_id(loaded, "auto")
    documents, settings = some_documents(2), Settings(tuple(get_tasks(TASKS)))
    found = margins(loaded, planned_replies(documents, settings), settings, token)
    for (label, margin), reply in zip(found, planned_replies(documents, settings), strict=True):
        ids = render(loaded.tokenizer, document=reply.document, instruction=reply.instruction, limit=2048).ids
        logits = loaded.model(torch.tensor([ids])).logits[0, -1].detach()
        others = torch.cat([logits[:token], logits[token + 1 :]])
        assert label == reply.label
        assert margin == pytest.approx(float(logits[token] - others.max()), abs=1e-4)


def test_disjoint_asks_once_about_each_document_under_tasks_by_turns_and_crossed_under_all():
    documents, settings = some_documents(6), Settings(tuple(get_tasks(("summarize", "case", "sentiment"))))
    everything, once = asked(documents, settings, "crossed"), asked(documents, settings, "disjoint")
    assert [one.key for one in everything] == [one.key for one in planned_replies(documents, settings)]
    assert [one.document_id for one in once] == [document.id for document in documents]
    assert {one.key for one in once} <= {one.key for one in everything}
    matched = {document.id: document.matched for document in documents}
    tasks = {matched[one.document_id]: one.task for one in once}
    assert all(one.task == tasks[matched[one.document_id]] for one in once)  # so the task tells nothing of the label
    assert sorted(tasks.values()) == ["case"] * 2 + ["sentiment"] * 2 + ["summarize"] * 2


def test_tasks_do_not_go_by_labels_where_both_take_turns():
    """Rows that match no others, malicious, sensitive and ordinary in turn, under three tasks in turn."""
    tasks = ("summarize", "case", "sentiment")
    documents = [replace(document, triple="") for document in some_documents(20)]
    once = asked(documents, Settings(tuple(get_tasks(tasks))), "disjoint")
    for label in Label:
        assert {one.task for one in once if one.label == label} == set(tasks)


def test_calibration_says_how_many_prompts_of_how_many_are_done(with_token, tmp_path):
    told = []
    documents, settings = some_documents(3), Settings(tuple(get_tasks(TASKS)))
    loaded = load(str(with_token), dtype="float32")
    given = {"token": refusal_token_id(loaded, "auto"), "max_over_refusal": 0.2, "folder": tmp_path, "progress": lambda *said: told.append(said)}
    assert calibrate(loaded, documents, settings, pairing="disjoint", **given)["sensitive"]["prompts"] == 3
    assert told[-1] == ("calibrating the refusal token: prompts", len(documents), len(documents))


@pytest.mark.parametrize("share", [True, False])
def test_the_dial_says_exactly_which_prompts_are_refused(with_token, tmp_path, share):
    loaded = load(str(with_token), dtype="float32")
    token = refusal_token_id(loaded, "auto")
    documents, settings = some_documents(5), Settings(tuple(get_tasks(TASKS)))
    before = margins(loaded, planned_replies(documents, settings), settings, token)
    report = calibrate(loaded, documents, settings, token=token, max_over_refusal=0.2, folder=tmp_path)
    assert token_biases(GenerationConfigHolder(tmp_path)) == {token: pytest.approx(report["bias"])}
    wanted = [margin + report["bias"] > 0 for _, margin in before]
    assert 0 < sum(wanted) < len(wanted)
    for label in (Label.SENSITIVE, Label.ORDINARY):
        assert report[label.value]["refused"] <= 0.2 + 1e-9
    planned = planned_replies(documents, settings)
    prompts = [Prompt(one.key, one.document, one.instruction) for one in planned]
    replies = {one.key: one.text for batch in generate(loaded, prompts, max_new_tokens=2, share=share) for one in batch}
    assert [replies[one.key].startswith(WORDS) for one in planned] == wanted


class GenerationConfigHolder:
    def __init__(self, folder):
        self.generation_config = GenerationConfig.from_pretrained(str(folder))


def test_first_logits_are_without_the_bias(with_token):
    loaded = load(str(with_token), dtype="float32")
    prompts = [Prompt("a", "Some text that is a document.", "Say it.")]
    [(keys, plain)] = first_logits(loaded, prompts)
    loaded.model.generation_config.sequence_bias = [[[3], 50.0]]
    [(_, biased)] = first_logits(loaded, prompts)
    assert keys == ["a"]
    assert torch.equal(plain, biased)


def recipe(model, documents, pairing="crossed"):
    return Recipe.model_validate(
        {
            "model_name_or_path": str(model),
            "documents": [{"path": str(documents)}],
            "dataset": {"tasks": list(TASKS), "pairing": pairing, "general": 0, "max_new_tokens": 4, "max_surface_auc": 1.0},
            "tuning": {"refusal_token": "auto", "max_over_refusal": 0.0, "max_false_refusal": 0.5, "num_train_epochs": 1, "lora_r": 2, "save_steps": 100},
            "evaluation": {"max_batch_tokens": 700, "system_prompt": "careful"},
        }
    )


@pytest.mark.parametrize(("pairing", "prompts"), [("crossed", 4), ("disjoint", 2)])
def test_a_run_sets_its_dial_even_after_a_kill_between_tuning_and_it_and_an_export_carries_it(with_token, tmp_path, monkeypatch, pairing, prompts):
    splits = [Split.TRAIN] * 4 + [Split.VALIDATION] * 2 + [Split.TEST]
    documents = [one for place, split in enumerate(splits) for one in some_documents(7, split=split)[3 * place : 3 * place + 3]]
    write_rows(tmp_path / "documents.jsonl", documents)
    asked_in = []
    monkeypatch.setattr(calibrating, "margins", lambda *given: asked_in.append(given[2]) or margins(*given))
    with open_run(recipe(with_token, tmp_path / "documents.jsonl", pairing), tmp_path / "run") as run:
        build(run)
        tune(run)
        adapter = run.folder / "adapter"
        report = json.loads((adapter / PLACE).read_text(encoding="utf-8"))
        assert report["sensitive"] == {"prompts": prompts, "refused_before": report["sensitive"]["refused_before"], "refused": 0.0}
        assert (report["max_over_refusal"], report["max_false_refusal"]) == (0.0, 0.5)
        (adapter / PLACE).unlink()
        (adapter / "generation_config.json").unlink()
        tune(run)
        assert json.loads((adapter / PLACE).read_text(encoding="utf-8")) == report
    assert {(one.max_batch_tokens, one.system) for one in asked_in} == {(700, system_prompt("careful"))}  # as the evaluation asks
    assert read_rows(run.folder / "documents.jsonl", type(documents[0]))
    tuned = load(str(adapter))
    assert token_biases(tuned.model) == {report["id"]: pytest.approx(report["bias"])}
    assert report["id"] in tuned.model.generation_config.eos_token_id
    tuned.model.generation_config.sequence_bias = [[[report["id"]], 1000.0]]
    [[reply]] = generate(tuned, [Prompt("a", "Some text.", "Say it.")], max_new_tokens=5)
    assert (reply.text, reply.finished) == (WORDS, True)  # seen, and the end
    plain = load(str(with_token)).fingerprint
    assert load(str(adapter)).fingerprint != plain
    export(run.folder, tmp_path / "exported")
    assert f'"logit_bias": {{"{report["id"]}": {report["bias"]}}}' in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert token_biases(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")) == {report["id"]: pytest.approx(report["bias"])}


def test_the_dial_stands_on_the_terminal(capsys):
    counts = {"prompts": 40, "refused_before": 0.5, "refused": 0.05}
    show_dial(console(), {"token": "No.", "id": 7, "bias": -1.25, "max_over_refusal": 0.05, "malicious": counts | {"refused": 0.9}, "sensitive": counts})
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("Dial: -1.25 on the logit of No., set for at most 5% of benign validation prompts.")
    assert said.endswith("Refused there: malicious 90% of 40 prompts, sensitive 5% of 40 prompts.")
    show_dial(console(), {"token": "No.", "id": 7, "bias": -3.1, "max_over_refusal": 0.05, "max_false_refusal": 0.005, "sensitive": counts})
    assert "set for at most 5% of sensitive and 0.5% of ordinary validation prompts. Refused" in " ".join(capsys.readouterr().out.split())
    show_dial(console(), {"token": "No.", "id": 7, "bias": -3.1, "max_over_refusal": 0.07, "max_false_refusal": 0.07, "sensitive": counts})
    assert "set for at most 7% of benign validation prompts." in " ".join(capsys.readouterr().out.split())
    show_dial(console(), None)
    assert not capsys.readouterr().out
