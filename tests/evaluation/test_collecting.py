"""An evaluation by several processes, and by killed ones: the files of one undisturbed process, byte for byte.

In float32 with greedy replies. The launched processes are real; they divide the documents and make batches of their own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from docward.documents.reading import own_documents
from docward.errors import RunError
from docward.evaluation.baseline import add_surface
from docward.evaluation.collecting import PART, REPLIES, put_in_order, share, take_in
from docward.evaluation.evaluating import Settings, evaluate, planned_replies
from docward.models import Loaded
from docward.records import KeyedLog, write_rows
from docward.tasks import get_tasks
from docward.types import Document, Reply, Split
from launched import Launched
from tiny import some_documents

SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "case", "next_sentence"])), max_new_tokens=4)
FILES = ("replies.jsonl", "likelihoods.jsonl", "verdicts.jsonl", "metrics.json")
GROUPS = 6


def documents() -> list[Document]:
    """Of unlike lengths, by label as the command line gives them."""
    found = [replace(one, text=one.text * (1 + place % 4), source=f"{one.label}.jsonl") for place, one in enumerate(some_documents(GROUPS))]
    return [one for label in ("malicious", "sensitive", "ordinary") for one in found if one.label == label]


@pytest.fixture
def undisturbed(tiny: Loaded, tmp_path: Path) -> Path:
    evaluate(tiny, documents(), SETTINGS, tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


def assert_same_files(found: Path, wanted: Path) -> None:
    for name in FILES:
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
    assert not list(found.glob(PART.format("*", "*")))


def sources(folder: Path) -> list[str]:
    """The documents as files, as the command line is given them."""
    files = {label: folder / f"{label}.jsonl" for label in ("malicious", "sensitive", "ordinary")}
    for label, file in files.items():
        write_rows(file, [one for one in documents() if one.label == label])
    return [f"{label}={file}" for label, file in files.items()]


def launched(folder: Path, model: Path, *more: str, hold: int) -> Launched:
    """Two processes that evaluate."""
    given = [word for one in sources(folder.parent) for word in ("--documents", one)]
    asked = ["evaluate", "--model", str(model), *given, "--tasks", "summarize,case,next_sentence", "--max-new-tokens", "4", "--output-dir", str(folder)]
    return Launched([*asked, *more], folder.with_suffix(".said"), HOLD_BATCH=str(hold), HELD=str(folder) + ".held")


def test_what_two_killed_processes_leave_is_finished_by_one(tiny, tiny_folder, tmp_path, undisturbed):
    folder = tmp_path / "run"
    held = [tmp_path / f"run.held.{rank}" for rank in (0, 1)]
    with launched(folder, tiny_folder, hold=2) as two:
        two.wait(lambda: all(one.is_file() and one.read_text() == "2" for one in held))
        with pytest.raises(RunError, match="Another process is working in"):
            evaluate(tiny, documents(), SETTINGS, folder)
    parts = {path.name: path.read_bytes() for path in folder.glob(PART.format(REPLIES, "*"))}
    assert len(parts) == 2
    assert all(b"\n" in rows for rows in parts.values())
    assert not (folder / "metrics.json").exists()
    with (folder / PART.format(REPLIES, 1)).open("ab") as part:
        part.write(b'{"key": "t0-m|summ')  # it might have been killed in the middle of a row
    evaluate(tiny, documents(), SETTINGS, folder)
    assert_same_files(folder, undisturbed)


def test_what_one_stopped_process_leaves_is_finished_by_two(tiny, tiny_folder, tmp_path, undisturbed):
    folder = tmp_path / "run"

    def stop(_what: str, done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny, documents(), replace(SETTINGS, max_batch_tokens=600), folder, progress=stop)
    kept = (folder / "replies.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 6
    said = launched(folder, tiny_folder, hold=0).finish()
    train = [one for one in own_documents() if one.split == Split.TRAIN]
    add_surface(undisturbed, json.loads((undisturbed / "metrics.json").read_text()), train, documents(), fitted_on="the starter")
    assert_same_files(folder, undisturbed)
    assert set(kept) <= set((folder / "replies.jsonl").read_text().splitlines())
    batches = [int((tmp_path / f"run.held.{rank}").read_text()) for rank in (0, 1)]
    assert min(batches) > 2, "one process did it all"
    assert said.count("Replies, verdicts, metrics:") == 1, "both processes spoke"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_documents_are_dealt_out_whole_and_evenly(monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    dealt = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        dealt.append(share(documents()))
    assert sorted(one for some in dealt for one in some) == sorted(one.id for one in documents())
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    if count <= 3:
        length = {one.id: len(one.text) for one in documents()}
        read = [sum(length[one] for one in some) for some in dealt]
        assert max(read) - min(read) <= max(length.values())


def test_rows_that_a_killed_merge_left_twice_are_taken_once(tmp_path):
    planned = planned_replies(some_documents(2), SETTINGS)
    for name, rows in (("replies.jsonl", planned[:4]), (PART.format(REPLIES, 0), planned[2:6]), (PART.format(REPLIES, 3), planned[6:8])):
        with KeyedLog(tmp_path / name) as log:
            log.append(rows)
    (tmp_path / PART.format(REPLIES, 1)).touch()  # killed before its first reply
    assert take_in(tmp_path, REPLIES, Reply) == {one.key for one in planned[:8]}
    assert [json.loads(line)["key"] for line in (tmp_path / "replies.jsonl").read_text().splitlines()] == [one.key for one in planned[:8]]
    assert [path.name for path in tmp_path.iterdir()] == ["replies.jsonl"]


def test_a_file_that_a_living_process_writes_is_not_taken(tmp_path):
    with KeyedLog(tmp_path / PART.format(REPLIES, 1)), pytest.raises(RunError, match=r"replies\.part-1\.jsonl is being written by another process"):
        take_in(tmp_path, REPLIES, Reply)
    assert (tmp_path / PART.format(REPLIES, 1)).is_file()


def test_rows_in_order_are_not_written_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "b"}\n{"key": "a", "é": "\\u2028"}\n{"key": "x"}\n')
    before = path.stat().st_ino
    assert put_in_order(path, ["b", "a"]) == 2
    assert path.stat().st_ino == before
    assert put_in_order(path, ["x", "missing", "a"]) == 2
    assert path.read_text() == '{"key": "x"}\n{"key": "a", "é": "\\u2028"}\n{"key": "b"}\n'
