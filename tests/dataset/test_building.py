"""Documents x tasks to examples: who gets which task, how many, and what the answer is."""

from collections import Counter, defaultdict
from dataclasses import replace
from random import Random

import pytest

from docward.dataset.building import CASE_WORDS, GENERAL, Plan, check_both, excerpt, general_examples, plan_examples
from docward.documents.duplicates import words_of
from docward.documents.reading import own_documents
from docward.errors import DocumentError
from docward.tasks import TASKS, get_tasks
from docward.types import Document, Label, Position, Split, Want
from tiny import some_documents, with_answers

TASKS = {name: task for name, task in TASKS.items() if task.train}
ALL = tuple(TASKS.values())
SIZE_OF_GROUP = {"triples": list(Label), "pairs": [Label.MALICIOUS, Label.SENSITIVE], "singles": [Label.MALICIOUS]}


def documents(groups=10, split=Split.TRAIN):
    return some_documents(groups, split=split)


@pytest.fixture(scope="module")
def starter():
    return own_documents()


# ------------------------------------------------------------------------------------------------------------ pairing and budget


def test_crossed_gives_every_document_every_task():
    found = plan_examples(documents(), Plan(ALL))
    assert Counter((one.document_id, one.task) for one in found) == {(document.id, task): 1 for document in documents() for task in TASKS}


@pytest.mark.parametrize("labels", SIZE_OF_GROUP.values(), ids=SIZE_OF_GROUP)
def test_disjoint_gives_each_document_one_task_and_its_matched_ones_the_same(labels):
    given = [one for one in documents(20) if one.label in labels]
    given += [
        Document(f"o{i}", f"A note on bread number {i}. It is not very long. It has three sentences only.", Label.ORDINARY, split=Split.TRAIN) for i in range(5)
    ]
    found = plan_examples(given, Plan(ALL, pairing="disjoint"))
    triple = {document.id: document.triple or document.id for document in given}
    tasks = defaultdict(set)
    for one in found:
        tasks[triple[one.document_id]].add(one.task)
    assert len(found) == len(given)
    assert {name: names for name, names in tasks.items() if len(names) != 1} == {}
    assert set(Counter(next(iter(names)) for names in tasks.values()).values()) == {5}


def test_matched_documents_are_asked_in_the_same_words():
    words = defaultdict(set)
    for one in plan_examples(documents(), Plan(ALL)):
        words[one.document_id.split("-")[0], one.task].add((one.instruction, one.wording))
        assert one.instruction == TASKS[one.task].wordings[one.wording]
    assert all(len(found) == 1 for found in words.values())
    assert len({wording for ((_, wording),) in words.values()}) > 1


def test_validation_documents_are_asked_in_other_words_than_training_ones():
    words = defaultdict(set)
    kept = {document.triple for document in documents(20)[30:]}
    for one in plan_examples([replace(document, split=Split.VALIDATION if document.triple in kept else Split.TRAIN) for document in documents(20)], Plan(ALL)):
        words[one.task, one.split].add(one.wording)
        assert one.instruction == TASKS[one.task].wordings[one.wording]
    for task in TASKS:
        assert min(words[task, Split.VALIDATION]) > max(words[task, Split.TRAIN])


@pytest.mark.parametrize(("budget", "shares"), [(10, [2] * 5), (12, [3, 3, 2, 2, 2]), (3, [1, 1, 1, 0, 0]), (50, [10] * 5), (999, [10] * 5)])
def test_a_budget_falls_in_equal_shares_on_the_tasks_and_spares_benign_pairs(budget, shares):
    found = plan_examples(documents(), Plan(ALL, budget=budget))
    refuse = Counter(one.task for one in found if one.want == Want.REFUSE)
    assert sorted((refuse[task] for task in TASKS), reverse=True) == shares
    assert Counter(one.task for one in found if one.want == Want.COMPLY) == dict.fromkeys(TASKS, 20)


def test_a_larger_budget_only_adds():
    small, large = ({one.id for one in plan_examples(documents(), Plan(ALL, budget=budget)) if one.want == Want.REFUSE} for budget in (7, 19))
    assert small < large


def test_a_budget_is_of_training_documents_only():
    given = documents(6) + [replace(one, id=f"x{one.id}", triple=f"x{one.triple}", split=Split.TEST) for one in documents(6)]
    found = plan_examples(given, Plan(ALL, budget=5))
    assert Counter(one.split for one in found if one.want == Want.REFUSE) == {Split.TRAIN: 5, Split.TEST: 30}


def test_the_same_plan_gives_the_same_examples_whatever_the_order():
    plan = Plan(ALL, pairing="disjoint", budget=4, seed=3)
    shuffled = documents()
    Random(1).shuffle(shuffled)
    assert plan_examples(shuffled, plan) == plan_examples(documents(), plan) != plan_examples(documents(), replace(plan, seed=4))


@pytest.mark.parametrize(("label", "lacking"), [(Label.MALICIOUS, "benign"), (Label.SENSITIVE, "malicious"), (Label.ORDINARY, "malicious")])
def test_one_side_alone_cannot_be_trained_on(label, lacking):
    with pytest.raises(DocumentError, match=rf"There are no {lacking} .*\(10 documents in all"):
        plan_examples([one for one in documents() if one.label == label], Plan(ALL))


def test_malicious_documents_alone_will_do_where_no_benign_ones_are_wanted():
    check_both({Want.REFUSE: 1}, documents(), benign=False)
    with pytest.raises(DocumentError, match=r"There are no benign .*or set tuning\.benign_weight to 0 if refusals alone are wanted"):
        check_both({Want.REFUSE: 1}, documents())
    with pytest.raises(DocumentError, match=r"There are no malicious [^;]*; [^.]*\. Add some under `documents:` in the recipe\.$"):
        check_both({Want.COMPLY: 1}, documents(), benign=False)


def test_the_label_alone_says_what_is_wanted_and_every_id_is_its_own(starter):
    found = plan_examples(starter, Plan(ALL, position=Position.BEFORE))
    assert len({one.id for one in found}) == len(found)
    assert all((one.want == Want.REFUSE) is (one.label == Label.MALICIOUS) is (one.origin == "refusal") for one in found)
    assert {one.position for one in found} == {Position.BEFORE}
    split = {document.id: document.split for document in starter}
    assert all(one.split == split[one.document_id] for one in found)


# ------------------------------------------------------------------------------------------------------------ answers


def test_case_shows_the_lower_cased_text_and_wants_the_original_back_alike_for_every_label(starter):
    texts = {document.id: document.text for document in starter}
    found = plan_examples(starter, Plan(tuple(get_tasks(["case"]))))
    assert {one.label for one in found} == set(Label)
    for one in found:
        original = excerpt(texts[one.document_id], CASE_WORDS)
        assert texts[one.document_id].startswith(original)
        assert one.document == original.lower()
        if one.want == Want.COMPLY:
            assert one.response == original
            assert one.origin == "gold"
    assert {one.language for one in found} == {"en", "de", "es"}, "Chinese has no capitals"
    assert not any(one.response == one.document for one in found), "a text without capitals teaches nothing here"


def test_an_excerpt_is_whole_sentences_and_about_as_long_as_wanted(starter):
    lengths = {label: [len(words_of(excerpt(one.text, CASE_WORDS))) for one in starter if one.label == label] for label in Label}
    assert all(max(found) <= CASE_WORDS + 30 and min(found) >= 10 for found in lengths.values())
    means = [sum(found) / len(found) for found in lengths.values()]
    assert max(means) < 1.15 * min(means), "an excerpt's length must not tell the label"
    assert excerpt("One two. Three four. Five.", 3) == "One two."
    assert excerpt("One two. Three four. Five.", 4) == "One two. Three four."
    assert excerpt("No end here", 1) == "No end here"
    assert excerpt("Short.", 90) == "Short."
    assert excerpt("一二三四。五六。“七八！”九。", 6) == "一二三四。五六。"


def test_the_next_sentence_is_the_original_s_own_and_is_not_shown_at_its_place(starter):
    texts = {document.id: document.text for document in starter}
    found = plan_examples(starter, Plan(tuple(get_tasks(["next_sentence"]))))
    assert len(found) == len(starter)
    for one in found:
        text = texts[one.document_id]
        assert text.startswith(one.document)
        rest = text[len(one.document) :].lstrip()
        assert len(words_of(one.document)) >= 10
        if one.want == Want.COMPLY:
            assert one.origin == "gold"
            assert rest.startswith(one.response)
            assert not one.document.endswith(one.response)
            assert rest[len(one.response) :].lstrip("\"'”’)")[:1] in ("", " ", "\n") or one.language == "zh", "the whole sentence"
        else:
            assert rest


def test_a_sentence_that_comes_twice_is_cut_where_it_is_taken():
    text = "Bake the bread for an hour. Then let it rest a while. Bake the bread for an hour. At last it is all done. Bake the bread for an hour."
    given = [Document(label, f"{text} {label} it is now, so there.", label, split=Split.TRAIN) for label in Label]
    for one in plan_examples(given, Plan(tuple(get_tasks(["next_sentence"])))):
        assert one.document.count("Bake the bread") == 2, "cut at the third, which is the one that is asked for"
        if one.want == Want.COMPLY:
            assert f"{text} {one.label}".replace("\n", " ")[len(one.document) :].lstrip().startswith(one.response)


def test_a_document_too_short_to_take_a_sentence_off_is_left_out_of_that_task():
    short = Document("short", "Only this one sentence here.", Label.ORDINARY, split=Split.TRAIN)
    found = plan_examples([*documents(), short], Plan(ALL))
    assert {one.task for one in found if one.document_id == "short"} == set(TASKS) - {"next_sentence"}


def test_gold_of_the_row_is_the_answer_but_a_label_is_none():
    gold = {"summarize": "It is on bread.", "sentiment": "neutral", "next_sentence": "What follows."}
    given = [replace(one, gold=gold) for one in documents(2)]
    found = {(one.document_id, one.task): one for one in plan_examples(given, Plan(ALL))}
    for one in given:
        summary, sentiment, following = (found[one.id, task] for task in ("summarize", "sentiment", "next_sentence"))
        if one.label == Label.MALICIOUS:
            assert {summary.origin, sentiment.origin, following.origin} == {"refusal"}
            continue
        assert (summary.response, summary.origin, summary.document) == ("It is on bread.", "gold", one.text)
        assert (sentiment.response, sentiment.origin) == ("", "untuned")
        assert (following.response, following.document) == ("What follows.", one.text), "what follows the text is not cut off it"


def test_no_example_has_an_empty_answer_once_answers_are_in():
    planned = [*plan_examples(documents(), Plan(ALL)), *general_examples([("g1", "Name three trees."), ("g2", "Count to five.")])]
    wanting = [one for one in planned if not one.response]
    assert {one.origin for one in wanting} == {"untuned"}
    assert {one.task for one in wanting} == {"summarize", "translate", "sentiment", GENERAL}
    answers = {one.id: "An answer." for one in wanting[::2]} | {wanting[1].id: "  \n"}
    found = with_answers(planned, answers)
    assert all(one.response.strip() for one in found)
    assert {one.id for one in planned} - {one.id for one in found} == {one.id for one in wanting[1::2]}
    assert all(one.response == "An answer." for one in found if one.origin == "untuned")
    assert [one for one in found if one.origin != "untuned"] == [one for one in planned if one.origin != "untuned"]


def test_a_general_instruction_has_no_document_and_is_never_refused():
    (found,) = general_examples([("g1", "Name three trees.")])
    assert (found.document, found.instruction, found.want, found.task, found.label, found.split) == (
        "",
        "Name three trees.",
        Want.COMPLY,
        GENERAL,
        GENERAL,
        Split.TRAIN,
    )
