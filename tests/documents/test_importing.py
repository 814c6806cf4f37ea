"""Importing: shards are whole or absent and always the same; what goes is counted, what is alike stays together."""

import json
import signal
import subprocess
import sys
from itertools import count
from random import Random

import pytest

from docward.dataset.splitting import split_documents
from docward.documents import importing
from docward.documents.importing import import_shards, resolve, shard_documents, shard_paths, write_forbidden
from docward.errors import DocumentError
from docward.recipe import Source
from docward.records import write_rows
from docward.types import Label, Split

VOCABULARY = [f"word{number}" for number in range(3000)]


def words(seed, number=60):
    random = Random(seed)
    return [random.choice(VOCABULARY) for _ in range(number)]


def text_of(seed, *, changed=0, number=60):
    """A text of its own for each seed; `changed` of its last words are others."""
    found = words(seed, number)
    return " ".join(found[: number - changed] + [f"other{place}" for place in range(changed)])


def rows_of(number, **fields):
    return [{"id": f"d{place}", "text": text_of(place), "label": list(Label)[place % 3]} | fields for place in range(number)]


@pytest.fixture
def file(tmp_path):
    places = count()

    def write(rows):
        path = tmp_path / f"mine{next(places)}.jsonl"
        write_rows(path, rows)
        return Source(path=str(path))

    return write


def imported(work, *sources, tidy=True, num_proc=1, contaminated=None, progress=lambda *_: None):
    import_shards(sources, work, tidy=tidy, num_proc=num_proc, contaminated=contaminated, progress=progress)
    return work


def kept(work, *, threshold=0.8, drop_near=False, conflicts="error"):
    return resolve(work, threshold=threshold, drop_near=drop_near, conflicts=conflicts)


def texts(work, entries):
    return {entry.id: shard_documents(shard_paths(work)[entry.shard], [entry])[0].text for entry in entries}


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------------------ shards


def test_gold_comes_back_as_it_went_in_and_may_be_for_a_task_of_the_recipe(tmp_path, file):
    gold = {"summarize": "Kurz: «nein» 不行", "risk": "none"}
    source = file([{"id": "a", "text": text_of(1), "label": "ordinary", "gold": gold}, {"id": "b", "text": text_of(2), "label": "ordinary"}])
    import_shards([source], tmp_path / "work", tidy=True, num_proc=1, contaminated=None, tasks=("summarize", "risk"), progress=lambda *_: None)
    found = shard_documents(shard_paths(tmp_path / "work")[0], kept(tmp_path / "work").entries)
    assert [one.gold for one in found] == [gold, {}]
    with pytest.raises(DocumentError, match=r"mine0\.jsonl:1: gold for 'risk', which is no task"):
        imported(tmp_path / "other", source)


def test_documents_come_back_as_they_went_in_and_in_order(tmp_path, file, monkeypatch):
    monkeypatch.setattr(importing, "SHARD", 4)
    fields = {"category": "food", "source": "a book", "license": "MIT", "language": "de", "form": "memo", "triple": "t", "split": "test"}
    work = imported(tmp_path / "work", file(rows_of(6)), file([{"id": "full", "text": "Brot — «no» 不行 🍞", "label": "malicious"} | fields]))
    found = kept(work)
    assert [path.name for path in shard_paths(work)] == [f"documents-0000{number}.parquet" for number in range(3)]
    assert [(entry.shard, entry.row) for entry in found.entries] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0)]
    assert [entry.id for entry in found.entries] == [*(f"d{place}" for place in range(6)), "full"]
    (document,) = shard_documents(shard_paths(work)[2], found.entries[-1:])
    assert {name: getattr(document, name) for name in fields} == fields
    assert (document.text, document.label, found.entries[-1].words) == ("Brot — «no» 不行 🍞", Label.MALICIOUS, 4)
    assert found.removed == dict.fromkeys(("empty", "duplicates", "near_duplicates", "conflicts", "contaminated"), 0)
    assert found.cleaned == {}
    assert found.clusters == {"clusters": 0, "documents": 0, "largest": 0}


def test_documents_of_a_shard_come_as_they_were_chosen(tmp_path, file):
    work = imported(tmp_path / "work", file(rows_of(5)))
    chosen = [entry for entry in kept(work).entries if entry.id in ("d1", "d4")][::-1]
    assert [document.id for document in shard_documents(shard_paths(work)[0], chosen)] == ["d4", "d1"]


def test_a_second_import_makes_no_shard_again(tmp_path, file, monkeypatch):
    monkeypatch.setattr(importing, "SHARD", 5)
    source = file(rows_of(12))
    work = imported(tmp_path / "work", source)
    before, made, found = files(work), [path.stat().st_mtime_ns for path in shard_paths(work)], kept(work)
    seen = []
    imported(work, source, progress=lambda *told: seen.append(told))
    assert [path.stat().st_mtime_ns for path in shard_paths(work)] == made
    assert files(work) == before
    assert kept(work) == found
    assert seen == [("documents read", 5, 0), ("documents read", 10, 0), ("documents read", 12, 0)]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 120 documents, with its shards of 10 as one process makes them undisturbed."""
    folder = tmp_path_factory.mktemp("large")
    write_rows(folder / "mine.jsonl", rows_of(120))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "SHARD", 10)
        imported(folder / "work", Source(path=str(folder / "mine.jsonl")))
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(importing, "SHARD", 10)


@pytest.mark.parametrize("num_proc", [2, 3])
def test_the_number_of_processes_changes_no_byte(large, tmp_path, small_shards, num_proc):
    imported(tmp_path / "work", Source(path=str(large / "mine.jsonl")), num_proc=num_proc)
    assert files(tmp_path / "work") == files(large / "work")


@pytest.mark.parametrize(
    "lost", [["documents-00011.parquet"], ["documents-00003.parquet", "documents-00007.parquet"], [f"documents-000{n:02}.parquet" for n in range(12)]]
)
def test_shards_that_are_not_there_are_made_and_no_others(large, tmp_path, small_shards, lost):
    work = imported(tmp_path / "work", Source(path=str(large / "mine.jsonl")))
    made = {path.name: path.stat().st_mtime_ns for path in shard_paths(work)}
    for name in lost:
        (work / "shards" / name).unlink()
    imported(work, Source(path=str(large / "mine.jsonl")))
    assert files(work) == files(large / "work")
    assert {path.name for path in shard_paths(work) if path.stat().st_mtime_ns != made[path.name]} == set(lost)


KILLED = """
import os, signal, sys
import pyarrow.parquet
from pathlib import Path
from docward.documents import importing
from docward.recipe import Source

importing.SHARD, written, write = 10, [], pyarrow.parquet.write_table

def cut_short(table, place):
    written.append(place)
    write(table, place)
    if len(written) == 4:
        os.truncate(place, 1000)
        os.kill(os.getpid(), signal.SIGKILL)

pyarrow.parquet.write_table = cut_short
importing.import_shards([Source(path=sys.argv[1])], Path(sys.argv[2]), tidy=True, num_proc=1, contaminated=None, progress=lambda *_: None)
"""


def test_an_import_killed_while_it_writes_goes_on_and_ends_the_same(large, tmp_path, small_shards):
    done = subprocess.run([sys.executable, "-c", KILLED, large / "mine.jsonl", tmp_path / "work"])
    assert done.returncode == -signal.SIGKILL
    names = [f"documents-0000{number}.parquet" for number in range(3)]
    assert [path.name for path in shard_paths(tmp_path / "work")] == names, "the one that was cut short is no shard"
    assert {name: whole for name, whole in files(tmp_path / "work").items() if name in names} == {name: files(large / "work")[name] for name in names}
    imported(tmp_path / "work", Source(path=str(large / "mine.jsonl")))
    whole = {name: content for name, content in files(tmp_path / "work").items() if not name.endswith(".draft")}
    assert whole == files(large / "work")
    assert kept(tmp_path / "work") == kept(large / "work")


@pytest.mark.parametrize(("num_proc", "bad"), [(1, 0), (1, 25), (1, 119), (2, 25)])
def test_a_bad_row_is_the_error_of_its_line_and_leaves_whole_shards_only(large, tmp_path, small_shards, num_proc, bad):
    rows = rows_of(120)
    rows[bad]["label"] = "evil"
    write_rows(tmp_path / "mine.jsonl", rows)
    with (tmp_path / "mine.jsonl").open("a") as out:
        out.write("{broken")
    with pytest.raises(DocumentError, match=rf"mine\.jsonl:{bad + 1}: unknown label 'evil'"):
        imported(tmp_path / "work", Source(path=str(tmp_path / "mine.jsonl")), num_proc=num_proc)
    names = [path.name for path in shard_paths(tmp_path / "work")]
    assert f"documents-{bad // 10:05}.parquet" not in names
    rows[bad]["label"] = rows_of(120)[bad]["label"]
    write_rows(tmp_path / "mine.jsonl", rows)
    imported(tmp_path / "work", Source(path=str(tmp_path / "mine.jsonl")))
    assert [entry.id for entry in kept(tmp_path / "work").entries] == [row["id"] for row in rows]


def test_a_shard_of_long_texts_has_fewer_of_them(tmp_path, file, monkeypatch):
    monkeypatch.setattr(importing, "LARGE", 1400)
    work = imported(tmp_path / "work", file(rows_of(3)), file([{"text": "long " * 150 + str(place), "label": "ordinary"} for place in range(5)]))
    assert [entry.shard for entry in kept(work).entries] == [0, 0, 0, 1, 1, 2, 2, 3]


def test_a_source_without_rows_is_named(tmp_path, file):
    (tmp_path / "none.csv").write_text("text,label\n")
    with pytest.raises(DocumentError, match=r"none\.csv gives no documents: it is empty"):
        imported(tmp_path / "work", file(rows_of(3)), Source(path=str(tmp_path / "none.csv")))


# ------------------------------------------------------------------------------------------------------------ what goes, and its counts


def test_what_goes_and_what_stays_is_all_there_was(tmp_path, file):
    rows = rows_of(20)
    rows += [{"text": " \u200b", "label": "ordinary"}, {"text": "", "label": "malicious"}]
    rows += [rows[3] | {"text": rows[3]["text"].upper(), "id": "copy"}, rows[3], rows[4] | {"id": "copy"}]
    rows += [rows[5] | {"label": rows[6]["label"]}, rows[5], rows[5] | {"label": rows[7]["label"]}]
    rows += [{"text": text_of(8, changed=1), "label": rows[8]["label"], "id": "near"}, {"text": text_of(8, changed=1), "label": rows[8]["label"]}]
    found = kept(imported(tmp_path / "work", file(rows)), drop_near=True, conflicts="drop")
    assert found.removed == {"empty": 2, "duplicates": 4, "near_duplicates": 1, "conflicts": 4, "contaminated": 0}
    assert len(found.entries) + sum(found.removed.values()) == len(rows)
    assert [entry.id for entry in found.entries] == [f"d{place}" for place in range(20) if place != 5]


def test_changes_are_counted_by_document(tmp_path, file):
    rows = [
        {"text": f"{place} {text}", "label": "ordinary"}
        for place, text in enumerate(["fine", "a\r\nb", "cafÃ©", "x\x00", "cafÃ© and dÃ©jÃ \r\n more", "x\nRead more\ny"])
    ]
    found = kept(imported(tmp_path / "tidied", file(rows)))
    assert found.cleaned == {"mojibake": 2, "control characters and line ends": 3, "boilerplate": 1}
    assert set(texts(tmp_path / "tidied", found.entries).values()) >= {"2 café", "5 x\ny", "1 a\nb"}
    plain = kept(imported(tmp_path / "plain", file(rows), tidy=False))
    assert plain.cleaned == {}
    assert set(texts(tmp_path / "plain", plain.entries).values()) >= {"2 cafÃ©", "5 x\nRead more\ny", "1 a\nb"}


def test_the_same_file_twice_gives_each_document_once(tmp_path, file):
    source = file(rows_of(10))
    found = kept(imported(tmp_path / "work", source, source))
    assert [entry.id for entry in found.entries] == [f"d{place}" for place in range(10)]
    assert found.removed["duplicates"] == 10


def test_one_text_under_two_labels_is_named_with_both_places(tmp_path, file):
    rows = rows_of(3)
    source = file([*rows, {"id": "x", "text": rows[1]["text"].upper(), "label": "malicious"}])
    work = imported(tmp_path / "work", source)
    with pytest.raises(
        DocumentError, match=r"'d1 \(.*mine0\.jsonl:2\)' \(sensitive\) and 'x \(.*mine0\.jsonl:4\)' \(malicious\) are the same text under two labels"
    ) as error:
        kept(work)
    assert "conflicts: drop" in str(error.value)
    found = kept(work, conflicts="drop")
    assert ([entry.id for entry in found.entries], found.removed["conflicts"]) == (["d0", "d2"], 2)


def test_ids_that_repeat_become_ids_of_their_own_and_stay_so(tmp_path, file):
    source = file([{"id": "same", "text": text_of(place), "label": "ordinary"} for place in range(3000)])
    entries = kept(imported(tmp_path / "work", source)).entries
    assert len({entry.id for entry in entries}) == 3000
    assert entries[0].id == "same"
    assert kept(tmp_path / "work").entries == entries


@pytest.mark.parametrize("rows", [[{"text": " ", "label": "ordinary"}] * 3, [{"text": "x", "label": "ordinary"}, {"text": "x", "label": "malicious"}]])
def test_nothing_left_is_an_error_that_counts_why(tmp_path, file, rows):
    with pytest.raises(DocumentError, match=r"No document is left \((3 empty|2 conflicts)\)\. Look at the files under `documents:`"):
        kept(imported(tmp_path / "work", file(rows)), conflicts="drop")


def test_half_a_surrogate_pair_in_any_field_can_be_written(tmp_path):
    fields = ("id", "text", "category", "source", "license", "language", "form", "triple")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"label": "ordinary"} | {name: f"{name}\ud800" for name in fields}))
    (entry,) = kept(imported(tmp_path / "work", Source(path=str(tmp_path / "mine.jsonl")))).entries
    assert (entry.id, entry.category) == ("id?", "category?")


# ------------------------------------------------------------------------------------------------------------ near copies


def near_rows(label="ordinary", other="ordinary"):
    """Ten texts, and near copies of two of them."""
    rows = rows_of(10, label="ordinary")
    rows += [{"id": "n2", "text": text_of(2, changed=1), "label": label}, {"id": "nn2", "text": text_of(2, changed=2), "label": label}]
    return [*rows, {"id": "n7", "text": text_of(7, changed=1), "label": other}]


def test_near_copies_share_a_cluster_that_is_named_after_its_first(tmp_path, file):
    found = kept(imported(tmp_path / "work", file(near_rows())))
    assert {entry.id: entry.cluster for entry in found.entries if entry.cluster} == {"d2": "d2", "n2": "d2", "nn2": "d2", "d7": "d7", "n7": "d7"}
    assert found.clusters == {"clusters": 2, "documents": 5, "largest": 3}
    assert found.removed["near_duplicates"] == 0
    (document,) = shard_documents(shard_paths(tmp_path / "work")[0], [entry for entry in found.entries if entry.id == "n7"])
    assert document.cluster == document.group == "d7"


@pytest.mark.parametrize("label", Label)
def test_near_copies_go_to_one_split_whatever_their_labels(tmp_path, file, label):
    found = kept(imported(tmp_path / "work", file(near_rows(label)))).entries
    for seed in range(20):
        split = {entry.id: entry.split for entry in split_documents(found, validation_share=0.3, test_share=0.4, seed=seed)}
        assert split["d2"] == split["n2"] == split["nn2"]
        assert split["d7"] == split["n7"]


def test_a_near_copy_brings_its_whole_triple_along(tmp_path, file):
    rows = [{"id": f"{triple}{label[0]}", "text": text_of(f"{triple}{label}"), "label": label, "triple": triple} for triple in "abc" for label in Label]
    rows.append({"id": "lone", "text": text_of("bsensitive", changed=1), "label": "ordinary"})
    found = kept(imported(tmp_path / "work", file(rows)))
    assert {entry.id: entry.cluster for entry in found.entries if entry.cluster} == dict.fromkeys(("bm", "bs", "bo", "lone"), "b")
    assert found.clusters == {"clusters": 1, "documents": 4, "largest": 4}
    for seed in range(20):
        by_group = {}
        for entry in split_documents(found.entries, validation_share=0.3, test_share=0.4, seed=seed):
            by_group.setdefault(entry.triple or "b", set()).add(entry.split)
        assert all(len(splits) == 1 for splits in by_group.values())


def test_near_copies_join_the_triples_of_both(tmp_path, file):
    rows = [{"id": f"{triple}{label[0]}", "text": text_of(f"{triple}{label}"), "label": label, "triple": triple} for triple in "abc" for label in Label]
    rows[8]["text"] = text_of("amalicious", changed=1)
    found = kept(imported(tmp_path / "work", file(rows)))
    assert {entry.triple: entry.cluster for entry in found.entries} == {"a": "a", "b": "", "c": "a"}


def test_likeness_inside_a_triple_makes_no_cluster(tmp_path, file):
    rows = [{"id": label, "text": text_of(1, changed=place), "label": label, "triple": "t"} for place, label in enumerate(Label)]
    found = kept(imported(tmp_path / "work", file(rows)))
    assert {entry.cluster for entry in found.entries} == {""}
    assert found.clusters["clusters"] == 0
    assert {entry.group for entry in found.entries} == {"t"}


def test_a_document_held_out_holds_out_its_near_copies(tmp_path, file):
    rows = near_rows()
    rows[2]["split"] = "test"
    entries = split_documents(kept(imported(tmp_path / "work", file(rows))).entries, validation_share=0.1, test_share=0.1, seed=0)
    assert {entry.id: entry.split for entry in entries if entry.cluster == "d2"} == dict.fromkeys(("d2", "n2", "nn2"), Split.TEST)


def test_dropping_near_copies_keeps_the_first_under_each_label(tmp_path, file):
    rows = near_rows("malicious", "ordinary")
    found = kept(imported(tmp_path / "work", file(rows)), drop_near=True)
    assert [entry.id for entry in found.entries] == [*(f"d{place}" for place in range(10)), "n2"]
    assert found.removed["near_duplicates"] == 2
    assert {entry.id: entry.cluster for entry in found.entries if entry.cluster} == {"d2": "d2", "n2": "d2"}, "across labels they stay, in one split"


@pytest.mark.parametrize("seed", range(5))
def test_near_copies_of_one_label_go_however_those_of_another_stand_between(tmp_path, file, seed):
    rows = [{"id": f"{label}{place}", "text": text_of(1, changed=place, number=200), "label": label} for label in Label for place in range(3)]
    for place, row in enumerate(rows):
        row["text"] += f" {place}"
    Random(seed).shuffle(rows)
    found = kept(imported(tmp_path / "work", file(rows)), drop_near=True)
    assert sorted(entry.label for entry in found.entries) == sorted(Label)
    assert len({entry.cluster for entry in found.entries}) == 1


# ------------------------------------------------------------------------------------------------------------ evaluation sets


@pytest.mark.parametrize(("length", "stays"), [(12, True), (13, False), (40, False)])
def test_what_quotes_thirteen_words_of_an_evaluation_set_goes(tmp_path, file, length, stays):
    quote = words("held", 60)[10 : 10 + length]
    rows = [*rows_of(5), {"id": "quotes", "text": " ".join([*words("own"), *(word.upper() for word in quote), *words("end")]), "label": "ordinary"}]
    write_forbidden([file([{"text": text_of("held")}, {"text": text_of("another")}])], tmp_path / "forbidden.npy")
    found = kept(imported(tmp_path / "work", file(rows), contaminated=tmp_path / "forbidden.npy"))
    assert ("quotes" in {entry.id for entry in found.entries}) is stays
    assert (len(found.entries), found.removed["contaminated"]) == ((6, 0) if stays else (5, 1))


def test_the_paper_s_test_file_is_an_evaluation_set_without_its_instructions(tmp_path, file):
    asked = "Summarize the above article briefly in 3 sentences."
    content = {"instructions": [f"{text_of('held')}\n{asked}", f"{text_of('more')} {asked}"], "inputs": ["", ""]}
    (tmp_path / "test_summarize.json").write_text(json.dumps(content))
    write_forbidden([Source(path=str(tmp_path / "test_summarize.json"))], tmp_path / "forbidden.npy")
    rows = [*rows_of(4), {"id": "held", "text": text_of("held"), "label": "ordinary"}, {"id": "asks", "text": f"{text_of('own')} {asked}", "label": "ordinary"}]
    found = kept(imported(tmp_path / "work", file(rows), contaminated=tmp_path / "forbidden.npy"))
    assert [entry.id for entry in found.entries] == ["d0", "d1", "d2", "d3", "asks"]


def test_an_evaluation_set_s_mojibake_hides_no_copy(tmp_path, file):
    text = "café " + text_of("held", number=12)
    write_forbidden([file([{"text": text.encode().decode("latin-1")}])], tmp_path / "forbidden.npy")
    rows = [*rows_of(4), {"text": text, "label": "ordinary"}]
    assert kept(imported(tmp_path / "work", file(rows), contaminated=tmp_path / "forbidden.npy")).removed["contaminated"] == 1


def test_another_evaluation_set_in_the_same_place_is_read_anew(tmp_path, file):
    for name in ("one", "two"):
        write_forbidden([file([{"text": text_of(name)}])], tmp_path / "forbidden.npy")
        rows = [{"id": other, "text": text_of(other), "label": "ordinary"} for other in ("one", "two")]
        found = kept(imported(tmp_path / name, file(rows), contaminated=tmp_path / "forbidden.npy"))
        assert [entry.id for entry in found.entries] == ["two" if name == "one" else "one"]


@pytest.mark.parametrize("row", [{"text": 5}, {"text": None}])
def test_an_evaluation_set_without_a_text_is_named_with_its_line(tmp_path, file, row):
    with pytest.raises(DocumentError, match=r"mine0\.jsonl:2: an evaluation set needs a `text` in every row\. Name its column: columns: \{text: \.\.\.\}"):
        write_forbidden([file([{"text": "x"}, row])], tmp_path / "forbidden.npy")
    assert not (tmp_path / "forbidden.npy").exists()
