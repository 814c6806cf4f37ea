"""Public sets under `docward evaluate`: by name and by file, short prompts apart from documents, each set by itself, the surface baseline beside it.

All texts are harmless stand-ins in the sets' published form. The server declines what speaks of a reef, so every rate is known beforehand.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from calling import Docward
from docward.cli.evaluating import gather
from docward.documents.reading import own_documents
from docward.evaluation.statistics import wilson
from docward.records import read_rows, write_rows
from docward.types import Label, Reply, Split
from tiny import some_documents

SORRY = "I'm sorry, but I can't help with that."
OF_DOCUMENTS = ("rates", "pooled", "balance", "attempts", "utility", "differences", "advice", "documents", "sets", "surface")


@dataclass(frozen=True)
class Called:
    """What a command did, and what it left in `metrics.json`."""

    code: int
    out: str
    err: str
    metrics: dict[str, Any]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the tables' rows."""
        return [[cell.strip() for cell in line.split("│")[1:-1]] for line in self.out.splitlines() if line.startswith("│")]


@pytest.fixture
def docward(docward: Docward) -> Callable[..., Called]:
    """Call the command line, and read what it left."""

    def call(*arguments: object) -> Called:
        called = docward(*arguments)
        folder = Path(str(arguments[arguments.index("--output-dir") + 1] if "--output-dir" in arguments else arguments[1]))
        there = folder / "metrics.json"
        return Called(called.code, called.out, called.err, json.loads(there.read_text()) if there.is_file() else {})

    return call


@pytest.fixture
def evaluated(docward, server) -> Callable[..., Called]:
    """Evaluate the server's model on `sources`."""
    server.says = lambda asked: SORRY if "reef" in asked["messages"][-1]["content"] else "It is about bread and boats, and about people who bake and row."

    def call(*sources: object, output_dir: str = "out", tasks: str = "summarize,case", options: tuple[object, ...] = ()) -> Called:
        given = [part for source in sources for part in ("--documents", source)]
        return docward("evaluate", "--model", "big", "--base-url", server.url, *given, "--tasks", tasks, "--output-dir", output_dir, *options)

    return call


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def xstest(tmp_path) -> Path:
    """In the form of xstest_prompts.csv, in order of type: 6 safe prompts of each of two types, 2 of a third, and 7 unsafe ones of two types."""
    kinds = [("homonyms", 6, ""), ("definitions", 6, "reef"), ("safe_targets", 2, ""), ("contrast_homonyms", 5, "reef"), ("contrast_definitions", 2, "")]
    rows = [(kind, number, f"Stand-in question {number} on {kind} {word}?") for kind, many, word in kinds for number in range(many)]
    row = {"focus": "stand-in", "note": ""}
    return table(
        tmp_path / "xstest_prompts.csv",
        [
            {"id": place, "prompt": text, "type": kind, "label": "unsafe" if kind.startswith("contrast_") else "safe"} | row
            for place, (kind, _, text) in enumerate(rows, 1)
        ],
    )


@pytest.fixture
def harmbench(tmp_path) -> Path:
    """In the form of harmbench_behaviors_text_all.csv: 4 standard behaviors, 3 contextual ones, one on a protected work."""
    empty = {"Tags": "", "ContextString": ""}
    alone = [{"Behavior": f"Stand-in behavior {n}", "FunctionalCategory": "standard", "SemanticCategory": "illegal"} | empty for n in range(4)]
    text = "Notes on a harbour and its boats, number {}. The {} is near. They go out at dawn, and come back at noon with what they have found."
    on_texts = [
        {"Behavior": f"Use the notes above, stand-in {n}", "FunctionalCategory": "contextual", "SemanticCategory": "illegal", "Tags": "context"}
        | {"ContextString": text.format(n, "reef" if n else "quay")}
        for n in range(3)
    ]
    work = {"Behavior": "Recite a stand-in", "FunctionalCategory": "copyright", "SemanticCategory": "copyright"} | empty
    return table(tmp_path / "harmbench_behaviors_text_all.csv", [row | {"BehaviorID": f"b{place}"} for place, row in enumerate([*alone, *on_texts, work])])


def own_file(path: Path, label: str, *, word: str = "", many: int = 4) -> Path:
    """Rows of documents with sources of their own, all of one label."""
    found = [one for one in some_documents(many) if one.label == label]
    write_rows(path, [{"text": f"{one.text} {word}", "label": label, "source": "somewhere", "category": one.category} for one in found])
    return path


def declining(hits: int, judged: int) -> dict[str, Any]:
    share = wilson(hits, judged)
    return {"hits": hits, "judged": judged, "unjudged": 0, "value": share.value, "low": pytest.approx(share.low), "high": pytest.approx(share.high)}


def shown(hits: int, judged: int) -> str:
    share = wilson(hits, judged)
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


# ------------------------------------------------------------------------------------------------------------ short prompts


def test_short_prompts_are_asked_as_they_are_once_each_and_counted_by_set_and_label(evaluated, server, xstest, tmp_path):
    found = evaluated(f"xstest={xstest}")
    assert found.code == 0
    prompts = [row["prompt"] for row in csv.DictReader(xstest.read_text().splitlines())]
    assert sorted(asked["messages"][-1]["content"] for asked in server.requests) == sorted(prompts)
    assert all(len(asked["messages"]) == 1 for asked in server.requests)
    replies = read_rows(tmp_path / "out" / "replies.jsonl", Reply)
    assert {(one.task, one.wording, one.instruction, one.source) for one in replies} == {("prompt", 0, "", "xstest")}
    where = {"source": "xstest", "form": "prompt", "category": ""}
    assert found.metrics["prompts"] == [
        where | {"set": "malicious", "documents": 7} | declining(5, 7),
        where | {"set": "sensitive", "documents": 14} | declining(6, 14),
    ]
    assert [row for row in found.rows if row[0].startswith("prompts")] == [
        ["prompts: harmful", "xstest: block rate", shown(5, 7)],
        ["prompts: safe", "xstest: false refusal", shown(6, 14)],
    ]
    assert {name: found.metrics[name] for name in OF_DOCUMENTS} == {
        **{name: [] for name in ("rates", "attempts", "utility", "differences", "sets")},
        "pooled": {},
        "balance": None,
        "advice": {},
        "documents": dict.fromkeys(Label, 0),
        "surface": None,
    }
    assert "The surface baseline does not apply to them" in " ".join(found.out.split())
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_same_command_again_asks_nothing(evaluated, server, xstest):
    first = evaluated(f"xstest={xstest}").metrics
    asked = len(server.requests)
    again = evaluated(f"xstest={xstest}")
    assert (again.metrics, len(server.requests)) == (first, asked)


def test_short_prompts_change_nothing_of_what_is_said_of_documents(evaluated, xstest, harmbench, tmp_path):
    documents = [f"{label}={own_file(tmp_path / f'{label}.jsonl', label, word=word)}" for label, word in (("malicious", "reef"), ("sensitive", ""))]
    alone = evaluated(*documents, output_dir="alone").metrics
    both = evaluated(f"xstest={xstest}", *documents, f"harmbench={harmbench}", output_dir="both").metrics
    assert {name: both[name] for name in OF_DOCUMENTS} == {name: alone[name] for name in OF_DOCUMENTS}
    assert alone["pooled"]["malicious"]["judged"] == 8
    assert alone["prompts"] == []
    assert [(one["source"], one["set"], one["judged"]) for one in both["prompts"]] == [
        ("xstest", "malicious", 7),
        ("harmbench", "malicious", 4),
        ("xstest", "sensitive", 14),
    ]


def test_a_file_of_ones_own_can_hold_short_prompts(evaluated, server, tmp_path):
    write_rows(tmp_path / "mine.jsonl", [{"text": f"A stand-in question {n}?", "form": "prompt"} for n in range(3)])
    found = evaluated("ordinary=mine.jsonl")
    assert len(server.requests) == 3
    assert [row for row in found.rows if "prompts" in row[0]] == [["prompts: ordinary", "mine.jsonl: false refusal", shown(0, 3)]]


def test_two_sets_may_share_a_prompt_and_even_call_it_by_two_labels(evaluated, tmp_path):
    table(tmp_path / "toxic.csv", [{"prompt": "A stand-in that is in two sets", "category": "privacy"}])
    table(tmp_path / "hard.csv", [{"prompt": "A Stand-in that is in two sets", "category": "privacy"}, {"prompt": "Another one", "category": "privacy"}])
    found = evaluated("or_bench_toxic=toxic.csv", "or_bench=hard.csv")
    assert [(one["source"], one["documents"]) for one in found.metrics["prompts"]] == [("or_bench_toxic", 1), ("or_bench", 2)]


def test_another_verdict_leaves_prompts_apart_and_keeps_the_surface_baseline(evaluated, docward, xstest, tmp_path):
    before = evaluated(f"xstest={xstest}", f"malicious={own_file(tmp_path / 'bad.jsonl', 'malicious')}")
    after = docward("judge", "out")
    assert after.code == 0
    assert {name: value for name, value in after.metrics.items() if name != "utility"} == {
        name: value for name, value in before.metrics.items() if name != "utility"
    }
    assert [row for row in after.rows if row[0] in ("malicious", "prompts: harmful")] == [
        row for row in before.rows if row[0] in ("malicious", "prompts: harmful")
    ]


# ------------------------------------------------------------------------------------------------------------ sets of documents


def test_a_block_rate_never_stands_alone_on_the_terminal(evaluated, tmp_path):
    bad, good = own_file(tmp_path / "bad.jsonl", "malicious"), own_file(tmp_path / "good.jsonl", "ordinary")
    alone = evaluated(f"malicious={bad}", output_dir="alone").rows
    assert [row[:3] for row in alone if row[1].startswith("all: ")] == [
        ["malicious", "all: block rate", f"{shown(0, 4)}, 4 no attempt"],
        ["sensitive", "all: over-refusal", "not measured"],
        ["ordinary", "all: false refusal", "not measured"],
    ]
    assert [row[1] for row in evaluated(f"ordinary={good}", output_dir="good").rows if row[1].startswith("all: ")] == ["all: false refusal"]


def test_every_set_stands_by_itself_beside_all_of_them_with_the_surface_baseline(evaluated, harmbench, xstest, tmp_path):
    bad, good = own_file(tmp_path / "bad.jsonl", "malicious"), own_file(tmp_path / "good.jsonl", "ordinary")
    folder = shutil.copytree(Path(__file__).parent.parent / "presets" / "paper", tmp_path / "evaluation")
    sources = [f"harmbench_contextual={harmbench}", f"malicious={bad}", f"paper={folder}", f"ordinary={good}", f"xstest={xstest}"]
    found = evaluated(*sources)
    assert found.code == 0
    sets = {(one["set"], one["source"]): one for one in found.metrics["sets"]}
    assert {name: (one["documents"], one["hits"], one["judged"]) for name, one in sets.items()} == {
        ("malicious", "harmbench_contextual"): (3, 4, 6),
        ("malicious", "bad.jsonl"): (4, 0, 8),
        ("malicious", "paper"): (2, 0, 4),
        ("sensitive", "paper"): (1, 0, 2),
        ("ordinary", "paper"): (1, 0, 2),
        ("ordinary", "good.jsonl"): (4, 0, 8),
    }
    assert all(one["low"] <= one["value"] <= one["high"] for one in sets.values())
    assert found.metrics["pooled"]["malicious"]["judged"] == 18
    surface = found.metrics["surface"]
    assert (surface["fitted_on"], surface["training_documents"]) == ("the starter", sum(one.split == Split.TRAIN for one in own_documents()))
    beside = {(one["set"], one["source"]): one for one in surface["sets"]}
    assert {name: one["judged"] for name, one in beside.items()} == {name: one["documents"] for name, one in sets.items()}
    rows = {(row[0], row[1]): row[2:] for row in found.rows}
    for (label, source), one in beside.items():
        cell = f"{100 * one['value']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
        assert ((label, f"all, {source}") in rows) is (label != "sensitive"), "one set alone is all there is"
        assert rows.get((label, f"all, {source}"), ["", cell])[1] == cell
    assert all(rows[label, f"all: {title}"][1] for label, title in (("malicious", "block rate"), ("sensitive", "over-refusal"), ("ordinary", "false refusal")))
    assert rows["prompts: harmful", "xstest: block rate"] == [shown(5, 7), "does not apply"]
    assert "of the starter" in found.out


def test_two_files_of_one_name_are_two_sets(evaluated, tmp_path):
    for folder, label in (("a", "malicious"), ("b", "malicious"), ("b", "ordinary")):
        (tmp_path / folder).mkdir(exist_ok=True)
        own_file(tmp_path / folder / ("docs.jsonl" if label == "malicious" else "good.jsonl"), label, word=folder)
    found = evaluated("malicious=a/docs.jsonl", "malicious=b/docs.jsonl", "ordinary=b/good.jsonl")
    assert [(one["set"], one["source"]) for one in found.metrics["sets"]] == [
        ("malicious", "a/docs.jsonl"),
        ("malicious", "b/docs.jsonl"),
        ("ordinary", "good.jsonl"),
    ]


def test_a_model_of_a_run_is_set_against_surface_as_that_run_s_training_documents_have_it(docward, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "mine" / "model")
    write_rows(tmp_path / "mine" / "documents.jsonl", [*some_documents(5, split=Split.TRAIN), *some_documents(3, split=Split.TEST)])
    own_file(tmp_path / "good.jsonl", "ordinary")
    same = ("--documents", "ordinary=good.jsonl", "--tasks", "case", "--max-new-tokens", 2, "--output-dir", "out")
    found = docward("evaluate", "--model", "mine/model", *same)
    assert found.code == 0
    assert (found.metrics["surface"]["fitted_on"], found.metrics["surface"]["training_documents"]) == ("the run mine", 15)
    assert "fitted on 15 training documents of the run mine" in found.out


# ------------------------------------------------------------------------------------------------------------ categories, limits


def test_categories_with_a_handful_have_rates_of_their_own(evaluated, xstest):
    found = evaluated(f"xstest={xstest}")
    where = {"source": "xstest", "form": "prompt"}
    assert found.metrics["categories"] == [
        where | {"set": "malicious", "category": "contrast_homonyms", "documents": 5} | declining(5, 5),
        where | {"set": "sensitive", "category": "homonyms", "documents": 6} | declining(0, 6),
        where | {"set": "sensitive", "category": "definitions", "documents": 6} | declining(6, 6),
    ]


def test_a_limit_is_of_each_set_and_label_and_goes_round_the_categories(xstest, harmbench, tmp_path):
    bad = own_file(tmp_path / "bad.jsonl", "malicious")
    found = gather([f"xstest={xstest}", f"harmbench={harmbench}", f"malicious={bad}"], 3)
    counts = {(one.source, one.label): 0 for one in found}
    for one in found:
        counts[one.source, one.label] += 1
    assert counts == {("xstest", "malicious"): 3, ("harmbench", "malicious"): 3, ("bad.jsonl", "malicious"): 3, ("xstest", "sensitive"): 3}
    assert [one.category for one in found if one.label == "sensitive"] == ["homonyms", "definitions", "safe_targets"]
    assert len(gather([f"xstest={xstest}"], None)) == len(gather([f"xstest={xstest}"], 99)) == 21


def test_the_starter_is_its_held_out_documents_by_name_as_by_default_and_a_limit_takes_its_first_ones():
    held_out = [one for label in Label for one in own_documents() if one.split == Split.TEST and one.label == label]
    assert [one.id for one in gather(["starter"], None)] == [one.id for one in gather([], None)] == [one.id for one in held_out]
    for limit in (1, 10, 18):
        first = [one for label in Label for one in [each for each in held_out if each.label == label][:limit]]
        assert [one.id for one in gather([], limit)] == [one.id for one in first]


def test_of_the_plain_documents_too_only_those_held_out_are_given_by_name():
    held_out = [one.id for label in Label for one in own_documents("plain") if one.split == Split.TEST and one.label == label]
    assert held_out
    assert [one.id for one in gather(["plain"], None)] == held_out


# ------------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("source", "nearest"), [("xtest", "xstest"), ("or-bench", "or_bench"), ("malicous=bad.jsonl", "malicious"), ("harmbnch=x", "harmbench")]
)
def test_an_unknown_name_gets_the_nearest(evaluated, source, nearest):
    found = evaluated(source)
    said = " ".join(found.err.split())
    assert found.code == 2
    assert f"--documents {source}: wanted LABEL=FILE" in said
    assert f"or a public set, NAME or NAME=FILE (did you mean {nearest!r}?). Sets: starter, " in said


def test_a_file_of_the_wrong_form_says_what_was_looked_for_and_found(evaluated, harmbench, server):
    found = evaluated(f"xstest={harmbench}")
    said = " ".join(found.err.split())
    assert found.code == 2
    assert "harmbench_behaviors_text_all.csv:2: the source xstest needs the columns prompt, type, and prompt, type is not there (found Behavior, " in said
    assert "Is this the right file of https://huggingface.co/datasets/Paul/XSTest?" in said
    assert server.requests == []


def test_a_file_of_the_right_form_with_nothing_of_use_is_named(evaluated, tmp_path):
    table(tmp_path / "hard.csv", [{"prompt": "A stand-in that is left out", "category": "sexual"}])
    found = evaluated("or_bench=hard.csv")
    assert found.code == 2
    assert "hard.csv gives no documents: it is empty, or none of its rows is of use here." in found.err


def test_suites_are_of_documents(docward, tiny_folder, xstest, tmp_path):
    same = ("evaluate", "--model", tiny_folder, "--documents", f"xstest={xstest}", "--suite", "position", "--tasks", "case", "--max-new-tokens", 2)
    alone = docward(*same, "--output-dir", "alone")
    assert (alone.code, alone.metrics) == (2, {})
    assert "there are only short prompts here" in alone.err
    own_file(tmp_path / "good.jsonl", "ordinary", many=2)
    both = docward(*same, "--documents", "ordinary=good.jsonl", "--output-dir", "both")
    assert both.code == 0
    assert len(both.metrics["prompts"]) == 2
    asked = {one.document_id for one in read_rows(tmp_path / "both" / "suites" / "position" / "replies.jsonl", Reply)}
    assert len(asked) == 2


def test_a_set_by_name_comes_from_the_hub(evaluated, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    write_rows(tmp_path / "hub" / "train.jsonl", [{"prompt": f"A stand-in {n} for a reef", "category": "privacy"} for n in range(2)])
    load, asked = datasets.load_dataset, []

    def from_folder(place: str, name: str | None, **more: Any) -> Any:
        asked.append((place, name, more["split"]))
        return load(str(tmp_path / "hub"), split="train")

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    found = evaluated("or_bench_80k")
    assert asked == [("bench-llm/or-bench", "or-bench-80k", "train")]
    assert [row for row in found.rows if "prompts" in row[0]] == [["prompts: safe", "or_bench_80k: false refusal", shown(2, 2)]]
