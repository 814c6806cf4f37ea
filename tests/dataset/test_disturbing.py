"""Disturbed copies: another surface, the same answer, nothing that tells the label, and no noise that the suites test with."""

import unicodedata
from collections import defaultdict
from dataclasses import replace
from random import Random

import pytest

from docward.dataset.building import Plan, general_examples, plan_examples
from docward.dataset.disturbing import KINDS, OPENERS, disturbed_copies
from docward.documents.reading import own_documents
from docward.evaluation.suites.texts import LOOK_ALIKES, ODD_SPACES, phrases
from docward.tasks import get_tasks
from docward.types import Split

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


def test_the_share_and_the_seed_decide(examples):
    assert disturbed_copies(examples, 0.0, seed=0, groups={}) == []
    few, many = (disturbed_copies(examples, share, seed=0, groups={}) for share in (0.2, 0.6))
    assert {one.id for one in few} < {one.id for one in many}
    assert disturbed_copies(examples[::-1], 0.2, seed=0, groups={}) == few[::-1]
    assert few != disturbed_copies(examples, 0.2, seed=1, groups={})


def test_instructions_without_a_document_stay_alone():
    assert disturbed_copies(general_examples([("g1", "Name three rivers."), ("g2", "Say hello.")]), 0.9, seed=0, groups={}) == []
