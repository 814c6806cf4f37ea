"""A dataset folder is what it says: it opens with `datasets.load_dataset`, reads back equal, and its card tells what is in it."""

import json
import os

import pytest
import yaml

from docward.dataset import surface
from docward.dataset.auditing import ExampleCounts, audit
from docward.dataset.building import Plan, general_examples, plan_examples
from docward.dataset.saving import read_split, save_dataset
from docward.dataset.splitting import split_documents
from docward.errors import RunError, StorageError
from docward.records import text_hash
from docward.tasks import get_tasks
from docward.types import Example, Split
from tiny import some_documents, with_answers

NO_TEST = {"validation_share": 0.2, "test_share": 0}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The interval's 400 draws take a second."""
    monkeypatch.setattr(surface, "DRAWS", 10)


def saved(folder, *, groups=12, shares=None):
    documents = split_documents(some_documents(groups), **(shares or {"validation_share": 0.25, "test_share": 0.25}), seed=0)
    planned = plan_examples(documents, Plan(tuple(get_tasks(["summarize", "case"])))) + general_examples([("g", "Name a tree.")])
    examples = with_answers(planned, {one.id: f"Answer to {one.id}, so: “ja”\n不行." for one in planned})
    counts = ExampleCounts()

    def batches():
        for start in range(0, len(examples), 10):
            counts.add(examples[start : start + 10])
            yield examples[start : start + 10]

    def finish(measured):
        found = {"surface": {"auc": None}, "warnings": ["Mind the gap."], "measured": [one.id for one in measured]}
        return audit(documents, [len(one.text.split()) for one in documents], counts, documents, **found)

    save_dataset(folder, batches(), finish, measured=7)
    return examples


def test_the_measured_sample_is_of_training_examples_spread_and_stable(tmp_path):
    examples = saved(tmp_path / "dataset")
    chosen = json.loads((tmp_path / "dataset" / "audit.json").read_text())["measured"]
    order = [one.id for one in examples if one.split == Split.TRAIN]
    assert len(set(chosen)) == 7
    assert chosen == [name for name in order if name in chosen]
    lowest = sorted(order, key=text_hash)[:7]
    assert set(chosen) == set(lowest)


def test_every_split_reads_back_equal(tmp_path):
    examples = saved(tmp_path / "dataset")
    for split in Split:
        assert read_split(tmp_path / "dataset", split) == [one for one in examples if one.split == split]
        assert read_split(tmp_path / "dataset", split)


@pytest.mark.parametrize("shares", [None, NO_TEST])
def test_it_opens_with_load_dataset_with_the_right_splits_and_rows(tmp_path, monkeypatch, shares):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    examples = saved(tmp_path / "dataset", shares=shares)
    found = load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in found.items()} == {
        split.value: count for split in Split if (count := sum(one.split == split for one in examples))
    }
    for name, rows in found.items():
        wanted = [one for one in examples if one.split == name]
        assert rows.column_names == list(Example.__slots__)
        assert [(row["id"], row["document"], row["response"], row["want"], row["wording"]) for row in rows] == [
            (one.id, one.document, one.response, one.want.value, one.wording) for one in wanted
        ]


def test_the_card_has_a_header_that_the_hub_reads_and_the_right_counts(tmp_path):
    examples = saved(tmp_path / "dataset")
    card = (tmp_path / "dataset" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    files = header["configs"][0]["data_files"]
    assert {(one["split"], one["path"]) for one in files} == {(split.value, f"{split.value}.parquet") for split in Split}
    assert (header["license"], header["language"]) == ("other", ["en"])
    refuse, comply = (sum(one.split == Split.TRAIN and one.want == want for one in examples) for want in ("refuse", "comply"))
    assert f"| train | 7 / 7 / 7 | {refuse} | {comply} |" in card
    assert "{" not in card
    assert "AUC" in card
    assert "- **Note.** Mind the gap.\n" in card


def test_a_split_that_is_empty_has_no_file_and_reads_as_none(tmp_path):
    saved(tmp_path / "dataset", shares=NO_TEST)
    assert sorted(file.name for file in (tmp_path / "dataset").iterdir()) == ["README.md", "audit.json", "train.parquet", "validation.parquet"]
    assert read_split(tmp_path / "dataset", Split.TEST) == []
    assert "path: test.parquet" not in (tmp_path / "dataset" / "README.md").read_text()


def test_a_folder_without_training_rows_says_how_to_build_it(tmp_path):
    with pytest.raises(RunError, match="docward build"):
        read_split(tmp_path, Split.TRAIN)


def test_the_audit_comes_last_and_so_marks_the_folder_as_whole(tmp_path, monkeypatch):
    from docward import records

    fsync, calls = os.fsync, []

    def full_at_the_fifth(number):
        calls.append(number)
        if len(calls) == 5:  # three splits, the card, then the audit
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(records.os, "fsync", full_at_the_fifth)
    with pytest.raises(StorageError, match=r"audit\.json: No space left on device"):
        saved(tmp_path / "dataset")
    assert sorted(file.name for file in (tmp_path / "dataset").iterdir()) == ["README.md", "test.parquet", "train.parquet", "validation.parquet"]
    monkeypatch.undo()
    saved(tmp_path / "dataset")
    assert json.loads((tmp_path / "dataset" / "audit.json").read_text())["crossing"] == 0
