"""Sources: what a recipe says of a file or data set decides what its rows become, and a mistake in either is named."""

import csv
import json
import os
from pathlib import Path

import pytest
import yaml

from docward.documents.reading import own_documents
from docward.documents.sources import hub_rows, source_hash, source_rows
from docward.errors import DocumentError
from docward.recipe import Source
from docward.records import write_rows


@pytest.fixture
def table(tmp_path):
    """Write rows to a file of any kind and give its path."""

    def write(*rows, name="mine.jsonl"):
        path = tmp_path / name
        if name.endswith(".csv"):
            with path.open("w", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        else:
            write_rows(path, rows)
        return str(path)

    return write


def read(**said):
    return [row.values for row in source_rows(Source.model_validate(said))]


# ------------------------------------------------------------------------------------------------------------ columns


def test_fields_are_taken_by_name_and_other_columns_are_left_out(table):
    path = table({"text": "x", "label": "ordinary", "category": "food", "pages": 3, "cluster": "c"})
    assert read(path=path) == [{"text": "x", "label": "ordinary", "category": "food", "source": "mine.jsonl"}]


def test_columns_say_where_a_field_is_whatever_else_has_its_name(table):
    path = table({"text": "a title", "body": "x", "kind": "ordinary", "label": "spam", "nr": 7})
    columns = {"text": "body", "label": "kind", "id": "nr", "category": "label"}
    assert read(path=path, columns=columns) == [{"text": "x", "label": "ordinary", "id": "7", "category": "spam", "source": "mine.jsonl"}]


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.parquet"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(table, name):
    path = table({"text": "x", "label": "ordinary"}, name=name)
    with pytest.raises(DocumentError, match=rf"{name}.*: there is no column 'body' for `text`\. There are: label, text\."):
        read(path=path, columns={"text": "body"})


def test_a_file_without_texts_is_told_how_to_name_their_column(table):
    path = table({"body": "x", "label": "ordinary"})
    with pytest.raises(
        DocumentError, match=r"mine\.jsonl:1: a document needs a `text` field .*\(fields body, label\)\. Name its column: columns: \{text: \.\.\.\}"
    ):
        read(path=path)


def test_a_column_that_one_row_lacks_is_named_with_its_line(table):
    path = table({"body": "x", "label": "ordinary"}, {"text": "x", "label": "ordinary"})
    with pytest.raises(DocumentError, match=r"mine\.jsonl:2: there is no column 'body'"):
        read(path=path, columns={"text": "body"})


@pytest.mark.parametrize("value", [0, 7, 2**70, 1.5, True, "0", "a b"])
def test_an_id_of_any_kind_is_kept_as_words(table, value):
    assert read(path=table({"id": value, "text": "x", "label": "ordinary"}))[0]["id"] == str(value)


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_field_says_nothing(table, nothing):
    fields = ("id", "label", "category", "source", "license", "language", "form", "triple", "split")
    path = table({"text": "x"} | dict.fromkeys(fields, nothing))
    assert read(path=path, label="ordinary", license="MIT", language="de") == [
        {"text": "x", "label": "ordinary", "source": "mine.jsonl", "license": "MIT", "language": "de"}
    ]


def test_an_empty_text_is_still_a_text(table):
    assert read(path=table({"text": "", "label": "ordinary"}, name="mine.csv"))[0]["text"] == ""


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("value", "key"),
    [("spam", "spam"), (True, True), (False, False), (1, 1), (0, 0), (-1, -1), (1.0, 1), (0.5, 0.5), (None, None), ("", ""), ("True", True), ("1", 1)],
)
def test_labels_of_any_kind_are_named_as_yaml_and_json_write_them(table, value, key):
    path = table({"text": "x", "label": value})
    assert read(path=path, labels={key: "malicious", "other": "ordinary"})[0]["label"] == "malicious"


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_numbers_and_booleans_are_labels_in_tables_too(table, name):
    path = table({"text": "x", "label": 1, "bad": True}, {"text": "y", "label": 0, "bad": False}, name=name)
    assert [row["label"] for row in read(path=path, labels={1: "malicious", 0: "sensitive"})] == ["malicious", "sensitive"]
    assert [row["label"] for row in read(path=path, columns={"label": "bad"}, labels={True: "malicious", False: "sensitive"})] == ["malicious", "sensitive"]


def test_a_label_that_labels_lacks_is_named_with_those_it_has(table):
    path = table({"text": "x", "label": "ham"}, {"text": "x", "label": "eggs"})
    with pytest.raises(DocumentError, match=r"mine\.jsonl:2: the label column says 'eggs', which `labels` does not have\. It has: ham, spam\."):
        read(path=path, labels={"ham": "ordinary", "spam": "malicious"})


def test_a_label_column_that_holds_the_text_makes_no_endless_message(table):
    path = table({"text": "x", "body": "bread " * 10_000})
    with pytest.raises(DocumentError) as error:
        read(path=path, columns={"label": "body"}, labels={"ham": "ordinary"})
    assert len(str(error.value)) < 500


def test_one_label_for_a_whole_file_fills_in(table):
    path = table({"text": "x"}, {"text": "y", "label": None}, {"text": "z", "label": "ordinary"}, {"text": "w", "label": 5})
    assert [row["label"] for row in read(path=path, label="ordinary")] == ["ordinary"] * 4


# ------------------------------------------------------------------------------------------------------------ what a source says of all its rows


@pytest.mark.parametrize("limit", [1, 3, 99])
def test_a_limit_takes_the_first_rows_and_reads_no_further(table, limit):
    path = table(*({"text": str(place), "label": "ordinary"} for place in range(5)))
    assert [row["text"] for row in read(path=path, limit=limit)] == [str(place) for place in range(min(limit, 5))]
    with Path(path).open("a") as out:
        out.write("{broken")
    if limit < 5:
        assert len(read(path=path, limit=limit)) == limit


def test_licence_and_language_are_for_rows_that_do_not_say_their_own(table):
    path = table({"text": "x"}, {"text": "y", "license": "CC0-1.0", "language": "zh", "source": "a book"})
    one, other = read(path=path, license="MIT", language="de")
    assert (one["license"], one["language"], one["source"]) == ("MIT", "de", "mine.jsonl")
    assert (other["license"], other["language"], other["source"]) == ("CC0-1.0", "zh", "a book")


def test_a_source_is_called_by_its_file_folder_or_preset(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("A letter.")
    assert [row["source"] for row in read(path=str(tmp_path / "letters"))] == ["letters"]
    assert [row["source"] for row in read(path=str(tmp_path / "letters" / "a.txt"))] == ["a.txt"]


def test_the_starter_s_rows_are_its_documents():
    rows = read(preset="starter")
    assert [(row["id"], row["text"], row["label"]) for row in rows] == [(one.id, one.text, one.label) for one in own_documents()]


def test_a_csv_of_another_language_and_encoding_is_read_as_it_is_said(tmp_path):
    (tmp_path / "mine.csv").write_bytes('Texte;Genre\r\n"Crème;\nbrûlée";permis\r\n'.encode("cp1252"))
    said = {"encoding": "cp1252", "delimiter": ";", "columns": {"text": "Texte", "label": "Genre"}, "labels": {"permis": "ordinary"}, "language": "fr"}
    assert read(path=str(tmp_path / "mine.csv"), **said) == [{"text": "Crème;\nbrûlée", "label": "ordinary", "language": "fr", "source": "mine.csv"}]


# ------------------------------------------------------------------------------------------------------------ the same or not


def test_a_source_s_hash_changes_with_any_text_or_name_and_nothing_else(tmp_path):
    folder = tmp_path / "texts"
    (folder / "in").mkdir(parents=True)
    (folder / "a.txt").write_text("One.")
    (folder / "in" / "b.md").write_text("Two.")
    source = Source(path=str(folder))
    before = source_hash(source)
    (folder / "ignored.log").write_text("x")
    os.utime(folder / "a.txt", (0, 0))
    assert source_hash(source) == before
    (folder / "a.txt").write_text("one.")
    changed = source_hash(source)
    (folder / "a.txt").write_text("One.")
    (folder / "a.txt").rename(folder / "c.txt")
    assert len({before, changed, source_hash(source)}) == 3
    assert source_hash(Source(path=str(folder / "c.txt"))) == source_hash(Source(path=str(folder / "c.txt"), limit=3))


@pytest.mark.parametrize("path", ["none.jsonl", "gone/"])
def test_a_source_that_is_not_there_has_no_hash(tmp_path, path):
    with pytest.raises(DocumentError, match="There is no document file or folder"):
        source_hash(Source(path=str(tmp_path / path)))


# ------------------------------------------------------------------------------------------------------------ the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the form of a Hub data set; its cache is the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"body": f"Text {place}.", "label": place % 2} for place in range(4)])
    write_rows(folder / "test.jsonl", [{"body": "A test.", "label": 0}])
    return str(folder)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_in_the_hub_s_form_is_read_by_split(hub, streaming):
    said = {"hub": hub, "streaming": streaming, "columns": {"text": "body"}, "labels": {0: "ordinary", 1: "malicious"}}
    rows = read(**said, limit=3)
    assert [(row["text"], row["label"], row["source"]) for row in rows] == [
        ("Text 0.", "ordinary", hub),
        ("Text 1.", "malicious", hub),
        ("Text 2.", "ordinary", hub),
    ]
    assert [row["text"] for row in read(**said, split="test")] == ["A test."]


def test_a_split_that_is_not_there_says_what_to_check(hub):
    with pytest.raises(DocumentError, match=r"The data set .* \(split 'dev'\) cannot be read: .*Check `hub:`, `name:` and `split:`") as error:
        read(hub=hub, split="dev", streaming=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [ConnectionError("no network"), OSError(), ValueError("first line\nsecond " + "x" * 1000), KeyError("a")])
def test_whatever_the_hub_fails_with_is_one_short_message(monkeypatch, error):
    import datasets

    def failing(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(DocumentError, match=r"The data set 'owner/none' \(split 'train'\) cannot be read: .*give it with `path:`") as found:
        list(hub_rows("owner/none", name=None, split="train", revision=None, streaming=True))
    assert len(str(found.value)) < 700
    assert "second" not in str(found.value)


@pytest.mark.parametrize("value", [True, False, 1, 1.5, "yes", "1.5", None])
def test_what_yaml_reads_as_a_key_is_what_json_reads_as_a_label(table, value):
    labels = yaml.safe_load(f"{json.dumps(value)}: malicious")
    assert read(path=table({"text": "x", "label": value}), labels=labels)[0]["label"] == "malicious"
