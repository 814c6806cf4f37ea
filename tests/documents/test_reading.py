"""Documents from files: cleaned without losing words, each id and text once, mistakes named by file and line."""

import json

import pytest

from docward.documents.reading import by_label, clean, general_instructions, read_documents, unique_documents
from docward.errors import DocumentError
from docward.records import write_rows
from docward.types import Document, Label, Split


@pytest.fixture
def written(tmp_path):
    def write(*rows: object):
        path = tmp_path / "documents.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_a_row_needs_only_text_and_label_and_keeps_what_else_it_says(written):
    rows = [
        {"text": "Bread.", "label": "ordinary"},
        {"id": "b", "text": "More bread.", "label": "sensitive", "category": "food", "triple": "t", "split": "test", "form": "memo", "language": "de"},
    ]
    short, full = read_documents(written(*rows))
    assert (short.text, short.label, short.language, short.split) == ("Bread.", Label.ORDINARY, "en", None)
    assert full == Document("b", "More bread.", Label.SENSITIVE, category="food", triple="t", split=Split.TEST, form="memo", language="de")


def test_a_document_is_the_same_after_a_trip_through_a_file(tmp_path):
    documents = [Document("a", "Brot — «no»\n\n不行", Label.MALICIOUS, "fraud", "me", "MIT", "de", "memo", "t", Split.TRAIN)]
    write_rows(tmp_path / "d.jsonl", documents)
    assert read_documents(tmp_path / "d.jsonl") == documents


def test_an_id_is_the_same_on_every_reading_and_of_the_text_alone(written):
    (one,) = read_documents(written({"text": "Bread.", "label": "ordinary"}))
    (two,) = read_documents(written({"text": "  Bread.\r\n", "label": "malicious"}))
    (three,) = read_documents(written({"text": "bread.", "label": "ordinary"}))
    (number,) = read_documents(written({"id": 7, "text": "bread.", "label": "ordinary"}))
    assert one.id == two.id != three.id
    assert number.id == "7"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"label": "ordinary", "body": "x"}, r"needs a `text` field with a string \(fields body, label\)"),
        ({}, r"needs a `text` field with a string \(fields none\)"),
        ({"text": 5, "label": "ordinary"}, r"\(`text` is a int\)"),
        ({"text": None, "label": "ordinary"}, r"\(`text` is a NoneType\)"),
        ({"text": " \u0000\n", "label": "ordinary"}, "the document's `text` is empty"),
        ({"text": "x"}, "no `label`. Allowed: malicious, sensitive, ordinary"),
        ({"text": "x", "label": "evil"}, "unknown label 'evil'. Allowed: malicious, sensitive, ordinary"),
        ({"text": "x", "label": ["ordinary"]}, "unknown label"),
        ({"text": "x", "label": "Ordinary"}, "unknown label 'Ordinary'"),
        ({"text": "x", "label": "ordinary", "split": "dev"}, r"`split`: .*'train', 'validation' or 'test' \(found 'dev'\)"),
        ({"text": "x", "label": "ordinary", "category": 3}, r"`category`: .*\(found 3\)"),
        ('{"text": "x"', "not valid JSON"),
        ('["x"]', "found a JSON list"),
    ],
)
def test_a_row_that_is_no_document_is_named_by_file_and_line(written, row, problem):
    path = written({"text": "Bread.", "label": "ordinary"}, "", row)
    with pytest.raises(DocumentError, match=rf"documents\.jsonl:3: .*{problem}"):
        read_documents(path)


def test_a_label_for_the_whole_file_fills_in_but_never_overrules(written):
    (found,) = read_documents(written({"text": "x"}), label=Label.MALICIOUS)
    assert found.label == Label.MALICIOUS
    path = written({"text": "x", "label": "malicious"}, {"text": "y", "label": "ordinary"})
    with pytest.raises(DocumentError, match=r":2: the row says 'ordinary', but the file was given as 'malicious' documents"):
        read_documents(path, label=Label.MALICIOUS)


def test_cleaning_keeps_words_and_drops_what_cannot_be_seen():
    assert clean(" a\r\nb\rc\td\x00\x1b[31m\x7f\ue000 ") == "a\nb\nc\td[31m"
    assert clean("cafe\u0301") == "café"
    assert clean("«no» 不行 🍞 a  b") == "«no» 不行 🍞 a  b"


def test_half_a_surrogate_pair_never_stops_a_run(written, tmp_path):
    (found,) = read_documents(written('{"text": "Bread \\ud800 and butter.", "label": "ordinary"}'))
    assert found.text == "Bread ? and butter."
    write_rows(tmp_path / "again.jsonl", [found])


def test_one_text_is_kept_once_whatever_its_case_and_spaces():
    first, twin, other = (Document(name, text, Label.ORDINARY) for name, text in [("a", "The bread."), ("b", "the\n BREAD."), ("c", "The loaf.")])
    assert unique_documents([first, twin, other]) == [first, other]


def test_one_text_under_two_labels_is_an_error_that_names_both():
    rows = [Document("a", "The bread.", Label.ORDINARY), Document("b", "The  bread.", Label.MALICIOUS)]
    with pytest.raises(DocumentError, match=r"'a' \(ordinary\) and 'b' \(malicious\) are the same text under two labels"):
        unique_documents(rows)


def test_two_texts_never_share_an_id():
    rows = [Document("a", text, Label.ORDINARY) for text in ("The bread.", "The loaf.", "The crust.")]
    kept = unique_documents(rows)
    assert [document.text for document in kept] == [document.text for document in rows]
    assert len({document.id for document in kept}) == 3
    assert kept[0].id == "a"
    assert unique_documents(rows) == kept


def test_documents_of_one_label_stay_in_order():
    rows = [Document("a", "x", Label.ORDINARY), Document("b", "y", Label.MALICIOUS), Document("c", "z", Label.ORDINARY)]
    assert [document.id for document in by_label(rows, Label.ORDINARY)] == ["a", "c"]


def test_general_instructions_have_an_id_and_words():
    assert all(name and words.strip() for name, words in general_instructions())
