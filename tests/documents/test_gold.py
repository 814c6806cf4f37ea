"""Gold: read from rows of any kind of file, and a mistake in it is named by its place."""

from __future__ import annotations

import csv
import json

import pytest

from docward.documents.reading import read_documents, to_document
from docward.documents.sources import source_rows
from docward.errors import DocumentError
from docward.recipe import Source
from docward.records import write_rows

TEXT = "A bakery opened on Monday. People came."
GOLD = {"summarize": "A bakery opens.", "sentiment": "Positive"}


def row(**more) -> dict:
    return {"text": TEXT, "label": "ordinary"} | more


def jsonl(path, rows):
    write_rows(path, rows)


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


COLUMNS = {f"gold.{task}": text for task, text in GOLD.items()}


@pytest.mark.parametrize(
    ("name", "write", "some", "none"),
    [
        ("mine.jsonl", jsonl, {"gold": GOLD}, {}),
        ("mine.jsonl", jsonl, {"gold": GOLD}, {"gold": {}}),
        ("mine.jsonl", jsonl, {"gold": GOLD}, {"gold": {"summarize": None}}),
        ("mine.jsonl", jsonl, COLUMNS, {"gold": None}),
        ("mine.csv", table, COLUMNS, dict.fromkeys(COLUMNS, "")),
        ("mine.parquet", parquet, {"gold": GOLD}, {"gold": dict.fromkeys(GOLD)}),
        ("mine.parquet", parquet, COLUMNS, dict.fromkeys(COLUMNS)),
    ],
)
def test_gold_is_read_from_a_file_and_what_is_not_there_is_none(tmp_path, name, write, some, none):
    write(tmp_path / name, [row(**some), row(text="Another one.", **none)])
    assert [one.gold for one in read_documents(tmp_path / name)] == [GOLD, {}]
    of_a_recipe = source_rows(Source(path=str(tmp_path / name)))
    assert [to_document(one.values, label=None, where=one.where).gold for one in of_a_recipe] == [GOLD, {}]


def test_a_recipe_names_the_columns_of_gold(tmp_path):
    jsonl(tmp_path / "mine.jsonl", [{"body": TEXT, "abstract": "A bakery opens.", "label": "ordinary"}])
    source = Source(path=str(tmp_path / "mine.jsonl"), columns={"text": "body", "gold.summarize": "abstract"})
    (found,) = source_rows(source)
    assert to_document(found.values, label=None, where=found.where).gold == {"summarize": "A bakery opens."}
    with pytest.raises(ValueError, match=r"columns names golden, which a document does not have.*gold\.TASK"):
        Source(path="mine.jsonl", columns={"golden": "abstract"})


def test_a_document_with_gold_is_the_same_after_a_trip_through_a_file(tmp_path):
    jsonl(tmp_path / "mine.jsonl", [row(gold=GOLD)])
    documents = read_documents(tmp_path / "mine.jsonl")
    write_rows(tmp_path / "again.jsonl", documents)
    assert read_documents(tmp_path / "again.jsonl") == documents


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"gold": "A bakery opens."}, r"`gold` is 'A bakery opens\.', wanted texts by task.*In a table, give each task a column of its own: gold\.summarize"),
        ({"gold": ["A bakery opens."]}, r"`gold` is a list, wanted texts by task"),
        ({"gold": 1}, r"`gold` is 1, wanted texts by task"),
        ({"gold": {"sumarize": "x"}}, r"gold for 'sumarize', which is no task \(did you mean 'summarize'\?\)\. Known tasks: summarize, translate"),
        ({"gold.xyzzy": "x"}, r"gold for 'xyzzy', which is no task\. Known tasks"),
        ({"gold": {"summarize": 5}}, r"gold for summarize is 5, wanted a text"),
        ({"gold": {"summarize": ["x"]}}, r"gold for summarize is a list, wanted a text"),
        ({"gold": {"summarize": " \n"}}, r"gold for summarize is empty"),
        ({"gold": {"sentiment": "4 stars"}}, r"gold for sentiment is '4 stars'\. Allowed: positive, negative, neutral"),
        ({"gold": {"case": TEXT}}, r"gold for case is the document's own text\. Leave it out"),
        ({"gold": {"summarize": "x"}, "gold.summarize": "y"}, r"gold for summarize stands in `gold` and in the column gold\.summarize\. Keep one"),
    ],
)
def test_gold_that_cannot_be_used_is_named_with_its_line(tmp_path, wrong, problem):
    (tmp_path / "mine.jsonl").write_text(json.dumps(row()) + "\n" + json.dumps(row(text="Another.") | wrong) + "\n", encoding="utf-8")
    with pytest.raises(DocumentError, match=rf"mine\.jsonl:2: {problem}"):
        read_documents(tmp_path / "mine.jsonl")
