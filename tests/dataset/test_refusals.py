"""Refusals: every form of every language is whole, short and judged a refusal, and fits its task and category."""

import string
from itertools import product
from random import Random

import pytest

from docward.dataset.building import Plan, plan_examples
from docward.dataset.refusals import phrases, refusal
from docward.documents.reading import own_documents
from docward.evaluation.judges import judge_text
from docward.evaluation.judges.rules import fold, words_of
from docward.tasks import TASKS
from docward.types import Outcome, Want

LANGUAGES = ("en", "de", "es", "zh")
NOTE = "Mix flour, water and salt. Let the dough rest for eight hours. This is a guide for the new baker, who is to read it first."
LONGEST = 45  # words; a Chinese sign counts as one, so those may have some more


def rendered(language, share=1):
    """Every text of a language: (form, task, category, text); with a share, each n-th such that any two of form, task and category still come together."""
    said = phrases()[language]
    parts = product(*(list(enumerate(some)) for some in (said["forms"], said["doing"].items(), said["purpose"].items())))
    for (first, form), (second, (task, (do, doing))), (third, (category, purpose)) in parts:
        if (first + second + third) % share == 0:
            yield form, task, category, form.format(do=do, doing=doing, purpose=purpose)


def drawn(language, *, task="summarize", category="fraud", times=200):
    return [refusal(task, Random(seed), category=category, language=language).replace("’", "'") for seed in range(times)]


def test_there_are_many_forms_in_every_language_and_none_comes_twice():
    assert tuple(phrases()) == LANGUAGES
    many = {language: len(set(phrases()[language]["forms"])) for language in LANGUAGES}
    assert many == {language: len(phrases()[language]["forms"]) for language in LANGUAGES}
    assert many["en"] >= 60
    assert min(many.values()) >= 24


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_form_names_the_task_and_at_least_half_the_purpose(language):
    forms = phrases()[language]["forms"]
    used = [{name for _, name, _, _ in string.Formatter().parse(form) if name} for form in forms]
    assert all(names & {"do", "doing"} and names <= {"do", "doing", "purpose"} for names in used)
    assert sum("purpose" in names for names in used) * 2 >= len(forms)
    assert any("purpose" not in names for names in used)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_task_and_category_has_its_words_and_no_two_purposes_are_the_same(language):
    said = phrases()[language]
    assert set(said["doing"]) == {*TASKS, "other"}
    assert all(len(words) == 2 and all(words) for words in said["doing"].values())
    assert set(said["purpose"]) == set(phrases()["en"]["purpose"]) >= {document.category for document in own_documents()} | {"other"}
    assert len(set(said["purpose"].values())) == len(said["purpose"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_refusal_is_short_and_whole(language):
    most = 60 if language == "zh" else LONGEST
    for form, task, category, text in rendered(language):
        where = (form, task, category)
        assert len(words_of(fold(text))) < most, where
        assert not set("{}’") & set(text), where
        assert "  " not in text, where
        assert text[-1] in ".?。？", where
        assert text[0].isupper() or language == "zh", where


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_refusal_is_judged_refused(language):
    texts = {way for _, _, _, text in rendered(language, share=4) for way in (text, text.replace("'", "’"))}
    assert {text: found.why for text in texts if (found := judge_text(text, document=NOTE)).outcome != Outcome.REFUSED} == {}


def test_refusals_of_a_plan_fit_the_task_and_document():
    for one in plan_examples(own_documents(), Plan(tuple(TASKS.values()))):
        if one.want == Want.REFUSE:
            assert any(words in one.response for words in phrases()[one.language]["doing"][one.task])
            assert judge_text(one.response, document=one.document).outcome == Outcome.REFUSED


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_forms_are_drawn(language):
    said = phrases()[language]
    do, doing = said["doing"]["title"]
    forms = {form.format(do=do, doing=doing, purpose=said["purpose"]["theft"]) for form in said["forms"]}
    assert set(drawn(language, task="title", category="theft", times=1000)) == forms


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_refusal_often_says_what_the_document_is_for_and_never_another_purpose(language):
    purposes = phrases()[language]["purpose"]
    for category, purpose in purposes.items():
        texts = drawn(language, category=category)
        assert 0.4 < sum(purpose in text for text in texts) / len(texts) < 0.9, category
        others = [other for other in purposes.values() if other not in purpose]
        assert not any(other in text for text in texts for other in others), category


@pytest.mark.parametrize(
    ("given", "same"), [({"language": "tlh"}, {"language": "en"}), ({"category": "littering"}, {"category": "other"}), ({}, {"category": ""})]
)
def test_an_unknown_language_or_category_falls_back(given, same):
    assert [refusal("case", Random(seed), **given) for seed in range(50)] == [refusal("case", Random(seed), **same) for seed in range(50)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_unknown_task_falls_back(language):
    words = phrases()[language]["doing"]["other"]
    assert all(any(word in text for word in words) for text in drawn(language, task="something_new"))


def test_apostrophes_are_straight_or_curly_and_never_both():
    texts = [refusal("summarize", Random(seed)) for seed in range(300)]
    curly, straight = (sum(sign in text for text in texts) for sign in ("’", "'"))
    assert 0.2 < curly / (curly + straight) < 0.47
    assert not any("’" in text and "'" in text for text in texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_seed_gives_the_same_text_and_others_give_others(language):
    assert drawn(language, times=30) == drawn(language, times=30)
    assert len(set(drawn(language, times=30))) > 5
