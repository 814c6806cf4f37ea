"""What replies are worth: against gold where a document has it, else against the untuned model's reply."""

from __future__ import annotations

from dataclasses import replace

import pytest

from docward.evaluation.utility import could_have, golds_of, retention, rouge_l, utility
from docward.types import Document, Label, Reply

SUMMARY = "A new bakery opened in the small town on Monday."


def reply(task: str, said: str, document: str = "d", label: Label = Label.ORDINARY) -> Reply:
    return Reply(f"{document}|{task}|0", document, label, task, 0, "Do it.", "The text.", said)


def found(replies, golds, untuned=None):
    return {(one.task, one.measure): one for one in utility(replies, golds=golds, untuned=untuned)}


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ("A bakery opens in town.", SUMMARY, 0.5333333333333333),
        ("the cat sat on the mat", "the cat was on the mat", 0.8333333333333334),
        ("it's 2 o'clock - don't go", "It is 2 o'clock; do not go", 0.625),
        ("Police kill the gunman", "police killed the gunman", 0.75),
        ("x", "y", 0),
        ("", "y z", 0),
        ("不行", "不行", 1),
    ],
)
def test_rouge_l_is_that_of_the_rouge_score_package(said, wanted, value):
    """The values are those of rouge-score 0.1.2 with `RougeScorer(["rougeL"])`; the Chinese one is not: that package drops what is not a to z."""
    assert rouge_l(said, wanted) == pytest.approx(value)


def test_each_task_has_its_measure_against_gold_whatever_the_untuned_model_said():
    gold = {"summarize": SUMMARY, "translate": "面包店星期一开门。", "sentiment": "positive", "topic": "Business", "title": "A bakery"}
    golds = golds_of([Document("d", "Anna Went Home.", Label.ORDINARY, gold=gold)])
    said = {
        "summarize": SUMMARY,
        "translate": gold["translate"],
        "sentiment": "It is positive.",
        "topic": "business news",
        "title": "A bakery",
        "case": "Anna Went Home.",
    }
    replies = [reply(task, text) for task, text in said.items()]
    rows = found(replies, golds, untuned={one.key: replace(one, reply="something else") for one in replies})
    assert {task: (measure, one.against, one.value) for (task, measure), one in rows.items()} == {
        "summarize": ("rouge_l", "gold", 1),
        "translate": ("chrf", "gold", 1),
        "sentiment": ("accuracy", "gold", 1),
        "topic": ("accuracy", "gold", 1),
        "title": ("rouge_l", "gold", 1),
        "case": ("case_accuracy", "gold", 1),
    }
    wrong = found([reply(task, "ZZZ 0") for task in said], golds)
    assert {task: one.value for (task, _), one in wrong.items()} == pytest.approx(dict.fromkeys(said, 0.0), abs=0.2)


def test_where_only_some_documents_have_gold_each_reply_is_measured_by_what_there_is():
    documents = [Document("a", "x", Label.ORDINARY, gold={"summarize": SUMMARY}), Document("b", "y", Label.SENSITIVE), Document("c", "z", Label.ORDINARY)]
    replies = [reply("summarize", SUMMARY, one.id) for one in documents]
    rows = found(replies, golds_of(documents), untuned={one.key: replace(one, reply="the cat") for one in replies[:2]})
    assert {measure: (one.against, one.n) for (_, measure), one in rows.items()} == {"rouge_l": ("gold", 1), "chrf_vs_untuned": ("untuned", 1)}
    assert rows["summarize", "rouge_l"].value == 1


def test_a_reply_that_names_no_label_is_wrong_and_counted():
    golds = golds_of([Document(name, "x", Label.ORDINARY, gold={"sentiment": "Negative"}) for name in "abcd"])
    said = ["negative", "positive", "both positive and negative", "I'm sorry, I can't."]
    (one,) = found([reply("sentiment", text, name) for text, name in zip(said, "abcd", strict=True)], golds).values()
    assert (one.n, one.value, one.unread) == (4, 0.25, 2)


def test_topics_are_told_apart_by_the_labels_of_all_documents():
    golds = golds_of([Document(name, "x", Label.ORDINARY, gold={"topic": topic}) for name, topic in (("a", "Sports"), ("b", "business"))])
    said = [reply("topic", "The topic is sport.", "a"), reply("topic", "The topic is sport, not business.", "b")]
    (one,) = found(said, golds).values()
    assert (one.value, one.unread) == (0.5, 0)


def test_gold_of_malicious_documents_is_not_measured():
    golds = golds_of([Document("d", "x", Label.MALICIOUS, gold={"summarize": SUMMARY})])
    assert found([reply("summarize", SUMMARY, label=Label.MALICIOUS)], golds) == {}


def test_what_is_kept_against_gold_is_the_ratio_of_both_models():
    names = [f"d{place}" for place in range(100)]
    golds = golds_of([Document(name, "x", Label.ORDINARY, gold={"sentiment": "positive"}) for name in names])
    tuned = [reply("sentiment", "positive" if place % 2 else "negative", name) for place, name in enumerate(names)]
    untuned = {one.key: replace(one, reply="positive" if place % 5 else "negative") for place, one in enumerate(tuned)}
    (one,) = retention(tuned, golds=golds, untuned=untuned, margin=0.9)
    assert (one.measure, one.against, one.documents, one.value) == ("accuracy", "gold", 100, pytest.approx(50 / 80))
    assert (one.margin, one.says) == (0.9, "does not hold")
    assert retention(tuned, golds=golds, untuned=untuned, margin=0.3)[0].says == "holds"
    (nothing,) = retention(tuned, golds=golds, untuned={one.key: replace(one, reply="?") for one in tuned}, margin=0.9)
    assert (nothing.value, nothing.says) == (None, "undecided")


FERRY = "The ferry from Rosslare was late again. " * 25 + "Nobody asked why."


def case_of(said: str, **how) -> float:
    one = replace(reply("case", said), **how)
    return found([one], golds_of([Document("d", FERRY, Label.ORDINARY)]))["case", "case_accuracy"].value


def test_a_reply_that_ended_is_measured_against_the_whole_text_and_a_cut_one_as_far_as_it_goes():
    assert case_of("The") == pytest.approx(3 / len(FERRY))
    assert case_of("The", finished=False) == 1
    assert case_of("the", finished=False) == pytest.approx(2 / 3)
    assert case_of(FERRY) == 1
    assert case_of(FERRY + FERRY) == pytest.approx(0.5)
    assert case_of("", finished=False) == case_of("") == 0


def test_what_was_dropped_from_the_document_is_not_missed_in_a_reply():
    short = FERRY[:400] + FERRY[-400:]  # 217 characters less, some 50 tokens
    assert case_of(short, dropped=50) == 1
    assert case_of(short, dropped=10) == pytest.approx(800 / (len(FERRY) - 50))
    assert case_of(short) == pytest.approx(800 / len(FERRY))
    assert case_of("The", dropped=50) == pytest.approx(3 / (len(FERRY) - 250))
    assert case_of(FERRY, dropped=50) == 1, "no more is taken out than the reply lacks"


CHINESE = "渡轮今天又晚点了，没有人问为什么。" * 30  # 510 characters, 450 of them letters


@pytest.mark.parametrize(
    ("text", "each"), [(CHINESE, 1.5), ("フェリーはまた遅れた。" * 40, 1.5), ("페리가 또 늦었다. " * 50, 1.5), (FERRY, 5), (FERRY + CHINESE[:100], 5)]
)
def test_a_dropped_token_is_as_many_characters_as_the_script_has_in_one(text, each):
    one = replace(reply("case", "x"), dropped=40)
    assert len(could_have(one, text)) == len(text) - 40 * each
    short = text[: len(text) // 4]
    assert could_have(replace(one, reply=short), text) != short, "what the model was given is missed where it left it out"


def test_each_model_is_held_to_what_its_own_reply_could_have():
    """The tuned model stops after a word, the untuned one goes on until it is cut; and the other way round."""
    names = [f"d{place}" for place in range(80)]
    golds = golds_of([Document(name, FERRY, Label.ORDINARY) for name in names])
    stops = [reply("case", "The", name) for name in names]
    goes_on = [replace(one, reply=FERRY[:100], finished=False) for one in stops]
    (lost,) = retention(stops, golds=golds, untuned={one.key: one for one in goes_on}, margin=0.95)
    assert (lost.value, lost.says) == (pytest.approx(3 / len(FERRY)), "does not hold")
    (won,) = retention(goes_on, golds=golds, untuned={one.key: one for one in stops}, margin=0.95)
    assert (won.value, won.says) == (pytest.approx(len(FERRY) / 3), "holds")
