"""The plain corpus: documents as they stand on the web and come from chat models; three of a kind and about a length, but nothing mirrored."""

from collections import Counter, defaultdict
from importlib.resources import files
from itertools import combinations

import pytest

from docward.dataset.auditing import giveaways
from docward.dataset.surface import surface_auc
from docward.documents.cleaning import tidy
from docward.documents.duplicates import words_of
from docward.documents.reading import own_documents, unique_documents
from docward.types import Label, Split


@pytest.fixture(scope="module")
def documents():
    return own_documents("plain")


@pytest.fixture(scope="module")
def triples(documents):
    found = defaultdict(list)
    for document in documents:
        found[document.triple].append(document)
    return found


def test_there_are_eight_hundred_documents_of_each_label_in_three_splits(documents):
    counts = Counter((document.label, document.split) for document in documents)
    for label in Label:
        assert sum(count for (one, _), count in counts.items() if one == label) >= 800
        assert counts[label, Split.TEST] >= 200
        assert counts[label, Split.VALIDATION] >= 60


def test_a_triple_is_one_document_of_each_label_in_one_split_and_news_stand_alone(triples):
    news = [group for group in triples.values() if group[0].category == "news"]
    assert [[one.label for one in group] for group in news] == [[Label.ORDINARY]] * 60
    for name, group in triples.items():
        if group in news:
            continue
        assert sorted(one.label for one in group) == sorted(Label), name
        assert len({one.split for one in group}) == 1, name


def test_ids_texts_and_triples_are_this_corpus_alone(documents):
    assert unique_documents(documents) == documents
    starter = own_documents()
    assert {one.triple for one in documents}.isdisjoint(one.triple for one in starter)
    assert unique_documents([*starter, *documents]) == [*starter, *documents]


def test_every_document_is_30_to_900_words_long(documents):
    assert {one.id: count for one in documents if not 30 <= (count := len(one.text.split())) <= 900} == {}


def test_labels_are_about_as_long_as_each_other(documents):
    means = {label: sum(len(one.text.split()) for one in documents if one.label == label) / sum(one.label == label for one in documents) for label in Label}
    assert max(means.values()) < 1.1 * min(means.values()), means


def test_surface_does_not_tell_malicious_from_sensitive_beyond_the_bound_of_a_build(documents):
    for part in (documents[:690], documents[900:1800]):
        found = surface_auc([one for one in part if one.split == Split.TRAIN], seed=0)
        assert found["auc"] <= 0.75, found


def test_in_found_text_every_form_is_there_and_surface_tells_less_than_the_datasheet_says(documents):
    found = found_text(documents)
    assert len(found) == 3 * 472
    assert {len(group) for group in _groups(found).values()} == {3}
    assert {name for name, group in _groups(found).items() if len({one.form for one in group}) > 1} == set()
    forms = Counter(one.form for one in found if one.label == Label.MALICIOUS)
    assert len(forms) == 13
    assert min(forms.values()) >= 18
    assert surface_auc(found, seed=0)["auc"] <= 0.785


def test_the_first_three_thousand_rows_hold_a_fair_part_of_found_text(documents):
    share = len(found_text(documents[:3000])) / 3000
    assert share == pytest.approx(len(found_text(documents)) / len(documents), abs=0.01)


def found_text(documents):
    return [one for one in documents if one.triple and int(one.triple.rsplit("-", 1)[1]) >= 6001]


def test_no_common_word_stands_under_one_label_only(documents):
    assert giveaways(documents) == {}


def test_no_document_of_a_triple_is_a_copy_of_another(triples):
    for name, group in triples.items():
        grams = [{tuple(gram) for gram in zip(*(words_of(one.text)[place:] for place in range(5)), strict=False)} for one in group]
        assert max((len(one & other) / len(one | other) for one, other in combinations(grams, 2)), default=0) < 0.5, name


def test_cleaning_leaves_every_document_as_it_is(documents):
    assert [document.id for document in documents if tidy(document.text).changes] == []


def test_the_first_rows_are_a_fair_part_of_the_whole(documents):
    part = documents[:302]
    assert {len(group) for name, group in _groups(part).items() if not name.startswith("news")} == {3}
    assert sum(one.category == "news" for one in part) in (2, 3)
    assert len({one.category for one in part}) >= 15
    assert 0.15 <= sum(one.split == Split.TEST for one in documents[:900]) / 900 <= 0.35


def _groups(documents):
    found = defaultdict(list)
    for document in documents:
        found[document.triple].append(document)
    return found


def test_the_datasheet_has_the_right_counts(documents, triples):
    sheet = (files("docward.corpus") / "DATASHEET.md").read_text(encoding="utf-8")
    assert f"{len(documents)} documents in {sum(len(group) == 3 for group in triples.values())} triples" in sheet
