"""Disturbed copies: another surface, the same answer, nothing that tells the label, and no noise that the suites test with."""

import unicodedata
from collections import defaultdict
from dataclasses import replace
from random import Random

import pytest

from docward.dataset.building import Plan, general_examples, plan_examples
from docward.dataset.disturbing import KINDS, PASSAGE, disturbed_copies, first_sentences, surrounded
from docward.documents.reading import own_documents
from docward.evaluation.suites.texts import LOOK_ALIKES, ODD_SPACES
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
def test_the_suites_test_with_other_noise(kind):
    theirs = {*LOOK_ALIKES.values(), *ODD_SPACES} - {"\n", "  "}
    for seed in range(50):
        assert not any(sign in KINDS[kind](TEXT, Random(seed)) for sign in theirs)


def test_copies_keep_all_but_the_document(examples):
    copies = disturbed_copies(examples, 0.9, seed=1, groups={})
    by_id = {one.id: one for one in examples}
    assert 0.7 * len(examples) < len(copies) < len(examples)
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
    assert sum(copy.document != by_id[copy.id.rpartition("|")[0]].document for copy in copies) > 0.85 * len(copies)  # `case` is in small letters as it is
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
    assert all({document for document, _ in found} == members[name] for name, found in kinds.items())
    assert len({kind for found in kinds.values() for _, kind in found}) == len(KINDS)


def test_what_is_lost_altogether_is_no_copy(examples):
    short = [replace(examples[0], id=str(number), document_id=str(number), document="a") for number in range(300)]
    copies = disturbed_copies(short, 0.9, seed=0, groups={})
    assert all(one.document.strip() for one in copies)
    assert len(copies) > 200


def test_a_passage_stands_among_ordinary_documents(examples):
    copies = [one for one in disturbed_copies(examples, 0.9, seed=0, groups={}, passages=True) if one.id.endswith("|surrounded")]
    ordinary = [one.document.lower() for one in examples if one.label == Label.ORDINARY]
    by_id = {one.id: one for one in examples}
    assert {one.label for one in copies} == {*Label}
    places = []
    for copy in copies:
        passage, text = by_id[copy.id.rpartition("|")[0]].document.lower(), copy.document.lower()
        parts = text.split("\n\n")
        begins = passage.split("\n")[0].split(". ")[0]
        mine = [number for number, part in enumerate(parts) if part.startswith(begins)]
        assert mine
        assert 1.3 < len(text.split()) / min(PASSAGE, len(passage.split())) < 9
        rest = [part for number, part in enumerate(parts) if part not in passage and number not in mine]
        assert all(any(part in one for one in ordinary) for part in rest)
        places.append(mine[0] / (len(parts) - 1))
    assert min(places) == 0
    assert max(places) == 1


@pytest.mark.parametrize("text", ["", "a", "\u8bf7\u5c3d\u5feb\u56de\u590d\u3002" * 100, "word " * 500])
def test_any_text_can_be_surrounded(text):
    for seed in range(5):
        assert text in surrounded(text, Random(seed), ["Buses run.", "The fair opens on Monday. It is free."])


def test_copies_of_passages_are_short(examples):
    by_id = {one.id: len(one.document.split()) for one in examples}
    assert max(by_id.values()) > 2 * PASSAGE
    for copy in disturbed_copies(examples, 0.9, seed=0, groups={}, passages=True):
        name, _, kind = copy.id.rpartition("|")
        assert len(copy.document.split()) < (9 if kind == "surrounded" else 2) * PASSAGE
        if kind == "letter case":
            assert min(by_id[name], PASSAGE) / 3 < len(copy.document.split()) <= max(PASSAGE, 60)


@pytest.mark.parametrize(
    ("text", "words", "first"), [("One two. Three four. Five.", 4, "One two. Three four."), ("One two three.", 1, "One two three."), ("", 3, "")]
)
def test_first_sentences(text, words, first):
    assert first_sentences(text, words) == first


def test_nothing_is_surrounded_where_answers_are_learned_or_no_document_is_ordinary(examples):
    assert not any(one.id.endswith("|surrounded") for one in disturbed_copies(examples, 0.9, seed=0, groups={}))
    some = [one for one in examples if one.label != Label.ORDINARY]
    assert not any(one.id.endswith("|surrounded") for one in disturbed_copies(some, 0.9, seed=0, groups={}, passages=True))


def test_the_share_and_the_seed_decide(examples):
    assert disturbed_copies(examples, 0.0, seed=0, groups={}) == []
    few, many = (disturbed_copies(examples, share, seed=0, groups={}) for share in (0.2, 0.6))
    assert {one.id for one in few} < {one.id for one in many}
    assert disturbed_copies(examples[::-1], 0.2, seed=0, groups={}) == few[::-1]
    assert few != disturbed_copies(examples, 0.2, seed=1, groups={})


def test_instructions_without_a_document_stay_alone():
    assert disturbed_copies(general_examples([("g1", "Name three rivers."), ("g2", "Say hello.")]), 0.9, seed=0, groups={}) == []
