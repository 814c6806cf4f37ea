"""Files are written whole or not at all, logs keep every row once, and errors name the line."""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import SafetensorError

from docward.errors import DocumentError, RunError, StorageError
from docward.records import KeyedLog, read_lines, read_parquet, read_rows, typed, whole_folder, write_json, write_parquet, write_rows, write_text
from docward.types import Document, Example, Label, Position, Reply, Split, Verdict, Want


@dataclass(frozen=True)
class Row:
    key: str
    text: str = ""


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def example(number: int = 1, **changes: object) -> Example:
    fields = {
        "id": f"a|case|{number}",
        "document_id": "a",
        "task": "case",
        "wording": number,
        "instruction": "Mend the case.",
        "document": "zoë wrote:\n«no»\u2028…",
        "position": Position.BEFORE,
        "label": Label.MALICIOUS.value,
        "want": Want.REFUSE,
        "response": "I'm sorry, 不行.",
        "origin": "refusal",
        "split": Split.VALIDATION,
    }
    return Example(**(fields | changes))


# ------------------------------------------------------------------------------------------------------------ whole or not at all


@pytest.mark.parametrize("at", ["fsync", "replace", "write"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, at):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row("old")])
    target, name = {"fsync": (os, "fsync"), "replace": (Path, "replace"), "write": (Path, "write_text")}[at]
    monkeypatch.setattr(target, name, full_disk)
    with pytest.raises(StorageError, match=r"Cannot write .*rows\.jsonl: No space left on device.*untouched.*Free some space"):
        write_text(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert read_rows(path, Row) == [Row("old")]


def test_records_that_fail_half_way_keep_the_old_file(tmp_path):
    def rows() -> Iterator[Row]:
        yield Row("new")
        raise KeyboardInterrupt

    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row("old")])
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, rows())
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert read_rows(path, Row) == [Row("old")]


@pytest.mark.parametrize("value", [float("nan"), {"when": object()}])
def test_a_value_that_json_cannot_hold_leaves_no_file(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "new" / "metrics.json", value)
    assert list((tmp_path / "new").iterdir() if (tmp_path / "new").exists() else []) == []


def test_a_parquet_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_parquet(tmp_path / "train.parquet", [example()])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "below.json", tmp_path / "folder"):
        with pytest.raises(StorageError, match=f"Cannot write {place}"):
            write_json(place, 1)


def test_a_written_file_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()


def safetensors_on_a_full_disk() -> None:
    """What it raises and says then; it is no OSError."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fill", [full_disk, safetensors_on_a_full_disk])
def test_a_folder_that_fails_keeps_the_old_one_and_leaves_nothing_behind(fill, tmp_path):
    def half(draft: Path) -> None:
        (draft / "weights").write_text("new")
        fill()

    folder = tmp_path / "adapter"
    whole_folder(folder, lambda draft: (draft / "weights").write_text("old"))
    with pytest.raises(StorageError, match=r"Cannot write .*adapter: No space left"):
        whole_folder(folder, half)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]
    assert (folder / "weights").read_text() == "old"
    whole_folder(folder, lambda draft: (draft / "other").write_text("new"))
    assert [file.name for file in folder.iterdir()] == ["other"]
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_what_a_kill_left_of_a_folder_s_replacement_is_in_nobody_s_way(tmp_path):
    folder = tmp_path / "adapter"
    whole_folder(folder, lambda draft: (draft / "weights").write_text("old"))
    (tmp_path / ".adapter.before").mkdir()
    (tmp_path / ".adapter.before" / "weights").write_text("older")
    whole_folder(folder, lambda draft: (draft / "weights").write_text("new"))
    assert (folder / "weights").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_cannot_be_moved_into_place_keeps_the_old_one(tmp_path, monkeypatch):
    replace = Path.replace

    def stuck(path: Path, target: Path) -> Path:
        return full_disk() if target == folder and path.suffix != ".before" else replace(path, target)

    folder = tmp_path / "adapter"
    whole_folder(folder, lambda draft: (draft / "weights").write_text("old"))
    monkeypatch.setattr(Path, "replace", stuck)
    with pytest.raises(StorageError, match="untouched"):
        whole_folder(folder, lambda draft: (draft / "weights").write_text("new"))
    assert (folder / "weights").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


# ------------------------------------------------------------------------------------------------------------ logs


def test_rows_survive_and_their_keys_are_known(tmp_path):
    path = tmp_path / "new" / "replies.jsonl"
    with KeyedLog(path) as log:
        log.append([Row("a", "é\n"), Row("b")])
        log.append([])
        log.append([Row("c")])
    with KeyedLog(path) as log:
        assert log.keys == {"a", "b", "c"}
    assert read_rows(path, Row) == [Row("a", "é\n"), Row("b"), Row("c")]


def test_a_key_is_never_doubled_and_the_first_row_stays(tmp_path):
    path = tmp_path / "replies.jsonl"
    with KeyedLog(path) as log:
        log.append([Row("a", "first"), Row("a", "twin"), Row("b")])
        log.append([Row("b", "again"), Row("c")])
    with KeyedLog(path) as log:
        log.append([Row("c", "again"), Row("a", "again")])
    assert read_rows(path, Row) == [Row("a", "first"), Row("b"), Row("c")]


@pytest.mark.parametrize("left", range(1, 30))
def test_a_torn_last_line_is_mended_and_only_that_is_lost(tmp_path, left):
    path = tmp_path / "replies.jsonl"
    with KeyedLog(path) as log:
        log.append([Row("a", "é"), Row("b", "é")])
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[: min(second + left, len(whole) - 1)])
    with KeyedLog(path) as log:
        assert log.keys == {"a"}
        log.append([Row("b", "é"), Row("c")])
    assert read_rows(path, Row) == [Row("a", "é"), Row("b", "é"), Row("c")]


def test_a_log_torn_to_nothing_starts_anew(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_bytes(b'{"key": "a')
    with KeyedLog(path) as log:
        log.append([Row("b")])
    assert read_rows(path, Row) == [Row("b")]


@pytest.mark.parametrize("line", ['{"reply": "theirs"}', "not json", '["key"]', "3"])
def test_a_file_that_is_no_log_is_refused_and_stays_as_it_is(tmp_path, line):
    path = tmp_path / "replies.jsonl"
    text = f'{{"key": "a"}}\n{line}\n{{"key": "b"}}\n'
    path.write_text(text)
    with pytest.raises(RunError, match=r"replies\.jsonl:2: not a row that Docward wrote"):
        KeyedLog(path)
    assert path.read_text() == text


def test_two_holders_are_refused_until_the_first_lets_go(tmp_path):
    path = tmp_path / "replies.jsonl"
    with KeyedLog(path) as log:
        log.append([Row("a")])
        with pytest.raises(RunError, match="being written by another process"):
            KeyedLog(path)
        log.append([Row("b")])
    with KeyedLog(path) as log:
        assert log.keys == {"a", "b"}


def test_a_full_disk_loses_no_earlier_row_of_a_log(tmp_path, monkeypatch):
    path = tmp_path / "replies.jsonl"
    with KeyedLog(path) as log:
        log.append([Row("a")])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_disk)
            with pytest.raises(StorageError, match=r"replies\.jsonl: No space left on device"):
                log.append([Row("b")])
    with KeyedLog(path) as log:
        log.append([Row("b"), Row("c")])
    assert read_rows(path, Row) == [Row("a"), Row("b"), Row("c")]


def test_a_row_that_cannot_be_written_adds_nothing(tmp_path):
    path = tmp_path / "replies.jsonl"
    with KeyedLog(path) as log:
        log.append([Row("a")])
        with pytest.raises(UnicodeEncodeError):
            log.append([Row("b"), Row("c", "\ud800")])
        assert log.keys == {"a"}
    assert read_rows(path, Row) == [Row("a")]


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1}\n\n{"a": \n', r"rows\.jsonl:3: not valid JSON \(.*column"),
        (b'{"a": 1}\n["a"]\n', r"rows\.jsonl:2: found a JSON list, wanted one JSON object"),
        (b'{"a": 1}\n"a"\n', r"rows\.jsonl:2: found a JSON str"),
        (b'{"a": 1}\n\x00\x01\n', r"rows\.jsonl:2: this is a binary file"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"rows\.jsonl:2: not UTF-8 \(byte 10 of the line\).*iconv"),
        (b"PK\x03\x04\x00", r"rows\.jsonl is a zip archive"),
        (b"", r"rows\.jsonl is empty"),
        (b"\n  \n", r"rows\.jsonl is empty"),
        (b"\xef\xbb\xbf", r"rows\.jsonl is empty"),
        (b'{"a": ' + b"1" * 5000 + b"}", r"rows\.jsonl:1: not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, r"rows\.jsonl:1: not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_names_its_line(tmp_path, content, problem):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=problem):
        list(read_lines(path))


def test_a_missing_file_or_a_folder_is_a_document_error(tmp_path):
    for path, reason in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DocumentError, match=f"Cannot open {path}: {reason}"):
            list(read_lines(path))


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": 1}\r\n\n{"a": "é\u2028"}'.encode())
    assert list(read_lines(path)) == [(1, {"a": 1}), (3, {"a": "é\u2028"})]


def test_all_wrong_fields_of_a_row_are_named_together():
    row = {"id": 5, "text": "x" * 200, "label": "evil"}
    with pytest.raises(DocumentError, match=r"f\.jsonl:7: .*`id`: .*\(found 5\).*`label`: .*'malicious'.*\(found 'evil'\)"):
        typed(Document, row, where="f.jsonl:7")
    with pytest.raises(DocumentError, match="the field `text` is missing"):
        typed(Document, {"id": "a", "label": "ordinary"}, where="f.jsonl:7")


def test_parquet_keeps_every_field_and_type(tmp_path):
    rows = [example(), example(2, position=Position.AFTER, want=Want.COMPLY, response="", split=Split.TRAIN, label="general", document="")]
    write_parquet(tmp_path / "x.parquet", rows)
    found = read_parquet(tmp_path / "x.parquet", Example)
    assert found == rows
    for row in found:
        kinds = {name: type(getattr(row, name)) for name in Example.__slots__}
        assert kinds == dict.fromkeys(Example.__slots__, str) | {"wording": int, "position": Position, "want": Want, "split": Split}


def test_jsonl_keeps_every_field_and_type(tmp_path):
    records = [
        Document("a", "text", Label.ORDINARY, split=Split.TEST),
        Reply("k", "a", Label.SENSITIVE, "case", 3, "do", "doc", "no", dropped=4, finished=False),
        Verdict("k", "a", Label.MALICIOUS, "case", "refused", "rules", "why"),
    ]
    for record in records:
        write_rows(tmp_path / "x.jsonl", [record])
        (found,) = read_rows(tmp_path / "x.jsonl", type(record))
        assert found == record
        assert isinstance(found.label, Label)


def test_a_parquet_that_is_none_says_how_to_make_it(tmp_path):
    (tmp_path / "x.parquet").write_text(json.dumps([1]))
    for path in (tmp_path / "x.parquet", tmp_path / "none.parquet"):
        with pytest.raises(RunError, match=f"Cannot read {path}.*docward build"):
            read_parquet(path, Example)
