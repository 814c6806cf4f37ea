"""The refusal token: refusals are learned behind it, and its logit bias is the dial that validation documents set."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from docward.cli.showing import console, show_dial
from docward.evaluation.evaluating import Settings, planned_replies
from docward.evaluation.generating import Prompt, first_logits, generate
from docward.loop import build, open_run, tune
from docward.models import load, token_biases
from docward.recipe import Recipe, TuningSection
from docward.records import read_rows, write_rows
from docward.rendering import render
from docward.serving.exporting import export
from docward.tasks import get_tasks
from docward.tuning import calibrating
from docward.tuning.adapters import prepare, refusal_starts, token_rows
from docward.tuning.calibrating import PLACE, bias_for, calibrate, margins
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


def test_the_highest_bias_is_taken_that_refuses_no_more_than_the_share():
    values = [-3.0, 5.0, 1.0, -1.0]
    for share, refused in ((0.0, 0), (0.25, 1), (0.49, 1), (0.5, 2), (1.0, 2)):
        bias = bias_for(values, share)
        assert sum(value + bias > 0 for value in values) == refused, share
    assert bias_for(values, 0.25) == -1.0


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
    found = margins(loaded, documents, settings, token)
    for (label, margin), reply in zip(found, planned_replies(documents, settings), strict=True):
        ids = render(loaded.tokenizer, document=reply.document, instruction=reply.instruction, limit=2048).ids
        logits = loaded.model(torch.tensor([ids])).logits[0, -1].detach()
        others = torch.cat([logits[:token], logits[token + 1 :]])
        assert label == reply.label
        assert margin == pytest.approx(float(logits[token] - others.max()), abs=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_the_dial_says_exactly_which_prompts_are_refused(with_token, tmp_path, share):
    loaded = load(str(with_token), dtype="float32")
    token = refusal_token_id(loaded, "auto")
    documents, settings = some_documents(5), Settings(tuple(get_tasks(TASKS)))
    before = margins(loaded, documents, settings, token)
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


def recipe(model, documents):
    return Recipe.model_validate(
        {
            "model_name_or_path": str(model),
            "documents": [{"path": str(documents)}],
            "dataset": {"tasks": list(TASKS), "general": 0, "max_new_tokens": 4, "max_surface_auc": 1.0},
            "tuning": {"refusal_token": "auto", "max_over_refusal": 0.0, "num_train_epochs": 1, "lora_r": 2, "save_steps": 100},
        }
    )


def test_a_run_sets_its_dial_even_after_a_kill_between_tuning_and_it_and_an_export_carries_it(with_token, tmp_path):
    splits = [Split.TRAIN] * 4 + [Split.VALIDATION] * 2 + [Split.TEST]
    documents = [one for place, split in enumerate(splits) for one in some_documents(7, split=split)[3 * place : 3 * place + 3]]
    write_rows(tmp_path / "documents.jsonl", documents)
    with open_run(recipe(with_token, tmp_path / "documents.jsonl"), tmp_path / "run") as run:
        build(run)
        tune(run)
        adapter = run.folder / "adapter"
        report = json.loads((adapter / PLACE).read_text(encoding="utf-8"))
        assert report["sensitive"] == {"prompts": 4, "refused_before": report["sensitive"]["refused_before"], "refused": 0.0}
        (adapter / PLACE).unlink()
        (adapter / "generation_config.json").unlink()
        tune(run)
        assert json.loads((adapter / PLACE).read_text(encoding="utf-8")) == report
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
    assert token_biases(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")) == {report["id"]: pytest.approx(report["bias"])}


def test_the_dial_stands_on_the_terminal(capsys):
    counts = {"prompts": 40, "refused_before": 0.5, "refused": 0.05}
    show_dial(console(), {"token": "No.", "id": 7, "bias": -1.25, "max_over_refusal": 0.05, "malicious": counts | {"refused": 0.9}, "sensitive": counts})
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("Dial: -1.25 on the logit of No., set for at most 5% of benign validation prompts.")
    assert said.endswith("Refused there: malicious 90% of 40 prompts, sensitive 5% of 40 prompts.")
    show_dial(console(), None)
    assert not capsys.readouterr().out
