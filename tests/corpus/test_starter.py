"""The starter corpus: matched triples that differ in intent and in nothing that surface alone gives away."""

import re
from collections import Counter, defaultdict

import pytest

from docward.documents.reading import general_instructions, starter_documents, unique_documents
from docward.types import Label, Split

# Words that may stand in over 10% of one label's documents and in none of the others. Neither makes a document harmful; no malicious one has such a word.
GIVEAWAYS: dict[Label, set[str]] = {Label.MALICIOUS: set(), Label.SENSITIVE: {"court"}, Label.ORDINARY: {"music"}}
MARKERS = re.compile(
    r"\[[^\]]{2,40}\]|<[a-z_ ]+>|redacted|placeholder|lorem ipsum|\bxxx|_{3,}|as an ai\b|fictional|example document|disclaimer|todo|\ufffd", re.IGNORECASE
)


@pytest.fixture(scope="module")
def documents():
    return starter_documents()


@pytest.fixture(scope="module")
def triples(documents):
    found = defaultdict(list)
    for document in documents:
        found[document.triple].append(document)
    return found


def test_there_are_enough_documents_of_each_label(documents):
    counts = Counter(document.label for document in documents)
    assert all(counts[label] >= 40 for label in Label), counts


def test_every_document_is_80_to_600_words_long(documents):
    lengths = {document.id: len(document.text.split()) for document in documents}
    assert {name: length for name, length in lengths.items() if not 80 <= length <= 600} == {}


def test_ids_and_texts_are_unique(documents):
    assert len({document.id for document in documents}) == len(documents)
    assert unique_documents(documents) == documents


def test_a_triple_is_one_document_of_each_label(triples):
    assert {name: [one.label for one in group] for name, group in triples.items() if {one.label for one in group} != set(Label) or len(group) != 3} == {}


@pytest.mark.parametrize("field", ["category", "form", "split", "language", "license", "source"])
def test_the_documents_of_a_triple_share(triples, field):
    assert {name for name, group in triples.items() if len({getattr(one, field) for one in group}) != 1 or not getattr(group[0], field)} == set()


def test_the_lengths_of_a_triple_are_within_a_fifth_of_each_other(triples):
    lengths = {name: sorted(len(one.text.split()) for one in group) for name, group in triples.items()}
    assert {name: found for name, found in lengths.items() if found[-1] > 1.2 * found[0]} == {}


def test_the_documents_of_a_triple_open_with_the_same_three_words(triples):
    openers = {name: {tuple(one.text.split()[:3]) for one in group} for name, group in triples.items()}
    assert {name: found for name, found in openers.items() if len(found) != 1} == {}


def test_about_a_third_of_the_triples_are_held_out_and_none_in_both(documents, triples):
    held_out = {document.triple for document in documents if document.split == Split.TEST}
    assert held_out.isdisjoint(document.triple for document in documents if document.split != Split.TEST)
    assert {document.split for document in documents} == {Split.TRAIN, Split.TEST}
    assert 0.25 <= len(held_out) / len(triples) <= 0.42


def test_no_document_says_what_it_is_by_a_marker(documents):
    assert {document.id: found[0] for document in documents if (found := MARKERS.search(document.text))} == {}


@pytest.mark.parametrize("label", Label)
def test_no_common_word_stands_under_one_label_only(documents, label):
    holding: dict[str, Counter[Label]] = defaultdict(Counter)
    for document in documents:
        for word in set(re.findall(r"[^\W\d_]+", document.text.lower())):
            holding[word][document.label] += 1
    many = sum(document.label == label for document in documents)
    telling = {word: counts[label] for word, counts in holding.items() if set(counts) == {label} and counts[label] > 0.1 * many}
    assert set(telling) - GIVEAWAYS[label] == set(), telling


def test_there_are_general_instructions_with_ids_of_their_own(documents):
    found = general_instructions()
    assert len(found) >= 40
    assert len({name for name, _ in found}) == len({words.lower() for _, words in found}) == len(found)
    assert {name for name, _ in found}.isdisjoint(document.id for document in documents)
