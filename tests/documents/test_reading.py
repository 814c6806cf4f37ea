"""Documents from files: cleaned without losing words, each id and text once, mistakes named by file and line."""

import codecs
import csv
import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from docward.documents.reading import clean, file_rows, folder_files, general_instructions, read_documents, read_text, unique_documents
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


def test_general_instructions_have_an_id_and_words():
    assert all(name and words.strip() for name, words in general_instructions())


# ------------------------------------------------------------------------------------------------------------ tables

ROWS = [{"text": "Bread, rye;\nsliced.\tNow.", "label": "ordinary", "id": "a"}, {"text": 'Crème "brûlée" | 不行', "label": "malicious", "id": "b"}]


def write_csv(path, rows=ROWS, *, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows=ROWS):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {
    "d.jsonl": lambda path: write_rows(path, ROWS),
    "d.ndjson": lambda path: write_rows(path, ROWS),
    "D.JSONL": lambda path: write_rows(path, ROWS),
    "d.json": lambda path: path.write_text(json.dumps(ROWS)),
    "data.json": lambda path: path.write_text(json.dumps({"version": "1", "data": ROWS})),
    "d.csv": write_csv,
    "d.tsv": lambda path: write_csv(path, delimiter="\t"),
    "d.parquet": write_parquet,
}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
def test_the_same_rows_come_out_of_every_kind_of_table(tmp_path, name, write):
    write(tmp_path / name)
    rows = list(file_rows(tmp_path / name))
    assert [row.values for row in rows] == ROWS
    assert all(row.where.startswith(str(tmp_path / name)) for row in rows)
    assert len({row.where for row in rows}) == 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ":"])
def test_a_csv_s_delimiter_can_be_said(tmp_path, delimiter):
    write_csv(tmp_path / "d.csv", delimiter=delimiter)
    assert [row.values for row in file_rows(tmp_path / "d.csv", delimiter=delimiter)] == ROWS


def test_a_row_of_a_csv_is_named_by_the_line_it_begins_in(tmp_path):
    (tmp_path / "d.csv").write_text('text,label\n"one\ntwo\nthree",ordinary\n\nfour,ordinary\nfive\n')
    rows = file_rows(tmp_path / "d.csv")
    assert [next(rows).where.rpartition(":")[2] for _ in range(2)] == ["2", "6"]
    with pytest.raises(DocumentError, match=r"d\.csv:7: the row has 1 fields, the header 2 \('text', 'label'\)"):
        next(rows)


def test_old_and_new_line_ends_of_a_csv_are_alike(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "d.csv").write_bytes(f"text,label{end}one,ordinary{end}two,ordinary{end}".encode())
        assert [row.values["text"] for row in file_rows(tmp_path / "d.csv")] == ["one", "two"]


def test_the_paper_s_test_file_gives_its_documents_without_the_instructions(tmp_path):
    asked = "Summarize the above article briefly in 3 sentences."
    content = {"instructions": [f"A note on bread.\n{asked}", f"Another note. {asked}", asked], "inputs": ["", "", "A third note."]}
    (tmp_path / "test_summarize.json").write_text(json.dumps(content))
    assert [row.values for row in file_rows(tmp_path / "test_summarize.json")] == [{"text": t} for t in ("A note on bread.", "Another note.", "A third note.")]
    (tmp_path / "test_summarize.json").write_text(json.dumps(content | {"inputs": []}))
    assert [row.values["text"] for row in file_rows(tmp_path / "test_summarize.json")] == ["A note on bread.", "Another note.", ""]


@pytest.mark.parametrize("content", ["5", '"text"', "null", '{"a": [{}], "b": [{}]}', '{"a": 1}', "[1, 2]", '[{"text": "x"}, "y"]'])
def test_json_that_is_no_list_of_objects_says_what_is_wanted(tmp_path, content):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(DocumentError, match=r"d\.json.*wanted a list of objects"):
        list(file_rows(tmp_path / "d.json"))


def test_json_with_an_object_a_line_is_told_its_ending(tmp_path):
    (tmp_path / "d.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(DocumentError, match=r"d\.json:2: not valid JSON .*One object a line goes into a file that ends in \.jsonl"):
        list(file_rows(tmp_path / "d.json"))


def test_a_table_is_read_as_it_goes_and_not_before(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n{')
    (tmp_path / "d.csv").write_text('text\nx\n"')
    for name in ("d.jsonl", "d.csv"):
        rows = file_rows(tmp_path / name)
        assert next(rows).values == {"text": "x"}
        with pytest.raises(DocumentError):
            next(rows)


@pytest.mark.parametrize("name", ["d.xlsx", "d.rtf", "d", "d.jsonl.gz"])
def test_an_ending_that_is_not_read_names_those_that_are(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DocumentError, match=r"cannot read a .*Allowed: \.jsonl, .*\.csv, .*\.docx, or a folder"):
        list(file_rows(tmp_path / name))


# ------------------------------------------------------------------------------------------------------------ encodings

WORDS = "Crème brûlée, ¿qué?"
TEXTS = {
    "d.txt": WORDS,
    "d.csv": f'text,label\n"{WORDS}",ordinary\n',
    "d.json": json.dumps([{"text": WORDS, "label": "ordinary"}], ensure_ascii=False),
    "d.jsonl": json.dumps({"text": WORDS, "label": "ordinary"}, ensure_ascii=False) + "\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("said", ["utf-8", "utf8", "UTF-8", "utf-8-sig", "cp1252"])
def test_a_byte_order_mark_of_utf_8_is_no_text_and_tells_more_than_the_recipe(tmp_path, name, said):
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + TEXTS[name].encode())
    (row,) = file_rows(tmp_path / name, encoding=said)
    assert row.values["text"] == WORDS


@pytest.mark.parametrize("name", ["d.txt", "d.csv", "d.json"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_of_utf_16_or_32_is_enough(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(("\ufeff" + TEXTS[name]).encode(encoding))
    (row,) = file_rows(tmp_path / name)
    assert row.values["text"] == WORDS
    (tmp_path / name).write_bytes(TEXTS[name].encode(encoding))
    (row,) = file_rows(tmp_path / name, encoding=encoding)
    assert row.values["text"] == WORDS, "without the mark, it is said"


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_jsonl_in_utf_16_is_named_with_the_way_to_convert_it(tmp_path, mark):
    (tmp_path / "d.jsonl").write_bytes((mark + TEXTS["d.jsonl"]).encode("utf-16-le"))
    with pytest.raises(DocumentError, match=r"d\.jsonl: this is UTF-16.* text, wanted UTF-8 for JSONL\. Convert it: iconv -f UTF-16.* -t UTF-8 d\.jsonl"):
        list(file_rows(tmp_path / "d.jsonl", encoding="utf-8" if mark else "utf-16-le"))


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_another_encoding_is_named_with_its_line_and_works_once_it_is_said(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(TEXTS[name].encode(encoding))
    line = "2" if name == "d.csv" else "1"
    with pytest.raises(DocumentError, match=rf"{name}:{line}: not UTF-8.*`encoding: cp1252`.*iconv"):
        list(file_rows(tmp_path / name))
    (row,) = file_rows(tmp_path / name, encoding=encoding)
    assert row.values["text"] == WORDS


@pytest.mark.parametrize("name", ["d.txt", "d.csv", "d.json"])
def test_an_encoding_that_was_said_wrongly_is_not_advised_again(tmp_path, name):
    (tmp_path / name).write_bytes(TEXTS[name].encode("cp1252") + b"\n\x81\n")
    with pytest.raises(DocumentError, match=r"not cp1252\. Say another `encoding:`") as error:
        list(file_rows(tmp_path / name, encoding="cp1252"))
    assert "encoding: cp1252" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------ pages and office files

PAGE = """<!DOCTYPE html><html lang=en><head><title>Bread | Our village</title><script>var secret = 1;</script><style>p{color:red}</style></head><body>
<header><nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop</a></li><li><a href="/about">About us</a></li></ul></nav></header>
<main><article><h1>Bread for the week</h1><p>The bakery opens at nine on every day of the week, and the oven is hot from six.</p>
<p>Bring a bag of your own, since there are no more of paper. The rye loaf &amp; the <b>wheat</b> loaf are baked on Tuesday only.</p></article></main>
<script>track();</script><footer>Copyright 2024 Our village. All rights reserved. <a href="/privacy">Privacy</a></footer></body></html>"""


@pytest.mark.parametrize("name", ["page.html", "page.htm", "PAGE.HTML"])
def test_a_page_gives_its_main_text_without_menus_scripts_and_footers(tmp_path, name):
    (tmp_path / name).write_text(PAGE)
    found = read_text(tmp_path / name)
    assert "Bread for the week" in found
    assert "The rye loaf & the wheat loaf are baked" in found
    assert [part for part in ("Home", "Shop", "secret", "color", "track", "Privacy", "reserved", "<") if part in found] == []


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Just one line.</p>", "Just one line."),
        ("No tag at all.", "No tag at all."),
        ("<div>" * 20_000 + "Deep down." + "</div>" * 20_000, "Deep down."),
        ("<html><body><script>x()</script><style>p{}</style></body></html>", ""),
        ('<?xml version="1.0" encoding="latin-1"?><html><body><p>Façade.</p></body></html>', "Façade."),
        ("", ""),
    ],
    ids=["part of a page", "words alone", "20,000 deep", "nothing shown", "says another encoding", "empty"],
)
def test_a_page_without_a_main_part_gives_all_that_it_shows(tmp_path, html, text):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    assert read_text(tmp_path / "page.html") == text


def test_pages_of_broken_tags_take_no_time(tmp_path):
    for place, part in enumerate(["<", "<!--", "<a ", "<![CDATA[", "&"]):
        (tmp_path / f"{place}.html").write_text(part * 50_000)
    script = (
        "import resource, sys; from pathlib import Path; from docward.documents.reading import file_rows; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))"
    )
    subprocess.run([sys.executable, "-c", f"{script}; list(file_rows(Path(sys.argv[1])))", tmp_path], check=True)


def pdf_bytes(*lines):
    shown = b"BT /F1 12 Tf 50 700 Td 14 TL " + b" ".join(b"(%s) Tj T*" % line.encode() for line in lines) + b" ET"
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    parts = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", page]
    parts += [b"<< /Length %d >>\nstream\n%s\nendstream" % (len(shown), shown), font]
    out, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 6\n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (table, len(out))


def write_docx(path, *paragraphs):
    kinds = "application/vnd.openxmlformats-"
    with ZipFile(path, "w") as out:
        out.writestr(
            "[Content_Types].xml",
            '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            f'<Default Extension="rels" ContentType="{kinds}package.relationships+xml"/><Default Extension="xml" ContentType="application/xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{kinds}officedocument.wordprocessingml.document.main+xml"/></Types>',
        )
        out.writestr(
            "_rels/.rels",
            '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" '
            'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
        )
        body = "".join(f"<w:p><w:r><w:t>{one}</w:t></w:r></w:p>" for one in paragraphs)
        space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
        out.writestr("word/document.xml", f'<?xml version="1.0"?><w:document xmlns:w="{space}"><w:body>{body}</w:body></w:document>')


OFFICE_LINES = ("The bakery opens at nine.", "Bring a bag of your own.")


@pytest.fixture
def office_files(tmp_path):
    pytest.importorskip("markitdown")
    (tmp_path / "note.pdf").write_bytes(pdf_bytes(*OFFICE_LINES))
    write_docx(tmp_path / "note.docx", *OFFICE_LINES)
    return tmp_path


@pytest.mark.parametrize("name", ["note.pdf", "note.docx"])
def test_an_office_file_gives_its_words(office_files, name):
    (row,) = file_rows(office_files / name)
    assert row.values["text"].split() == " ".join(OFFICE_LINES).split()
    assert row.values["id"] == name


@pytest.mark.parametrize("name", ["note.pdf", "note.docx"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_office_file_is_an_error_and_never_its_raw_bytes(office_files, name, damage):
    path = office_files / name
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 4], "text": b"Only words."}[damage])
    with pytest.raises(DocumentError, match=rf"{name} cannot be read as {path.suffix}: \w+\. Save it again, or as text, or take it out\."):
        read_text(path)


@pytest.mark.parametrize("name", ["note.pdf", "note.docx"])
def test_an_office_file_without_the_extra_says_how_to_get_it(office_files, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "markitdown", None)
    with pytest.raises(DocumentError, match=rf"{name}: reading \.\w+ files needs the `office` extra: pip install 'docward\[office\]'"):
        read_text(office_files / name)


@pytest.mark.parametrize("name", ["note.pdf", "note.docx"])
def test_markitdown_without_its_own_parsers_says_the_same(office_files, monkeypatch, name):
    import markitdown.converters._docx_converter as docx
    import markitdown.converters._pdf_converter as pdf

    for module in (docx, pdf):
        monkeypatch.setattr(module, "_dependency_exc_info", (ImportError, ImportError("no parser"), None))
    with pytest.raises(DocumentError, match="needs the `office` extra"):
        read_text(office_files / name)


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_folder_gives_all_its_texts_in_order_of_name_with_relative_paths_as_ids(office_files):
    folder = office_files / "all"
    for name in ("b.txt", "a.md", "C.TXT", "z/y/deep.html", "z/a.txt", "d.htm", "ignored.log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"<p>This is {name}.</p>" if "htm" in name else f"This is {name}.")
    for name in ("note.pdf", "note.docx"):
        (office_files / name).rename(folder / name)
    rows = list(file_rows(folder))
    assert [row.values["id"] for row in rows] == ["C.TXT", "a.md", "b.txt", "d.htm", "note.docx", "note.pdf", "z/a.txt", "z/y/deep.html"]
    assert [row.where for row in rows] == [str(folder / row.values["id"]) for row in rows]
    assert all(row.values["text"] == f"This is {row.values['id']}." for row in rows if "note" not in row.values["id"])
    assert list(file_rows(folder)) == rows


def test_the_order_of_a_folder_is_not_the_disk_s(tmp_path):
    names = [f"{folder:02}/{number:02}.txt" for folder in range(20) for number in range(20)]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in folder_files(tmp_path)] == names


@pytest.mark.parametrize("name", ["d.jsonl", "in/d.csv", "d.parquet"])
def test_a_table_in_a_folder_of_texts_is_not_passed_over_in_silence(tmp_path, name):
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(DocumentError, match=rf"holds {name}\. Name tables one by one under `documents:`; a folder is for texts"):
        list(file_rows(tmp_path))


def test_a_folder_without_texts_names_the_endings_of_texts(tmp_path):
    (tmp_path / "a.log").write_text("x")
    with pytest.raises(DocumentError, match=r"holds no texts\. Wanted files that end in \.txt, \.md, \.html, \.htm, \.pdf, \.docx"):
        list(file_rows(tmp_path))


def test_a_file_name_that_is_no_utf_8_makes_an_id_that_can_be_written(tmp_path):
    name = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    try:
        (tmp_path / name).write_text("A text.")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (found,) = read_documents(tmp_path, label=Label.ORDINARY)
    write_rows(tmp_path / "again.jsonl", [found])
    assert found.id == "caf?.txt"


# ------------------------------------------------------------------------------------------------------------ ids


def test_an_id_is_kept_unless_it_says_nothing(written):
    rows = [{"id": name, "text": f"Bread {place}.", "label": "ordinary"} for place, name in enumerate([0, False, 7, "x", "", None])]
    found = [document.id for document in read_documents(written(*rows))]
    assert found[:4] == ["0", "False", "7", "x"]
    assert len(set(found)) == 6
    assert all(len(name) == 16 for name in found[4:])


def test_five_thousand_texts_of_one_id_get_five_thousand_ids():
    rows = [Document("a", f"Loaf number {place}.", Label.ORDINARY) for place in range(5000)] + [Document("a-1", "Crust.", Label.ORDINARY)]
    assert len({document.id for document in unique_documents(rows)}) == 5001


def test_an_id_that_spells_another_s_new_one_is_not_shared():
    first = unique_documents([Document("a", text, Label.ORDINARY) for text in ("The bread.", "The loaf.")])[1].id
    rows = [Document(name, text, Label.ORDINARY) for name, text in [(first, "x"), ("a", "The bread."), ("a", "The loaf.")]]
    assert len({document.id for document in unique_documents(rows)}) == 3


def test_what_a_message_shows_of_a_value_is_short(written):
    for said in ("x" * 10_000, ["x" * 10_000], {"x" * 10_000: 1}):
        with pytest.raises(DocumentError, match="unknown label") as error:
            read_documents(written({"text": "x", "label": said}))
        assert len(str(error.value)) < 400
    with pytest.raises(DocumentError, match="needs a `text`") as error:
        read_documents(written({"y" * 10_000: "x", "label": "ordinary"}))
    assert len(str(error.value)) < 700


def test_half_a_surrogate_pair_in_any_field_never_stops_a_run(written, tmp_path):
    fields = ("id", "category", "source", "license", "language", "form", "triple")
    (found,) = read_documents(written(json.dumps({"text": "Bread.", "label": "ordinary"} | dict.fromkeys(fields, "a\ud800b"))))
    write_rows(tmp_path / "again.jsonl", [found])
    assert {getattr(found, field) for field in fields} == {"a?b"}


@pytest.mark.parametrize("path", ["none.jsonl", "none", "loop", "dangling.txt"])
def test_a_path_to_nothing_is_named_with_where_it_is_seen_from(tmp_path, path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DocumentError, match=rf"There is no document file or folder {tmp_path}/{path}\. Paths in a recipe are seen from the recipe's folder"):
        list(file_rows(Path(tmp_path / path)))
