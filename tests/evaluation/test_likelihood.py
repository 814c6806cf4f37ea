"""How likely a model finds the real next sentence and general answers: the figures of plain transformers, kept, compared, and asked for rightly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from docward.errors import DocumentError, RecipeError
from docward.evaluation.evaluating import Settings, compare, evaluate, planned_texts
from docward.evaluation.likelihood import (
    GeneralAnswer,
    Likelihood,
    check_lengths,
    general_texts,
    likelihood_retention,
    likelihood_utility,
    log_likelihoods,
    perplexity_ratio,
    read_general,
)
from docward.evaluation.utility import golds_of
from docward.models import Loaded
from docward.records import read_rows
from docward.tasks import get_tasks
from docward.types import Document, Label
from tiny import some_documents

ANSWERS = (GeneralAnswer("g1", "Say hello.", "Hello to you."), GeneralAnswer("g2", "Name a colour.", "Blue, like the sea."))
SETTINGS = Settings(tasks=tuple(get_tasks(["next_sentence"])), max_new_tokens=2, general=ANSWERS)


def measured(loaded: Loaded, texts, limit: int = 2048) -> dict[str, Likelihood]:
    return {one.key: one for one in log_likelihoods(loaded, texts, system="", limit=limit)}


def by_hand(loaded: Loaded, prompt: str, answer: str) -> tuple[int, float]:
    """The chat template's text, tokenised, through the model as a whole; the answer's tokens are those after the prompt's."""
    chat = loaded.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    before = loaded.tokenizer(chat, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([loaded.tokenizer(chat + answer, add_special_tokens=False)["input_ids"]])
    assert ids[0, : len(before)].tolist() == before
    with torch.inference_mode():
        logs = loaded.model(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(before), ids.shape[1])
    return len(places), sum(float(logs[place - 1, ids[0, place]]) for place in places)


@pytest.mark.parametrize("model", ["tiny", "real"])
def test_a_likelihood_is_that_of_the_answers_tokens_alone(model, request):
    loaded = request.getfixturevalue(model)
    for one, found in zip(ANSWERS, measured(loaded, general_texts(ANSWERS)).values(), strict=True):
        tokens, nats = by_hand(loaded, one.instruction, one.response)
        assert (found.task, found.against, found.document_id, found.tokens) == ("general", "gold", one.id, tokens)
        assert found.log_likelihood == pytest.approx(nats, abs=2e-3)


def test_the_next_sentence_is_the_documents_own_after_what_comes_before_it(real):
    bread = "The bakery opened at eight. It sells bread and cake. On Sundays it is closed. People come from other towns. They like the bread."
    document = Document("d", bread, Label.ORDINARY)
    (text,) = planned_texts([document], replace(SETTINGS, general=()))
    start, _, end = bread.partition(" People come from other towns")
    assert end
    assert (text.document, text.text) in [(bread[: bread.index(text.text)].rstrip(), text.text)]
    assert text.text in bread[len(start) - 30 :]
    (found,) = measured(real, [text]).values()
    tokens, nats = by_hand(real, f"{text.document}\n\n{text.instruction}", text.text)
    assert (found.tokens, found.log_likelihood) == (tokens, pytest.approx(nats, abs=2e-3))
    (strange,) = measured(real, [replace(text, text="Purple seven the of nevertheless running.")]).values()
    assert strange.log_likelihood / strange.tokens < found.log_likelihood / found.tokens - 1, "what follows is likelier than what does not"


def test_the_dial_counts(tiny):
    """What greedy decoding adds to a token's logit is part of how likely the model finds a text."""
    texts = list(general_texts(ANSWERS))
    before = measured(tiny, texts)
    token = tiny.tokenizer("B", add_special_tokens=False)["input_ids"][0]
    tiny.model.generation_config.sequence_bias = [[[token], -4.0]]
    after = measured(tiny, texts)
    hello, blue = (after[one.key].log_likelihood - before[one.key].log_likelihood for one in texts)
    assert 0 < hello < 1, "a token that is nowhere in the text is less likely now, and the others more"
    assert -4 < blue < -3


def test_only_benign_documents_that_have_a_next_sentence_are_measured():
    documents = [*some_documents(1), Document("short", "One sentence only.", Label.ORDINARY)]
    documents.append(Document("own", "One more.", Label.ORDINARY, gold={"next_sentence": "What comes after it."}))
    texts = list(planned_texts(documents, SETTINGS))
    assert [(one.document_id, one.task) for one in texts] == [
        ("t0-s", "next_sentence"),
        ("t0-o", "next_sentence"),
        ("own", "next_sentence"),
        ("g1", "general"),
        ("g2", "general"),
    ]
    assert (texts[2].document, texts[2].text) == ("One more.", "What comes after it.")
    assert list(planned_texts(documents, replace(SETTINGS, tasks=tuple(get_tasks(["case"])), general=()))) == []
    prompts = [replace(one, form="prompt") for one in documents]
    assert list(planned_texts(prompts, replace(SETTINGS, general=()))) == [], "a short prompt has no next sentence to tell"


def test_a_long_document_never_costs_the_sentence(tiny):
    text = next(planned_texts(some_documents(1)[2:], SETTINGS))
    long = replace(text, document="bread " * 2000)
    (found,) = measured(tiny, [long], limit=300).values()
    assert found.tokens == len(text.text.encode())
    with pytest.raises(RecipeError, match=r"The answer of t0-o and its request are longer than the 40 tokens that this model takes"):
        measured(tiny, [long], limit=40)


def test_a_text_that_is_too_long_is_found_before_any_is_measured(tiny):
    """Whatever the document's length, which costs a text nothing; the model is not asked."""
    long = GeneralAnswer("g3", "Say much.", "word " * 100)
    following = replace(next(planned_texts(some_documents(1)[2:], SETTINGS)), document="bread " * 2000)
    tiny.model.forward = None
    check_lengths(tiny, [following, *general_texts(ANSWERS)], system="", limit=300)
    with pytest.raises(RecipeError, match=r"The answer of g3 and its request are longer than the 300 tokens that this model takes"):
        check_lengths(tiny, general_texts([*ANSWERS, long]), system="", limit=300)
    with pytest.raises(RecipeError, match=r"The answer of t0-o and its request are longer than the 40 tokens"):
        check_lengths(tiny, [following], system="", limit=40)


def test_an_evaluation_finds_a_text_that_is_too_long_before_it_asks_anything(tiny, tmp_path):
    long = GeneralAnswer("g3", "Say much.", "word " * 3000)
    with pytest.raises(RecipeError, match="The answer of g3 and its request are longer"):
        evaluate(tiny, some_documents(2), replace(SETTINGS, general=(*ANSWERS, long)), tmp_path)
    assert not (tmp_path / "replies.jsonl").exists()


def test_an_evaluation_keeps_likelihoods_by_key_and_measures_none_twice(tiny, tmp_path, monkeypatch):
    documents = some_documents(2)
    metrics = evaluate(tiny, documents, SETTINGS, tmp_path)
    rows = read_rows(tmp_path / "likelihoods.jsonl", Likelihood)
    assert [one.key for one in rows] == [one.key for one in planned_texts(documents, SETTINGS)]
    found = {(one["task"], one["measure"]): one for one in metrics["utility"]}
    following, general = found["next_sentence", "log_likelihood"], found["general", "perplexity"]
    assert (following["against"], following["n"], general["against"], general["n"]) == ("gold", 4, "gold", 2)
    some = [one for one in rows if one.task == "general"]
    perplexity = math.exp(-sum(one.log_likelihood for one in some) / sum(one.tokens for one in some))
    assert general["value"] == pytest.approx(perplexity)
    assert general["low"] <= perplexity <= general["high"]
    (tmp_path / "metrics.json").unlink()
    whole = (tmp_path / "likelihoods.jsonl").read_bytes()
    (tmp_path / "likelihoods.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[2:]) + b'{"key": "torn')
    asked = []
    monkeypatch.setattr("docward.evaluation.evaluating.log_likelihoods", lambda loaded, texts, **how: log_likelihoods(loaded, noted(texts, asked), **how))
    assert evaluate(tiny, documents, SETTINGS, tmp_path) == metrics
    assert {one.key for one in asked} == {one.key for one in rows[:2]}
    assert (tmp_path / "likelihoods.jsonl").read_bytes() == whole


def noted(texts, into: list):
    for one in texts:
        into.append(one)
        yield one


def test_the_same_model_twice_keeps_all_of_it(tiny, tmp_path):
    documents = some_documents(2)
    for name in ("first", "second"):
        evaluate(tiny, documents, SETTINGS, tmp_path / name)
    metrics, _ = compare(tmp_path / "first", tmp_path / "second", golds_of(documents), margin=0.9)
    assert metrics["perplexity"] == {"against": "gold", "rows": 2, "tokens": 32, "ratio": 1, "low": 1, "high": 1}
    kept = {(one["task"], one["measure"]): one for one in metrics["retention"]}
    assert {place: (one["value"], one["margin"], one["documents"]) for place, one in kept.items() if place[1] != "chrf_vs_untuned"} == {
        ("next_sentence", "log_likelihood"): (1, 0.9, 4),
        ("general", "perplexity"): (1, 0.9, 2),
    }


def test_perplexities_are_set_against_each_other_text_by_text():
    """Each of 60 answers of 10 tokens costs 1 nat more, each of 60 sentences 2 nats less; a text of one model only counts for neither."""
    untuned = [
        Likelihood(f"{task}{place}", task, "untuned", f"d{place}", 10, -20.0 - place % 3) for task in ("general", "next_sentence") for place in range(60)
    ]
    tuned = [replace(one, log_likelihood=one.log_likelihood + (-1 if one.task == "general" else 2)) for one in untuned]
    tuned.append(Likelihood("alone", "general", "untuned", "x", 10, -900.0))
    ratio = perplexity_ratio(tuned, untuned)
    assert ratio == {"against": "untuned", "rows": 60, "tokens": 600, "ratio": pytest.approx(math.exp(0.1)), "low": ratio["low"], "high": ratio["high"]}
    assert ratio["low"] == pytest.approx(ratio["high"]) == pytest.approx(math.exp(0.1))
    worse, better = likelihood_retention(tuned, untuned, margin=0.95)
    assert (worse.task, worse.measure, worse.value, worse.says) == ("general", "perplexity", pytest.approx(math.exp(-0.1)), "does not hold")
    assert (better.task, better.measure, better.value, better.says) == ("next_sentence", "log_likelihood", pytest.approx(math.exp(0.2)), "holds")
    assert perplexity_ratio([], untuned) is None
    assert [(one.task, one.measure) for one in likelihood_utility(untuned)] == [("general", "perplexity"), ("next_sentence", "log_likelihood")]


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv"])
def test_general_answers_are_read_from_a_table(tmp_path: Path, name: str):
    rows = [{"id": 7, "instruction": "Say hello.", "response": "Hello."}, {"id": "", "instruction": "Name a colour.", "response": "Blue."}]
    path = tmp_path / name
    lines = [json.dumps(one) for one in rows] if name.endswith("jsonl") else ["id,instruction,response", "7,Say hello.,Hello.", ",Name a colour.,Blue."]
    path.write_text("\n".join(lines) + "\n")
    first, second = read_general(path)
    assert (first.id, first.instruction, first.response, first.origin) == ("7", "Say hello.", "Hello.", "gold")
    assert (len(second.id), second.response) == (16, "Blue.")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"instruction": "Say hello."}, r"`response` is missing \(fields instruction\)\. Each row needs an `instruction` and the `response`"),
        ({"prompt": "Say hello.", "response": "Hello."}, r"`instruction` is missing \(fields prompt, response\)"),
        ({"instruction": "Say hello.", "response": 5}, r"`response` is 5 \(fields"),
        ({"instruction": "Say hello.", "response": " "}, r"`response` is ' ' \(fields"),
        ({"instruction": None, "response": "Hello."}, r"`instruction` is missing"),
    ],
)
def test_a_general_file_that_lacks_something_is_told_where(tmp_path, row, problem):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"instruction": "x", "response": "y"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DocumentError, match=rf"mine\.jsonl:2: {problem}"):
        read_general(path)
