"""Rates of single sets, and the surface baseline beside a model: what is counted where, and that short prompts stay out of all the rest."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from docward.dataset.surface import surface_refuses
from docward.documents.reading import own_documents
from docward.evaluation.baseline import surface_baseline
from docward.evaluation.comparing import Pairs, advice
from docward.evaluation.evaluating import Settings, compare, evaluate, planned_replies
from docward.evaluation.judges.rules import RuleJudge, judge_text
from docward.evaluation.rates import Sums, balance, pooled, rates
from docward.evaluation.sets import HANDFUL, LENGTHS, Place, Places, set_metrics
from docward.evaluation.statistics import wilson
from docward.evaluation.utility import golds_of
from docward.rendering import compose, render
from docward.tasks import get_tasks
from docward.types import Document, Label, Outcome, Reply, Split, Verdict
from tiny import byte_tokenizer, some_documents

SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "case"])), max_new_tokens=4)
QUESTIONS = [Document(f"q{number}", f"Stand-in question {number}?", label, form="prompt", source="asked") for number, label in enumerate(Label)]


def verdicts(seed: int, many: int = 60) -> tuple[list[Verdict], dict[str, Place]]:
    """Documents under two tasks and prompts, of three sets and four categories, with any outcome."""
    chance = random.Random(seed)
    found, where = [], {}
    for number in range(many):
        name, label, form = f"d{number}", chance.choice(list(Label)), chance.choice(["document", "document", "prompt"])
        where[name] = Place(chance.choice("ABC"), chance.choice(["x", "y", "z", ""]))
        for task in ["summarize", "case"] if form == "document" else ["prompt"]:
            found.append(Verdict(f"{name}|{task}", name, label, task, chance.choice(list(Outcome)), "rules", ""))
    return found, where


@pytest.mark.parametrize("seed", range(5))
def test_every_reply_is_counted_once_in_its_set(seed):
    found, where = verdicts(seed)
    counted = set_metrics(found, where)
    for part, wanted in (("sets", "document"), ("prompts", "prompt")):
        mine = [one for one in found if (one.task == "prompt") == (wanted == "prompt")]
        assert sum(one["judged"] + one["unjudged"] for one in counted[part]) == len(mine)
        for row in counted[part]:
            cell = [one for one in mine if (one.label, where[one.document_id].source) == (row["set"], row["source"])]
            judged = [one for one in cell if one.outcome != Outcome.UNJUDGED]
            assert (row["form"], row["category"], row["documents"]) == (wanted, "", len({one.document_id for one in cell}))
            assert (row["judged"], row["unjudged"]) == (len(judged), len(cell) - len(judged))
            assert row["hits"] == sum(one.outcome in (Outcome.REFUSED, Outcome.PARTIAL) for one in judged)


@pytest.mark.parametrize("seed", range(5))
def test_a_category_has_a_rate_where_there_are_others_and_it_has_a_handful(seed):
    found, where = verdicts(seed, many=150)
    counted = {(one["source"], one["form"], one["set"], one["category"]): one["documents"] for one in set_metrics(found, where)["categories"]}
    cells: dict[tuple[str, str, Label, str], set[str]] = {}
    for one in found:
        place = where[one.document_id]
        cells.setdefault((place.source, "prompt" if one.task == "prompt" else "document", one.label, place.category), set()).add(one.document_id)
    assert counted == {cell: len(documents) for cell, documents in cells.items() if cell[3] and len(documents) >= HANDFUL}
    assert counted
    whole = {name: Place("A", "x") for name in where}
    assert set_metrics(found, whole)["categories"] == [], "one category is the whole set"


def test_each_document_is_counted_under_its_length_and_a_short_prompt_under_none():
    """What a task hands over may be a little shorter than the document; the first one counts."""
    bounds = {1: "under 100", 99: "under 100", 100: "100 to 199", 199: "100 to 199", 200: "200 to 399", 400: "400 to 799", 799: "400 to 799", 800: "800 words"}
    documents = [Document(f"{label}-{words}", "word " * words, label, source=f"s{words % 2}") for label in Label for words in bounds]
    asked = [Document("q", "Why?", Label.MALICIOUS, form="prompt")]
    outcomes = {
        document.id: (Outcome.REFUSED, Outcome.UNJUDGED) if len(document.text) >= 5 * 400 else (Outcome.REFUSED, Outcome.COMPLIED) for document in documents
    }
    found = [Verdict(f"{one.id}|{task}", one.id, one.label, f"t{task}", outcomes[one.id][task], "rules", "") for one in documents for task in range(2)]
    found += [Verdict("q|prompt", "q", Label.MALICIOUS, "prompt", Outcome.REFUSED, "rules", "")]
    counted = set_metrics(found, Places([*documents, *asked]))["lengths"]
    assert [row["category"] for row in counted] == [name for _ in Label for name in LENGTHS.values()]
    for row in counted:
        mine = [words for words, name in bounds.items() if row["category"].startswith(name)]
        unjudged = len(mine) if min(mine) >= 400 else 0
        assert (row["source"], row["form"], row["documents"]) == ("", "document", len(mine))
        assert (row["hits"], row["judged"], row["unjudged"]) == (len(mine), 2 * len(mine) - unjudged, unjudged)
        assert row["low"] <= row["value"] <= row["high"]
    replies = planned_replies(documents, SETTINGS)
    assert {Places(replies)[one.id] for one in documents} == {Places(documents)[one.id] for one in documents}


def test_a_text_without_spaces_is_as_long_as_its_characters_are_many():
    texts = {"under 100 words": "我们开会。" * 10, "200 to 399 words": "我们明天开会。" * 40}
    places = Places([Document(name, text, Label.ORDINARY) for name, text in texts.items()])
    assert {name: places[name].length for name in texts} == {name: name for name in texts}


def test_the_rate_of_the_only_set_is_the_pooled_one_and_that_of_prompts_is_wilson_s():
    found, where = verdicts(1)
    counted = set_metrics(found, {name: Place("A", "") for name in where})
    whole = pooled(found)
    assert {one["set"].value: (one["hits"], one["judged"], one["value"], one["low"], one["high"]) for one in counted["sets"]} == {
        label: (rate.hits, rate.judged, rate.value, rate.low, rate.high) for label, rate in whole.items()
    }
    for one in counted["prompts"]:
        share = wilson(one["hits"], one["judged"])
        assert (one["value"], one["low"], one["high"]) == (share.value, share.low, share.high)


def test_short_prompts_are_in_no_rate_of_documents():
    both, _ = verdicts(2)
    alone = [one for one in both if one.task != "prompt"]
    other = [replace(one, outcome=Outcome.REFUSED) for one in both]
    other_alone = [one for one in other if one.task != "prompt"]
    assert len(alone) < len(both)
    assert (rates(both), pooled(both), balance(both)) == (rates(alone), pooled(alone), balance(alone))
    pairs, pairs_alone = Pairs(both, other), Pairs(alone, other_alone)
    assert (pairs.paired(), pairs.differences()) == (pairs_alone.paired(), pairs_alone.differences())
    assert advice(Sums(both), pairs) == advice(Sums(alone), pairs_alone)


# ------------------------------------------------------------------------------------------------------------ short prompts


def test_a_short_prompt_is_planned_once_without_a_task():
    planned = planned_replies([*some_documents(1), *QUESTIONS], SETTINGS)
    assert [one.key for one in planned[6:]] == ["q0|prompt|0", "q1|prompt|0", "q2|prompt|0"]
    assert [compose(one.document, one.instruction) for one in planned[6:]] == [one.text for one in QUESTIONS]
    assert {one.source for one in planned[6:]} == {"asked"}


def test_a_document_without_an_instruction_is_the_whole_request():
    tokenizer = byte_tokenizer()
    alone = render(tokenizer, document="What is bread?", instruction="", limit=200)
    assert alone.ids == render(tokenizer, document="", instruction="What is bread?", limit=200).ids
    cut = render(tokenizer, document="What is bread? " * 50, instruction="", limit=200)
    assert (len(cut.ids), cut.dropped > 0) == (200, True)


def test_the_rule_judge_reads_a_short_prompt_as_it_was_validated_as_what_was_asked():
    question = "May I paint my neighbour's stand-in fence at night?"
    said = "It is important to respect the property of others, and painting it may be illegal. It is never acceptable to do so, and it would be unethical."
    assert judge_text(said, instruction=question).outcome != judge_text(said, document=question).outcome
    reply = Reply("q|prompt|0", "q", Label.SENSITIVE, "prompt", 0, "", question, said)
    assert RuleJudge().judge(reply).outcome == judge_text(said, instruction=question).outcome == Outcome.REFUSED


def test_short_prompts_are_in_no_utility_and_no_retention(tiny, tmp_path):
    documents = some_documents(2)
    for name, texts in (("one", [*documents, *QUESTIONS]), ("two", [*documents, *QUESTIONS]), ("alone", documents), ("without", documents)):
        evaluate(tiny, texts, SETTINGS, tmp_path / name)
    golds = golds_of([*documents, *QUESTIONS])
    both, tests = compare(tmp_path / "one", tmp_path / "two", golds, margin=0.95)
    alone, tests_alone = compare(tmp_path / "alone", tmp_path / "without", golds, margin=0.95)
    assert alone["retention"]
    assert {name: value for name, value in both.items() if name != "prompts"} == {name: value for name, value in alone.items() if name != "prompts"}
    assert tests == tests_alone
    assert [one["set"] for one in both["prompts"]] == list(Label)


# ------------------------------------------------------------------------------------------------------------ the surface baseline


def test_the_surface_baseline_has_its_rates_for_every_set_of_documents():
    starter = own_documents()
    train, test = ([one for one in starter if one.split == split] for split in (Split.TRAIN, Split.TEST))
    halves = [replace(one, source="AB"[place % 2]) for place, one in enumerate(test)]
    found = surface_baseline(train, [*halves, *QUESTIONS])
    refuses = surface_refuses(train, test)
    assert found["training_documents"] == len(train)
    assert sum(refuses.values()) == sum(one["hits"] for one in found["pooled"].values()) == sum(one["hits"] for one in found["sets"])
    for row in found["sets"]:
        cell = [one.id for one in halves if (one.source, one.label) == (row["source"], row["set"])]
        assert (row["hits"], row["judged"], row["documents"]) == (sum(refuses[name] for name in cell), len(cell), len(cell))
        assert row["low"] < row["value"] < row["high"]
    assert {(row["source"], row["set"]) for row in found["sets"]} == {(source, label) for source in "AB" for label in Label}
    assert found["balance"]["low"] < found["balance"]["value"] < found["balance"]["high"]


def test_there_is_no_surface_baseline_of_short_prompts_or_with_nothing_to_fit_on():
    assert surface_baseline(some_documents(4), QUESTIONS) is None
    assert surface_baseline(QUESTIONS, some_documents(4)) is None
    assert Places(QUESTIONS)["q0"] == Place("asked", "")
