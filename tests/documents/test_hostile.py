"""Files from strangers: whatever they hold, one error names the file, the line and what to do, memory stays bounded, and nothing is left behind."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import pytest

from docward.cli.main import main
from docward.documents.importing import import_shards, resolve
from docward.documents.sources import source_hash
from docward.errors import DocumentError
from docward.recipe import Source
from docward.records import read_rows, write_rows
from docward.types import Document
from tiny import some_documents

GOOD = {"text": "A harmless note on bread. It is short. There is a third.", "label": "ordinary"}
LINE = json.dumps(GOOD) + "\n"
CSV = 'text,label\n"A harmless note, on bread. It is short.",ordinary\n'
LONG = "A harmless note on bread. " * 800_000  # 20 MB


@pytest.fixture
def build(monkeypatch, capsys, tmp_path, tiny_folder):
    """Build from sources and some good documents by the command line; gives the exit code and the one message, or the audit."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "good.jsonl", some_documents())

    def run(*sources, dataset="", out="out"):
        said = json.dumps([{"path": str(one)} if isinstance(one, Path) else {**one, "path": str(one["path"])} for one in sources] + [{"path": "good.jsonl"}])
        (tmp_path / "my.yaml").write_text(
            f"model_name_or_path: {tiny_folder}\ndocuments: {said}\ndataset: {{tasks: [case], general: 0, max_surface_auc: 1, num_proc: 1{dataset}}}\n"
        )
        monkeypatch.setattr(sys, "argv", ["docward", "build", "my.yaml", "--output-dir", out])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert "Traceback" not in told.out + told.err
        if not end.value.code:
            return 0, json.loads((tmp_path / out / "dataset" / "audit.json").read_text())
        assert told.err.count("Error:") == 1, told.err
        return end.value.code, " ".join(told.err.partition("Error: ")[2].split())

    return run


def refused(build, tmp_path, *sources, **more):
    """The message of a build that must fail, and must leave nothing."""
    code, message = build(*sources, **more)
    assert code == 2
    assert not (tmp_path / "out").exists()
    assert len(message) < 1000
    return message


def kept(tmp_path, *sources, conflicts="error"):
    import_shards(sources, tmp_path / "work", tidy=True, num_proc=1, contaminated=None, progress=lambda *_: None)
    return resolve(tmp_path / "work", threshold=0.8, drop_near=False, conflicts=conflicts)


# ------------------------------------------------------------------------------------------------------------ one file, one message


def zipped(path):
    with ZipFile(path, "w") as out:
        out.writestr("mine.jsonl", LINE)


def as_parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD]), path)


def not_utf_8_parquet(path):
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"caf\xe9"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "label": ["ordinary"]}), path)


def cut_parquet(path):
    as_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])


def long_line(path):
    path.write_bytes(b'{"text": "' + LONG.encode())
    os.truncate(path, 200_000_000)


def zeros(path):
    path.touch()
    os.truncate(path, 200_000_000)


HOSTILE = {
    "one line of 200 MB": ("d.jsonl", long_line, r"d\.jsonl:1: the line is longer than 16 MiB\. Each line must be one JSON object with one document"),
    "200 MB of zeros": ("d.jsonl", zeros, r"d\.jsonl:1: this is a binary file \(it holds NUL bytes\), wanted JSONL text"),
    "zip as JSONL": ("d.jsonl", zipped, r"d\.jsonl is a zip archive, whatever its name says.*Unpack or convert it first"),
    "zip as CSV": ("d.csv", zipped, r"d\.csv is a zip archive"),
    "zip as text": ("d.txt", zipped, r"d\.txt is a zip archive"),
    "zip as JSON": ("d.json", zipped, r"d\.json is a zip archive"),
    "gzip as CSV": ("d.csv", lambda path: path.write_bytes(gzip.compress(CSV.encode())), r"d\.csv is a gzip file, whatever its name says.*Unpack"),
    "gzip as JSONL": ("d.jsonl", lambda path: path.write_bytes(gzip.compress(LINE.encode())), r"d\.jsonl is a gzip file"),
    "PDF as text": ("d.txt", lambda path: path.write_bytes(b"%PDF-1.4\n"), r"d\.txt is a PDF"),
    "Parquet as JSONL": ("d.jsonl", as_parquet, r"d\.jsonl is a Parquet file, whatever its name says"),
    "JSONL as Parquet": ("d.parquet", lambda path: path.write_text(LINE), r"d\.parquet: cannot be read as Parquet.*Write it again, or convert it to \.jsonl"),
    "Parquet cut short": ("d.parquet", cut_parquet, r"d\.parquet: cannot be read as Parquet"),
    "Parquet of Latin-1": ("d.parquet", not_utf_8_parquet, r"d\.parquet: cannot be read as Parquet.*Write it again"),
    "empty Parquet": ("d.parquet", lambda path: path.write_bytes(b""), r"d\.parquet: cannot be read as Parquet"),
    "a folder's name": ("d.jsonl", lambda path: path.mkdir(), r"The folder \S*d\.jsonl holds no texts\. Wanted files that end in \.txt"),
    "empty CSV": ("d.csv", lambda path: path.write_text(""), r"d\.csv is empty: no header in it"),
    "header only": ("d.csv", lambda path: path.write_text("text,label\n"), r"d\.csv gives no documents: it is empty"),
    "wrong delimiter": (
        "d.csv",
        lambda path: path.write_text(CSV.replace("text,label", "text;label")),
        r"d\.csv: with a comma as delimiter the header is the one column 'text;label'\. Say `delimiter: \";\"` in the recipe",
    ),
    "tabs in CSV": ("d.csv", lambda path: path.write_text("text\tlabel\nx\tordinary\n"), r'Say `delimiter: "\\t"` in the recipe'),
    "column twice": ("d.csv", lambda path: path.write_text("text,label,text\nx,ordinary,y\n"), r"d\.csv: the header has the column 'text' twice\. Rename one"),
    "unclosed quote": (
        "d.csv",
        lambda path: path.write_text(CSV + '"A note that never ends,ordinary\n' + CSV * 20),
        r"d\.csv:3: not valid CSV in the row that begins here .*double quote left open",
    ),
    "unclosed quote, long": (
        "d.csv",
        lambda path: path.write_text(CSV + '"A note that never ends,ordinary\n' + "more words,ordinary\n" * 900_000),
        r"d\.csv:3: not valid CSV in the row that begins here .*double quote left open, or a text over 16 MiB",
    ),
    "ragged, short": ("d.csv", lambda path: path.write_text(CSV + "only text\n"), r"d\.csv:3: the row has 1 fields, the header 2 \('text', 'label'\)"),
    "ragged, long": ("d.csv", lambda path: path.write_text(CSV + "a, b, c\n"), r"d\.csv:3: the row has 3 fields, .*must stand in double quotes"),
    "field of 20 MB": ("d.csv", lambda path: path.write_text(f'text,label\n"{LONG}",ordinary\n'), r"d\.csv:2: the line is longer than 16 MiB"),
    "field of 20 MB in lines": (
        "d.csv",
        lambda path: path.write_text('text,label\n"' + LONG.replace(". ", ".\n") + '",ordinary\n'),
        r"d\.csv:2: not valid CSV.*a text over 16 MiB",
    ),
    "text of 20 MB": ("d.txt", lambda path: path.write_text(LONG), r"d\.txt is larger than 16 MiB, which no document is\. Split it"),
    "NUL in CSV": ("d.csv", lambda path: path.write_text(CSV + "x\0y,ordinary\n"), r"d\.csv:3: this is a binary file \(it holds NUL bytes\), wanted CSV text"),
    "NUL in text": ("d.txt", lambda path: path.write_text("x\0y"), r"d\.txt: this is a binary file \(it holds NUL bytes\), wanted text"),
    "NUL in JSONL": ("d.jsonl", lambda path: path.write_text(LINE + '{"text": "x\0"}\n'), r"d\.jsonl:2: this is a binary file"),
    "NUL in JSON": ("d.json", lambda path: path.write_text('[\n{"text": "x\0"}]'), r"d\.json:2: not valid JSON"),
    "JSON nested deep": ("d.json", lambda path: path.write_text("[" * 100_000), r"d\.json: not valid JSON \(maximum recursion depth"),
    "JSONL nested deep": ("d.jsonl", lambda path: path.write_text(LINE + '{"text": ' + "[" * 100_000), r"d\.jsonl:2: not valid JSON \(maximum recursion depth"),
    "number of 5,000 digits": ("d.jsonl", lambda path: path.write_text(LINE + '{"id": ' + "9" * 5000 + "}\n"), r"d\.jsonl:2: not valid JSON"),
    "rows without text": (
        "d.jsonl",
        lambda path: path.write_text(LINE + '{"body": "x", "label": "ordinary"}\n'),
        r"d\.jsonl:2: a document needs a `text` field .*fields body, label",
    ),
    "text of another kind": ("d.jsonl", lambda path: path.write_text(LINE + '{"text": ["x"], "label": "ordinary"}\n'), r"d\.jsonl:2: .*`text` is a list"),
    "text of nothing": ("d.jsonl", lambda path: path.write_text(LINE + '{"text": null, "label": "ordinary"}\n'), r"d\.jsonl:2: .*`text` is a NoneType"),
    "no label": ("d.csv", lambda path: path.write_text(CSV + "x,\n"), r"d\.csv:3: the document has no `label`\. Allowed: malicious, sensitive, ordinary"),
    "label of another kind": ("d.jsonl", lambda path: path.write_text(LINE + '{"text": "x", "label": {"a": 1}}\n'), r"d\.jsonl:2: unknown label a dict"),
    "split of their own": (
        "d.jsonl",
        lambda path: path.write_text(LINE + '{"text": "x", "label": "ordinary", "split": "dev"}\n'),
        r"d\.jsonl:2: `split`: .*found 'dev'",
    ),
    "Latin-1 as JSONL": ("d.jsonl", lambda path: path.write_bytes(LINE.encode() + b'{"text": "caf\xe9"}\n'), r"d\.jsonl:2: not UTF-8.*`encoding: cp1252`"),
    "Latin-1 as CSV": ("d.csv", lambda path: path.write_bytes(CSV.encode() + b"caf\xe9,ordinary\n"), r"d\.csv:3: not UTF-8.*`encoding: cp1252`"),
    "Latin-1 as text": ("d.txt", lambda path: path.write_bytes(b"A\ncaf\xe9\n"), r"d\.txt:2: not UTF-8.*`encoding: cp1252`"),
    "UTF-16 as JSONL": (
        "d.jsonl",
        lambda path: path.write_text(LINE, encoding="utf-16"),
        r"d\.jsonl: this is UTF-16 text, wanted UTF-8.*iconv -f UTF-16 -t UTF-8 d\.jsonl",
    ),
    "PDF that is none": ("d.pdf", lambda path: path.write_bytes(b"%PDF-1.4\nnone"), r"d\.pdf cannot be read as \.pdf: \w+\. Save it again"),
    "no ending": ("d", lambda path: path.write_text(LINE), r"d: cannot read a file without an ending\. Allowed: \.jsonl"),
    "a link to itself": ("d.jsonl", lambda path: path.symlink_to(path), r"There is no document file or folder \S*d\.jsonl"),
    "a link to nothing": ("d.csv", lambda path: path.symlink_to("gone.csv"), r"There is no document file or folder \S*d\.csv"),
    "a pipe": ("d.txt", os.mkfifo, r"There is no document file or folder \S*d\.txt"),
}


@pytest.mark.parametrize(("name", "make", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_one_message_that_names_it_and_leaves_nothing(build, tmp_path, name, make, problem):
    make(tmp_path / name)
    source = {"path": tmp_path / name} | ({"label": "ordinary"} if name.endswith((".txt", ".pdf")) or (tmp_path / name).is_dir() else {})
    message = refused(build, tmp_path, source)
    assert re.search(problem, message), message


# ------------------------------------------------------------------------------------------------------------ memory and time

MEASURED = """
import sys
from pathlib import Path
from docward.documents.importing import import_shards
from docward.errors import DocumentError
from docward.recipe import Source

def peak():  # MiB; ru_maxrss is the parent's to begin with
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def take(path, work):
    try:
        import_shards([Source(path=str(path), label="ordinary")], work, tidy=False, num_proc=1, contaminated=None, progress=lambda *_: None)
    except DocumentError:
        print(path, "refused")

work = Path(sys.argv[1])
work.mkdir()
for name, text in (("a.txt", "A text."), ("a.jsonl", '{"text": "A text."}'), ("a.csv", "text\\nA text.")):
    (work / name).write_text(text)
    take(work / name, work / "small" / name)  # what is imported once
before = peak()
for path in sys.argv[2:]:
    take(path, work / Path(path).name)
print(peak() - before)
"""


def test_files_of_200_mb_that_hold_no_documents_fill_no_memory(tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    for name in ("line.jsonl", "line.csv", "line.tsv"):
        long_line(folder / name)
    for name in ("zeros.jsonl", "zeros.csv", "zeros.txt", "zeros.html", "zeros.parquet"):
        zeros(folder / name)
    (folder / "quote.csv").write_text('text\n"' + "more words\n" * 5_000_000)
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "work", *folder.iterdir()], check=True, capture_output=True, text=True)
    *told, grown = done.stdout.splitlines()
    assert sorted(told) == sorted(f"{path} refused" for path in folder.iterdir())
    assert int(grown) < 250
    assert done.stderr == ""


@pytest.mark.parametrize(("rows", "size"), [(200, 10**6), (10_000, 20_000)])
def test_texts_of_200_mb_in_all_pass_by_in_little_memory(tmp_path, rows, size):
    with (tmp_path / "rows.jsonl").open("w") as out:
        out.writelines([json.dumps({"text": " " * size}) + "\n"] * rows)
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "work", tmp_path / "rows.jsonl"], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 150


def test_one_text_of_4_mb_passes_by_in_little_memory(tmp_path):
    (tmp_path / "long.txt").write_text(" ".join(f"w{number}" for number in range(600_000)))
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "work", tmp_path / "long.txt"], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 140


def test_two_thousand_empty_files_are_a_clear_error_in_seconds(build, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    for number in range(2_000):
        os.close(os.open(folder / f"{number}.txt", os.O_CREAT))
    (tmp_path / "good.jsonl").write_text('{"text": " ", "label": "ordinary"}\n')
    before = time.process_time()
    message = refused(build, tmp_path, {"path": folder, "label": "ordinary"})
    assert "No document is left (2001 empty). Look at the files under `documents:`" in message
    assert time.process_time() - before < 4


# ------------------------------------------------------------------------------------------------------------ folders


def test_empty_files_among_good_ones_are_counted(build, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text("" if number % 4 == 0 else f"Note {number} is a harmless one. It is on bread and on number {number}.")
    (folder / "control.txt").write_text("\x01\x02\x1b\x7f \u200b\n")
    code, audit = build({"path": folder, "label": "ordinary"})
    assert code == 0
    assert audit["removed"]["empty"] == 6
    found = read_rows(tmp_path / "out" / "documents.jsonl", Document)
    assert sorted(one.id for one in found if one.source == "texts") == sorted(f"{number}.txt" for number in range(20) if number % 4)


def test_a_loop_of_links_ends_and_gives_each_file_once(tmp_path):
    folder = tmp_path / "texts"
    (folder / "in").mkdir(parents=True)
    (folder / "a.txt").write_text("One text.")
    (folder / "in" / "b.txt").write_text("Another text.")
    (folder / "in" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    source = Source(path=str(folder), label="ordinary")
    assert [entry.id for entry in kept(tmp_path, source).entries] == ["a.txt", "in/b.txt"]
    assert source_hash(source) == source_hash(source)


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda path: path.symlink_to("gone"), "link.txt"), (lambda path: path.symlink_to(path), "self.md"), (os.mkfifo, "pipe.txt")],
    ids=["a link to nothing", "a link to itself", "a pipe"],
)
def test_what_is_no_file_in_a_folder_is_named_and_never_waited_for(build, tmp_path, make, name):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("One text.")
    make(folder / name)
    message = refused(build, tmp_path, {"path": folder, "label": "ordinary"})
    assert f"texts/{name} is no file but a link to nothing, or a pipe. Take it out of the folder." in message


NAMES = ["d.jsonl", "d.json", "d.csv", "d.txt", "d.html", "d.pdf"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_be_read_is_named(build, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("x")
    opened = Path.open

    def closed(self, *more, **said):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *more, **said)

    monkeypatch.setattr(Path, "open", closed)
    message = refused(build, tmp_path, {"path": tmp_path / name, "label": "ordinary"})
    assert f"Cannot open {tmp_path / name}: Permission denied. Change its permissions, or take it out." in message
    with pytest.raises(DocumentError, match=rf"Cannot open .*{name}: Permission denied"):
        kept(tmp_path, Source(path=str(tmp_path / name), label="ordinary"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("closed", ["in", "in/b.txt", "."])
def test_a_folder_or_file_in_it_that_may_not_be_read_is_named(tmp_path, closed):
    folder = tmp_path / "texts"
    (folder / "in").mkdir(parents=True)
    for name in ("a.txt", "in/b.txt"):
        (folder / name).write_text("A text.")
    (folder / closed).chmod(0)
    try:
        for use in (source_hash, lambda source: kept(tmp_path, source)):
            with pytest.raises(DocumentError, match=r"Cannot open .*texts.*: Permission denied"):
                use(Source(path=str(folder), label="ordinary"))
    finally:
        (folder / closed).chmod(0o755)


def test_a_folder_that_may_not_be_looked_into_is_not_passed_over(tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    (folder / "in").mkdir(parents=True)
    for name in ("a.txt", "in/b.txt"):
        (folder / name).write_text("A text.")
    listed = os.scandir

    def closed(path):
        if str(path).endswith("in"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DocumentError, match=r"Cannot open .*texts/in: Permission denied"):
        kept(tmp_path, Source(path=str(folder), label="ordinary"))


# ------------------------------------------------------------------------------------------------------------ what is odd and still means something


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.txt"])
def test_another_encoding_works_once_it_is_said(build, tmp_path, name, encoding):
    text = "Crème brûlée is baked. ¿Qué más? It is short. There is a fourth."
    row = {"text": text, "label": "ordinary"}
    content = {"d.jsonl": json.dumps(row, ensure_ascii=False), "d.json": json.dumps([row], ensure_ascii=False), "d.csv": f'text,label\n"{text}",ordinary'}
    (tmp_path / name).write_bytes(content.get(name, text).encode(encoding))
    source = {"path": tmp_path / name, "label": "ordinary"}
    assert "encoding: cp1252" in refused(build, tmp_path, source)
    code, _ = build(source | {"encoding": encoding})
    assert code == 0
    assert text in [one.text for one in read_rows(tmp_path / "out" / "documents.jsonl", Document)]


def test_odd_ids_and_halves_of_characters_come_through(build, tmp_path):
    rows = [
        {"id": name, "text": f"Note {place} is a harmless one. It is on bread. It ends.", "label": "ordinary"}
        for place, name in enumerate([7, 0, 7, "a|b", "../c", "x" * 5000, "\x00", True])
    ]
    rows.append({"id": "half", "text": "Bread \ud800 and butter. It is a note. It ends.", "label": "ordinary", "category": "\udfff"})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _ = build(tmp_path / "d.jsonl")
    assert code == 0
    found = [one for one in read_rows(tmp_path / "out" / "documents.jsonl", Document) if one.source == "d.jsonl"]
    assert len({one.id for one in found}) == len(rows)
    assert [one.id for one in found][:2] == ["7", "0"]
    assert found[-1].text == "Bread ? and butter. It is a note. It ends."


def test_one_text_under_two_labels_stops_or_goes_as_the_recipe_says(build, tmp_path):
    (tmp_path / "d.jsonl").write_text(LINE + LINE.replace("ordinary", "malicious").replace("A harmless", "a  HARMLESS"))
    message = refused(build, tmp_path, tmp_path / "d.jsonl")
    assert f"{tmp_path}/d.jsonl:1)' (ordinary)" in message
    assert f"{tmp_path}/d.jsonl:2)' (malicious) are the same text under two labels. Keep one, or drop both: dataset: {{conflicts: drop}}" in message
    code, audit = build(tmp_path / "d.jsonl", dataset=", conflicts: drop")
    assert (code, audit["removed"]["conflicts"]) == (0, 2)
    assert len(read_rows(tmp_path / "out" / "documents.jsonl", Document)) == len(some_documents())


def test_a_file_named_twice_gives_its_documents_once(build, tmp_path):
    code, audit = build(tmp_path / "good.jsonl", tmp_path / "good.jsonl")
    assert (code, audit["removed"]["duplicates"]) == (0, 2 * len(some_documents()))
    assert len(read_rows(tmp_path / "out" / "documents.jsonl", Document)) == len(some_documents())


def test_a_mended_file_builds_in_the_same_folder_what_it_builds_in_a_fresh_one(build, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(LINE + '{"text": "x"}\n')
    assert "d.jsonl:2" in refused(build, tmp_path, path)
    path.write_text(LINE)
    assert build(path) == build(path, out="fresh")
    both = [
        {str(one.relative_to(tmp_path / out)): one.read_bytes() for one in (tmp_path / out / "dataset").rglob("*") if one.is_file()} for out in ("out", "fresh")
    ]
    assert both[0] == both[1]
