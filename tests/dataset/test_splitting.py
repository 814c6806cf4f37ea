"""Matched documents are never divided, held-out ones stay held out, and a seed gives one answer."""

from collections import Counter, defaultdict
from dataclasses import replace
from random import Random

import pytest

from docward.dataset.splitting import split_documents
from docward.documents.reading import own_documents
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
