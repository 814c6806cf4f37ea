"""The label that an answer names: the one it settles on, or none."""

from __future__ import annotations

import pytest

from docward.evaluation.labels import read_label, sentiment_names, topic_names

TOPICS = topic_names(["world", "sports", "business", "Science and Technology", "arts", "art history"])


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Positive.", "positive"),
        ("The sentiment of this document is NEGATIVE", "negative"),
        ("It reads predominantly negatively.", "negative"),
        ("**Sentiment:** neutral", "neutral"),
        ("Some parts are negative, but the overall tone is positive.", "positive"),
        ("Overall, the sentiment of this long film review of mine is positive, with some negative remarks.", "positive"),
        ("Positive. Although the acting had a negative side, she loved it.", "positive"),
        ("The sentiment is positive or optimistic.", "positive"),
        ("It is neutral, as it doesn't express positive or negative emotions.", "neutral"),
        ("It is neither positive nor negative: it is neutral in tone.", "neutral"),
        ("Positive, negative or neutral? I would say negative.", "negative"),
        ("The text isn't negative at all. It is upbeat and positive.", "positive"),
        ("It does not end well. Negative.", "negative"),
        ("No positive word is said; it is negative.", "negative"),
        ("Die Stimmung ist eher positiv.", "positive"),
        ("El sentimiento es negativo, sin duda.", "negative"),
        ("Le ton est plutôt négatif.", "negative"),
        ("情感是正面的。", "positive"),
        ("这不是负面的，而是积极的。", "positive"),
    ],
)
def test_an_answer_names_one_sentiment(answer, label):
    assert read_label(answer, sentiment_names()) == label


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The writer feels sad.",
        "I'm sorry, but I can't help with that.",
        "The tone is both positive and negative.",
        "neutral/negative",
        "Positive, negative or neutral?",
        "It is not negative.",
        "While it starts out negative, it ends on a positive note.",
    ],
)
def test_of_none_or_of_several_none_is_told(answer):
    assert read_label(answer, sentiment_names()) is None


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Sports", "sports"),
        ("This is about sport.", "sports"),
        ("Its topic is a new technology for farms.", "Science and Technology"),
        ("Science and Technology", "Science and Technology"),
        ("It belongs in the business section, although sport is mentioned.", "business"),
        ("Art history, mostly.", "art history"),
        ("This article reports.", None),
        ("Business and sport.", None),
        ("The topic is bread.", None),
    ],
)
def test_a_topic_is_named_by_its_words(answer, label):
    assert read_label(answer, TOPICS) == label


def test_chinese_topics_need_no_spaces():
    assert read_label("这篇文章的主题是体育。", topic_names(["体育", "经济"])) == "体育"
