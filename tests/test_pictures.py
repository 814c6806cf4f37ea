"""The transfer map of `bench/pictures.py`: its rates are those of the verdicts in small made-up folders of `bench/defence.py`."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from docward.records import write_rows
from docward.types import Label, Outcome, Verdict

BENCH = Path(__file__).parents[1] / "bench"
TASKS = ("summarize", "next_sentence")


@pytest.fixture
def pictures(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module("pictures")
    sys.modules.pop("pictures")


def write_verdicts(place, refused, *, labels=tuple(Label)):
    """Ten documents a label; `refused`: how many of them are refused, by label and task."""
    rows = [
        Verdict(f"{label}-{number}|{task}|0", f"{label}-{number}", label, task, Outcome.REFUSED if number < many else Outcome.COMPLIED, "rules", "")
        for label in labels
        for task in TASKS
        for many in [refused.get((label, task), 0)]
        for number in range(10)
    ]
    place.mkdir(parents=True)
    write_rows(place / "verdicts.jsonl", rows)


@pytest.fixture
def folder(tmp_path):
    """Two variants of one task each, one of them of two seeds, one of all tasks, one that has nothing to do with it; an untuned model beside."""
    for name, seed, refused in (
        ("only-summarize", 0, {("malicious", "summarize"): 9, ("malicious", "next_sentence"): 4, ("sensitive", "summarize"): 1}),
        ("only-summarize", 1, {("malicious", "summarize"): 7, ("malicious", "next_sentence"): 4, ("sensitive", "summarize"): 0}),
        ("only-next_sentence", 0, {("malicious", "summarize"): 3, ("malicious", "next_sentence"): 8, ("ordinary", "summarize"): 1}),
        ("all-five-tasks", 0, {(label, task): 10 for label in Label for task in TASKS}),
        ("strong", 0, {}),
    ):
        place = tmp_path / name / str(seed) / "measured" / "held-out"
        write_verdicts(place, refused)
        (place / "asked.json").write_text(json.dumps("5e7"), encoding="utf-8")
    write_verdicts(tmp_path / "_untuned" / "5e7", {("malicious", "summarize"): 1})
    return tmp_path


def table(rows, label):
    """By what was trained: the rates of a label in percent, task by task and over all tasks."""
    return {row.title: [round(100 * row.rates[label, task].value) for task in (*TASKS, "all")] for row in rows}


def test_each_row_has_the_rates_of_what_was_tuned_on_one_task_seeds_together(pictures, folder):
    rows = pictures.transfer(folder, "held-out")
    assert table(rows, "malicious") == {"summarize": [80, 40, 60], "next_sentence": [30, 80, 55], "all five": [100, 100, 100], "nothing": [10, 0, 5]}
    assert table(rows, "sensitive")["summarize"] == [5, 0, 2]
    assert table(rows, "ordinary")["next_sentence"] == [10, 0, 5]
    assert [(row.title, row.seeds) for row in rows] == [("summarize", 2), ("next_sentence", 1), ("all five", 1), ("nothing", 1)]
    cell = rows[0].rates["malicious", "summarize"]
    assert cell.low < cell.value < cell.high


def test_a_second_seed_on_the_same_documents_makes_no_interval_narrower(pictures, folder):
    both = pictures.transfer(folder, "held-out")[0].rates["malicious", "next_sentence"]
    one = pictures.trained("one", [folder / "only-summarize" / "0" / "measured" / "held-out"]).rates["malicious", "next_sentence"]
    assert (both.low, both.high) == (one.low, one.high)  # the same four of ten documents are refused in both
    assert (both.judged, one.judged) == (20, 10)


def test_what_is_not_there_is_no_row(pictures, folder):
    (folder / "_untuned" / "5e7" / "verdicts.jsonl").unlink()
    (folder / "all-five-tasks" / "0" / "measured" / "held-out").rename(folder / "all-five-tasks" / "0" / "measured" / "other")
    assert [row.title for row in pictures.transfer(folder, "held-out")] == ["summarize", "next_sentence"]


def test_only_sets_that_every_seed_was_measured_on_are_drawn(pictures, folder):
    for name in ("only-summarize/0", "only-summarize/1"):
        write_verdicts(folder / name / "measured" / "development", {})
    variants = pictures.only_one(folder)
    assert pictures.measured_sets(list(variants.values())) == ["held-out"]
    write_verdicts(folder / "only-next_sentence/0/measured/development", {})
    assert pictures.measured_sets(list(variants.values())) == ["held-out", "development"]


def test_a_folder_without_such_variants_says_how_they_are_made(pictures, tmp_path):
    (tmp_path / "strong").mkdir()
    with pytest.raises(SystemExit, match=r"no variant that was tuned on one task .*only-summarize.*python bench/defence.py"):
        pictures.transfer(tmp_path, "held-out")
    (tmp_path / "only-case").mkdir()
    with pytest.raises(SystemExit, match=r"only-case has no seed that was measured"):
        pictures.transfer(tmp_path, "held-out")


def drawn(pictures, folder, monkeypatch, *arguments):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--transfer", str(folder), "--output-dir", str(folder / "drawn"), *arguments])
    pictures.main()
    return [(path.name, path.read_text(encoding="utf-8")) for path in sorted((folder / "drawn").iterdir())]


def test_the_picture_has_a_number_in_each_cell_and_a_panel_a_label(pictures, folder, monkeypatch):
    [(name, picture)] = drawn(pictures, folder, monkeypatch)
    assert name == "transfer-held-out.svg"
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", picture)
    numbers = [int(text) for text in texts if text.isdigit()]
    blocked, over, false = [80, 40, 60, 30, 80, 55], [5, 0, 2, 0, 0, 0], [0, 0, 0, 10, 0, 5]
    assert numbers == [*blocked, *[100] * 3, *(10, 0, 5), *over, *[100] * 3, *[0] * 3, *false, *[100] * 3, *[0] * 3]
    assert sum(bool(re.fullmatch(r"\d+ to \d+", text)) for text in texts) == len(numbers)
    assert [text.split(",")[0] for text in texts if "intervals" in text] == ["Block rate", "Over-refusal", "False refusal"]
    assert texts.count("next sentence") == 6  # a row and a column a panel
    assert drawn(pictures, folder, monkeypatch) == [(name, picture)]


def test_a_label_that_was_not_measured_has_no_panel_and_a_set_that_was_not_is_refused(pictures, folder, monkeypatch):
    for place in folder.glob("*/*/measured/held-out"):
        kept = [line for line in (place / "verdicts.jsonl").read_text().splitlines() if json.loads(line)["label"] == "malicious"]
        (place / "verdicts.jsonl").write_text("\n".join(kept) + "\n")
    (folder / "_untuned" / "5e7" / "verdicts.jsonl").unlink()
    [(_, picture)] = drawn(pictures, folder, monkeypatch, "--sets", "held-out")
    assert "Block rate" in picture
    assert "efusal" not in picture.replace("Block rate", "")
    with pytest.raises(SystemExit, match=r"--sets: nothing was measured on else. There are: held-out."):
        drawn(pictures, folder, monkeypatch, "--sets", "else")
