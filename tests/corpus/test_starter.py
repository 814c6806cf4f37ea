"""The starter corpus: matched triples that differ in intent and in nothing that surface alone gives away."""

import re
from collections import Counter, defaultdict
from importlib.resources import files
from itertools import combinations

import pytest

from docward.dataset.auditing import giveaways
from docward.dataset.surface import surface_auc
from docward.documents.cleaning import tidy
from docward.documents.duplicates import words_of
from docward.documents.reading import general_instructions, own_documents, unique_documents
from docward.types import Label, Split

MARKERS = re.compile(
    r"\[[^\]]{2,40}\]|<[a-z_ ]+>|redacted|placeholder|lorem ipsum|\bxxx|_{3,}|as an ai\b|fictional|example document|disclaimer|(?-i:\bTODO\b)|\ufffd",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def documents():
    return own_documents()


@pytest.fixture(scope="module")
def triples(documents):
    found = defaultdict(list)
    for document in documents:
        found[document.triple].append(document)
    return found


def words(document):
    """Length in words; a Chinese word is taken as 1.5 characters."""
    return len(re.findall(r"[\u4e00-\u9fff]", document.text)) / 1.5 if document.language == "zh" else len(document.text.split())


def test_there_are_two_hundred_documents_of_each_label(documents):
    counts = Counter(document.label for document in documents)
    assert all(counts[label] >= 200 for label in Label), counts


@pytest.mark.parametrize("field", ["category", "form"])
def test_there_are_twelve_categories_and_twelve_forms_under_every_label(documents, field):
    for label in Label:
        assert len({getattr(document, field) for document in documents if document.label == label}) >= 12


@pytest.mark.parametrize("language", ["de", "es", "zh"])
def test_there_are_thirty_documents_in_each_of_three_other_languages(documents, language):
    counts = Counter(document.label for document in documents if document.language == language)
    assert sum(counts.values()) >= 30
    assert set(counts) == set(Label)


def test_every_document_is_80_to_1200_words_long_and_a_tenth_are_over_800(documents):
    lengths = {document.id: words(document) for document in documents}
    assert {name: length for name, length in lengths.items() if not 80 <= length <= 1200} == {}
    assert sum(length > 800 for length in lengths.values()) >= 0.1 * len(documents)


def test_ids_and_texts_are_unique(documents):
    assert len({document.id for document in documents}) == len(documents)
    assert unique_documents(documents) == documents


def test_a_triple_is_one_document_of_each_label(triples):
    assert {name: [one.label for one in group] for name, group in triples.items() if {one.label for one in group} != set(Label) or len(group) != 3} == {}


@pytest.mark.parametrize("field", ["category", "form", "split", "language", "license", "source"])
def test_the_documents_of_a_triple_share(triples, field):
    assert {name for name, group in triples.items() if len({getattr(one, field) for one in group}) != 1 or not getattr(group[0], field)} == set()


def test_the_lengths_of_a_triple_are_within_a_fifth_of_each_other(triples):
    lengths = {name: sorted(words(one) for one in group) for name, group in triples.items()}
    assert {name: found for name, found in lengths.items() if found[-1] > 1.2 * found[0]} == {}


def test_the_documents_of_a_triple_open_with_the_same_three_words(triples):
    openers = {name: {one.text[:4] if one.language == "zh" else tuple(one.text.split()[:3]) for one in group} for name, group in triples.items()}
    assert {name: found for name, found in openers.items() if len(found) != 1} == {}


def test_about_a_third_of_the_triples_are_held_out_and_none_in_both(documents, triples):
    held_out = {document.triple for document in documents if document.split == Split.TEST}
    assert held_out.isdisjoint(document.triple for document in documents if document.split != Split.TEST)
    assert {document.split for document in documents} == {Split.TRAIN, Split.TEST}
    assert 0.25 <= len(held_out) / len(triples) <= 0.42


def test_no_document_says_what_it_is_by_a_marker(documents):
    assert {document.id: found[0] for document in documents if (found := MARKERS.search(document.text))} == {}


def test_no_common_word_stands_under_one_label_only(documents):
    assert giveaways(documents) == {}


def test_surface_hardly_tells_malicious_from_sensitive(documents):
    found = surface_auc(documents, seed=0)
    assert found["auc"] <= 0.65, found


def test_the_documents_of_a_triple_are_not_copies_of_each_other(triples):
    close = {}
    for name, group in triples.items():
        grams = [{tuple(gram) for gram in zip(*(words_of(one.text)[place:] for place in range(5)), strict=False)} for one in group]
        shared = max(len(one & other) / len(one | other) for one, other in combinations(grams, 2))
        if shared > 0.5:
            close[name] = shared
    assert close == {}


def test_the_first_rows_are_a_fair_part_of_the_whole(documents):
    """A recipe that takes the first 240 (`limit`) gets whole triples of every category, and held-out ones among them."""
    part = documents[:240]
    assert {len(group) for group in groups_of(part).values()} == {3}
    assert {one.category for one in part} == {one.category for one in documents}
    assert 0.25 <= sum(one.split == Split.TEST for one in part) / len(part) <= 0.42


def groups_of(documents):
    found = defaultdict(list)
    for document in documents:
        found[document.triple].append(document)
    return found


def test_cleaning_leaves_every_document_as_it_is(documents):
    assert [document.id for document in documents if tidy(document.text).changes] == []


def test_the_datasheet_has_the_right_counts(documents, triples):
    sheet = (files("docward.corpus") / "DATASHEET.md").read_text(encoding="utf-8")
    counts = Counter(document.category for document in documents)
    assert f"{len(documents)} documents in {len(triples)} matched triples" in sheet
    for name, count in (*counts.items(), *Counter(document.form for document in documents).items()):
        assert f"| {name} | {count // 3} |" in sheet
    for language, count in Counter(document.language for document in documents).items():
        assert f"| {language} | {count // 3} |" in sheet


def test_there_are_general_instructions_with_ids_of_their_own(documents):
    found = general_instructions()
    assert len(found) >= 200
    assert len({name for name, _ in found}) == len({words.lower() for _, words in found}) == len(found)
    assert {name for name, _ in found}.isdisjoint(document.id for document in documents)
