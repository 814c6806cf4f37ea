"""Disturbed copies: another surface, the same answer, nothing that tells the label, and neither look-alike letters nor odd spaces, which suites test with."""

import unicodedata
from collections import defaultdict
from dataclasses import replace
from random import Random

import pytest

from docward.dataset.building import Plan, general_examples, plan_examples
from docward.dataset.disturbing import AMONG, KINDS, OPENERS, PASSAGE, among_others, disturbed_copies, first_sentences
from docward.documents.duplicates import words_of
from docward.documents.reading import own_documents
from docward.evaluation.suites.texts import LOOK_ALIKES, ODD_SPACES, phrases
from docward.tasks import get_tasks
from docward.types import Label, Split

TEXT = "Dear neighbours, the council will close Mill Road on Monday. Please use the bridge instead. It opens at nine."


@pytest.fixture(scope="module")
def examples():
    documents = [one for one in own_documents("starter") if one.split == Split.TRAIN][:60]
    return plan_examples(documents, Plan(tuple(get_tasks(["summarize", "case", "next_sentence"])), "crossed"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_the_surface_and_hardly_the_length(kind):
    found = [KINDS[kind](TEXT, Random(seed)) for seed in range(30)]
    assert sum(one != TEXT for one in found) >= 28  # a low rate may hit nothing
    assert found == [KINDS[kind](TEXT, Random(seed)) for seed in range(30)]
    for one in found:
        plain = "".join(sign for sign in unicodedata.normalize("NFKD", one).lower() if sign.isascii() and sign.isalpha())
        assert 0.8 < len(plain) / sum(map(str.isalpha, TEXT)) < (2.2 if kind == "opener" else 1.15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["", " ", "a", "1.\n", "Sure, here it is:", "\u8bf7\u5c3d\u5feb\u56de\u590d\u3002\u8c22\u8c22\u3002", "\u00df\u0130\u01c5 \U0001f642"]
)
def test_any_text_can_be_disturbed(kind, text):
    for seed in range(20):
        KINDS[kind](text, Random(seed)).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_look_alike_letters_and_odd_spaces_are_for_the_suites_alone(kind):
    theirs = {*LOOK_ALIKES.values(), *ODD_SPACES} - {"\n", "  "}
    for seed in range(50):
        assert not any(sign in KINDS[kind](TEXT, Random(seed)) for sign in theirs)


def test_copies_keep_all_but_the_document(examples):
    copies = disturbed_copies(examples, 0.9, seed=1, groups={})
    by_id = {one.id: one for one in examples}
    assert 0.6 * len(examples) < len(copies) < len(examples)
    assert len({one.id for one in [*examples, *copies]}) == len(examples) + len(copies)
    for copy in copies:
        was = by_id[copy.id.rpartition("|")[0]]
        assert (was.response, was.want, was.instruction, was.document_id, was.split) == (
            copy.response,
            copy.want,
            copy.instruction,
            copy.document_id,
            copy.split,
        )
    assert all(copy.document != by_id[copy.id.rpartition("|")[0]].document for copy in copies)
    assert all(one.document == one.document.lower() for one in copies if one.task == "case")


def test_matched_documents_are_disturbed_in_one_kind(examples):
    groups = {one.document_id: one.document_id.rsplit("-", 1)[0] for one in examples}
    assert len(set(groups.values())) < len(groups)
    kinds = defaultdict(set)
    for copy in disturbed_copies(examples, 0.5, seed=0, groups=groups):
        kinds[groups[copy.document_id]].add((copy.document_id, copy.id.rpartition("|")[2]))
    for found in kinds.values():
        assert len({kind for _, kind in found}) == 1
    members = defaultdict(set)
    for one in examples:
        members[groups[one.document_id]].add(one.document_id)
    copied = [name for name, found in kinds.items() if {document for document, _ in found} == members[name]]
    assert len(copied) > 0.9 * len(kinds)  # noise at a low rate may hit nothing
    assert len({kind for found in kinds.values() for _, kind in found}) == len(KINDS)


def test_what_is_lost_altogether_is_no_copy(examples):
    short = [replace(examples[0], id=str(number), document_id=str(number), document="a") for number in range(300)]
    copies = disturbed_copies(short, 0.9, seed=0, groups={})
    assert all(one.document.strip() for one in copies)
    assert len(copies) > 50


def test_openers_are_other_ones_than_the_suites(examples):
    assert not {line.lower() for line in OPENERS} & {line.lower() for line in phrases()["opener"].values()}


def test_a_passage_stands_among_ordinary_documents_of_other_groups(examples):
    groups = {one.document_id: one.document_id.rsplit("-", 1)[0] for one in examples}
    copies = [one for one in disturbed_copies(examples, 0.9, seed=0, groups=groups, among=True) if one.id.endswith(f"|{AMONG}")]
    by_id = {one.id: one for one in examples}
    ordinary = {one.document: groups[one.document_id] for one in examples if one.label == Label.ORDINARY and one.task != "case"}
    assert {one.label for one in copies} == {*Label}
    places = set()
    for copy in copies:
        passage = first_sentences(by_id[copy.id.rpartition("|")[0]].document, PASSAGE)
        before, inside, after = copy.document.partition(passage)
        assert inside
        if copy.task == "case":
            assert copy.document == copy.document.lower()
            continue
        around = [part.strip() for part in (before, after) if part.strip()]
        assert around
        assert 0.8 < len(words_of(before + after)) / len(words_of(passage)) < 9
        for part in around:
            whose = {group for text, group in ordinary.items() if first_sentences(part, 1) in text}
            assert whose - {groups[copy.document_id]}
        places.add((bool(before.strip()), bool(after.strip())))
    assert len(places) > 1  # at the start, in the middle or at the end


def test_matched_documents_stand_among_the_same_others():
    texts = {name: f"This is document {name}. It says one thing. It says another." for name in ("a-m", "a-s", "a-o", "b-o", "c-o")}
    labels = {"m": Label.MALICIOUS, "s": Label.SENSITIVE, "o": Label.ORDINARY}
    examples = [replace(general_examples([(name, "Do it.")])[0], task="summarize", document=text, label=labels[name[-1]].value) for name, text in texts.items()]
    groups = {name: name[0] for name in texts}
    for seed in range(60):
        copies = disturbed_copies(examples, 0.9, seed=seed, groups=groups, among=True)
        mine = {one.document_id: one.document.replace(texts[one.document_id], "") for one in copies if one.id.endswith(f"|{AMONG}")}
        if "a-m" in mine:
            assert mine["a-m"] == mine["a-s"] == mine["a-o"]
            assert "document a" not in mine["a-m"]
            return
    pytest.fail("none stood among others")


@pytest.mark.parametrize("text", ["", "a", "\u8bf7\u5c3d\u5feb\u56de\u590d\u3002" * 100, "word " * 500])
def test_any_text_can_stand_among_others(text):
    for seed in range(5):
        found = among_others(text, Random(seed), ["Buses run.", "The fair opens on Monday. It is free.", "\u516c\u5171\u6c7d\u8f66\u3002" * 50])
        passage = first_sentences(text, PASSAGE)
        assert passage in found
        assert len(words_of(found)) <= 6 * len(words_of(passage)) + 20


@pytest.mark.parametrize(
    ("text", "words", "first"), [("One two. Three four. Five.", 4, "One two. Three four."), ("One two three.", 1, "One two three."), ("", 3, "")]
)
def test_first_sentences(text, words, first):
    assert first_sentences(text, words) == first


def test_nothing_stands_among_others_where_answers_are_learned_or_no_document_is_ordinary(examples):
    assert not any(one.id.endswith(f"|{AMONG}") for one in disturbed_copies(examples, 0.9, seed=0, groups={}))
    some = [one for one in examples if one.label != Label.ORDINARY]
    assert not any(one.id.endswith(f"|{AMONG}") for one in disturbed_copies(some, 0.9, seed=0, groups={}, among=True))


def test_the_share_and_the_seed_decide(examples):
    assert disturbed_copies(examples, 0.0, seed=0, groups={}) == []
    few, many = (disturbed_copies(examples, share, seed=0, groups={}) for share in (0.2, 0.6))
    assert {one.id for one in few} < {one.id for one in many}
    assert disturbed_copies(examples[::-1], 0.2, seed=0, groups={}) == few[::-1]
    assert few != disturbed_copies(examples, 0.2, seed=1, groups={})


def test_instructions_without_a_document_stay_alone():
    assert disturbed_copies(general_examples([("g1", "Name three rivers."), ("g2", "Say hello.")]), 0.9, seed=0, groups={}) == []
