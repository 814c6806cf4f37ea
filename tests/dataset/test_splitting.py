"""Matched documents are never divided, held-out ones stay held out, and a seed gives one answer."""

from collections import Counter, defaultdict
from dataclasses import replace
from random import Random

import pytest

from docward.dataset.splitting import split_documents
from docward.documents.reading import own_documents
from docward.errors import DocumentError
from docward.types import Document, Label, Split
from tiny import some_documents


def split(documents, *, validation=0.1, test=1 / 3, seed=0):
    return split_documents(documents, validation_share=validation, test_share=test, seed=seed)


def groups(documents):
    found = defaultdict(set)
    for document in documents:
        found[document.triple or document.id].add(document.split)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_triple_never_crosses_splits(seed):
    shuffled = some_documents(40)
    Random(seed).shuffle(shuffled)
    found = groups(split(shuffled, seed=seed))
    assert all(len(splits) == 1 for splits in found.values())
    assert Counter(next(iter(splits)) for splits in found.values()) == {Split.TEST: 13, Split.VALIDATION: 3, Split.TRAIN: 24}


@pytest.mark.parametrize("test", [0, 0.9])
def test_what_is_held_out_stays_held_out_and_what_is_for_training_is_never_tested_on(test):
    before = own_documents()
    after = split(before, test=test)
    assert [one.id for one in after if one.split == Split.TEST] == [one.id for one in before if one.split == Split.TEST]
    assert {one.split for one in after} == set(Split)
    assert all(len(splits) == 1 for splits in groups(after).values())


def test_one_held_out_document_holds_its_triple_out():
    first, *rest = some_documents(4)
    found = split([replace(first, split=Split.TEST), *(replace(one, split=Split.TRAIN) for one in rest)], validation=0.9)
    assert {one.split for one in found if one.triple == first.triple} == {Split.TEST}
    assert {one.split for one in found if one.triple != first.triple} == {Split.TRAIN, Split.VALIDATION} - ({Split.TRAIN} if 0.9 * 3 > 2.5 else set())


def test_a_document_s_own_validation_split_is_kept():
    found = split([replace(one, split=Split.VALIDATION) for one in some_documents(5)], validation=0, test=0.9)
    assert {one.split for one in found} == {Split.VALIDATION}


def test_a_split_is_the_same_for_the_same_seed_whatever_the_order_and_another_for_another():
    documents = some_documents(30)
    shuffled = documents[:]
    Random(7).shuffle(shuffled)
    by_id = {one.id: one.split for one in split(documents)}
    assert by_id == {one.id: one.split for one in split(shuffled)}
    assert by_id != {one.id: one.split for one in split(documents, seed=1)}


def test_nothing_but_the_split_changes():
    before = some_documents(6)
    assert [replace(one, split=None) for one in split(before)] == before


def test_documents_without_a_triple_are_split_one_by_one():
    found = split([Document(f"d{i}", f"Text {i}", Label.ORDINARY) for i in range(30)], validation=0.5)
    assert Counter(one.split for one in found) == {Split.TEST: 10, Split.VALIDATION: 10, Split.TRAIN: 10}


def test_no_share_and_no_documents_are_fine():
    assert {one.split for one in split(some_documents(5), validation=0, test=0)} == {Split.TRAIN}
    assert split([]) == []


def test_short_prompts_are_for_testing_and_take_what_is_matched_with_them_along():
    alone = [replace(one, id=f"{one.id}-q", triple="", form="prompt") for one in some_documents(6)]
    documents = some_documents(12)
    matched = replace(documents[0], id="matched-q", form="prompt")
    found = {one.id: one.split for one in split([*documents, *alone, matched], test=0, validation=0.3)}
    assert {found[one.id] for one in alone} == {Split.TEST}
    assert {found[one.id] for one in documents if one.triple == matched.triple} == {Split.TEST}
    assert {found[one.id] for one in documents if one.triple != matched.triple} == {Split.TRAIN, Split.VALIDATION}
    without = {one.id: one.split for one in split(documents, test=1 / 3)}
    assert {one.id: one.split for one in split([*documents, *alone], test=1 / 3) if not one.is_prompt} == without, "no document moves for them"


@pytest.mark.parametrize(("place", "more"), [(Split.TRAIN, 0), (Split.VALIDATION, 2)])
def test_a_short_prompt_that_is_to_be_trained_on_is_refused(place, more):
    wrong = [replace(one, id=f"q{number}", form="prompt", split=place) for number, one in enumerate(some_documents(1)[: more + 1])]
    fine = [replace(one, id=f"t{number}", form="prompt", split=Split.TEST) for number, one in enumerate(some_documents(1))]
    said = rf"q0 is a short prompt \(`form: prompt`\) with `split: {place}`{f', as are {more} more' if more else ''}\. Tasks are trained on documents"
    with pytest.raises(DocumentError, match=said):
        split([*fine, *wrong])
    assert {one.split for one in split(fine)} == {Split.TEST}
