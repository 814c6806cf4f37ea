"""Texts in other languages: ordinary ones alone, so that no language is refused for itself."""

import unicodedata
from collections import Counter
from importlib.resources import files

import pytest

from docward.documents.cleaning import tidy
from docward.documents.reading import own_documents, unique_documents
from docward.types import Label, Split

FOR_TESTING_ALONE = {"ca", "fa", "ko", "sv", "ta", "uk"}
SCRIPTS = {"ar": "ARABIC", "bg": "CYRILLIC", "bn": "BENGALI", "el": "GREEK", "fa": "ARABIC", "he": "HEBREW", "hi": "DEVANAGARI"}
SCRIPTS |= {"ja": ("CJK", "HIRAGANA", "KATAKANA"), "ko": "HANGUL", "ru": "CYRILLIC", "ta": "TAMIL", "th": "THAI", "uk": "CYRILLIC", "zh": "CJK"}


@pytest.fixture(scope="module")
def documents():
    return own_documents("languages")


def test_all_are_ordinary_and_every_language_has_its_share_of_each_split(documents):
    assert {one.label for one in documents} == {Label.ORDINARY}
    counts = Counter((one.language, one.split) for one in documents)
    languages = {one.language for one in documents}
    assert len(languages) == 32
    assert "en" not in languages
    for language in languages:
        train, test = counts[language, Split.TRAIN], counts[language, Split.TEST]
        assert (train, test) == ((0, 2) if language in FOR_TESTING_ALONE else (3, 1)), language


def test_texts_are_in_the_script_of_their_language(documents):
    wrong = []
    for one in documents:
        letters = [unicodedata.name(letter, "") for letter in one.text if letter.isalpha()]
        wanted = SCRIPTS.get(one.language, "LATIN")
        if sum(name.startswith(wanted) for name in letters) < 0.95 * len(letters):
            wrong.append(one.id)
    assert wrong == []


def test_ids_and_texts_are_this_corpus_alone_and_need_no_cleaning(documents):
    others = [*own_documents(), *own_documents("plain")]
    assert unique_documents([*others, *documents]) == [*others, *documents]
    assert [one.id for one in documents if tidy(one.text).changes] == []


def test_the_datasheet_has_the_right_counts(documents):
    sheet = (files("docward.corpus") / "DATASHEET.md").read_text(encoding="utf-8")
    splits = Counter(one.split for one in documents)
    assert f"{len(documents)} ordinary texts in {len({one.language for one in documents})} languages" in sheet
    assert f"{splits[Split.TRAIN]} train, {splits[Split.TEST]} test." in sheet
