"""Keys of very many rows: each finds its own number or row, and what is held does not grow with the rows' length."""

from __future__ import annotations

import json
import random
import tracemalloc

import pytest

from docward import keyed
from docward.errors import DocumentError
from docward.keyed import KeyedRows, KeyTable


def test_a_table_is_a_dictionary():
    chance = random.Random(0)
    pairs = [(f"key {chance.randrange(3000)}", chance.randrange(-128, 128)) for _ in range(5000)]
    table, known = KeyTable(pairs), dict(pairs)
    assert all(table.get(f"key {number}") == known.get(f"key {number}") for number in range(4000))
    assert all((f"key {number}" in table) == (f"key {number}" in known) for number in range(4000))
    assert len(table) == 5000
    assert table.repeats
    assert not KeyTable(known.items()).repeats


def test_where_a_key_comes_twice_the_last_number_holds_and_all_are_there():
    table = KeyTable([("a", 1), ("b", 2), ("a", 2**60)], large=True)
    assert (table.get("a"), table.all("a"), table.all("c")) == (2**60, [2**60, 1], [])


def test_an_empty_table_has_nothing():
    assert KeyTable(()).get("a") is None
    assert "a" not in KeyTable(())
    assert 3 not in KeyTable([("3", 3)])


def test_a_table_holds_nine_bytes_a_key_and_a_large_one_sixteen():
    for large, size in ((False, 9), (True, 16)):
        tracemalloc.start()
        table = KeyTable(((f"a key that is rather long {number}", 1) for number in range(50_000)), large=large)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held / len(table) == pytest.approx(size, abs=1)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_are_found_by_key_in_any_order_with_their_lines_byte_for_byte(tmp_path):
    rows = [{"key": f"ü{number}", "text": "x" * (number % 50), "é": number} for number in range(300)]
    path = write(tmp_path / "rows.jsonl", rows)
    path.write_bytes(b"\n" + path.read_bytes().replace(b'"\xc3\xa9": 7}', b'"\xc3\xa9":   7 }'))
    lines = path.read_bytes().splitlines(keepends=True)[1:]
    with KeyedRows(path, lambda row, line: (row["é"], line)) as found:
        assert list(found) == [row["key"] for row in rows]
        for number in random.Random(0).sample(range(300), 300):
            assert found[f"ü{number}"] == (number, lines[number].decode())
        assert found.get("other") is None
        assert len(found) == 300


def test_two_keys_of_one_hash_keep_their_own_rows(tmp_path, monkeypatch):
    """64-bit hashes of different keys may be the same; rows are told apart by the keys themselves."""
    monkeypatch.setattr(keyed, "hash", lambda key: 7, raising=False)
    path = write(tmp_path / "rows.jsonl", [{"key": name, "text": name * 2} for name in "abc"])
    with KeyedRows(path, lambda row, _: row["text"]) as found:
        assert [found[name] for name in "abc"] == ["aa", "bb", "cc"]
        with pytest.raises(KeyError):
            found["d"]


@pytest.mark.parametrize("line", ["{", "[]", '{"text": 3}', "3"])
def test_a_line_that_is_no_keyed_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a"}\n' + line + "\n")
    with pytest.raises(DocumentError, match=r"rows\.jsonl:2: not a keyed row"), KeyedRows(path, lambda row, _: row):
        pass
