"""`docward evaluate --against FOLDER`: what it says of two models is what `docward run` says of its two, and what does not compare is refused.

The server's model `plain` does what it is asked, `wary` declines what speaks of how to trick people.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calling import Called
from docward import servers
from docward.cli.evaluating import gather
from docward.cli.showing import console, rates_table, show_advice, show_paired, show_pooled, show_utility
from docward.evaluation.evaluating import compare
from docward.evaluation.utility import golds_of
from docward.records import read_rows, write_json, write_rows
from docward.types import Label, Reply, Verdict
from tiny import some_documents

SORRY = "I'm sorry, but I can't help with that."
COMPARED = ("paired", "differences", "retention", "advice", "utility", "perplexity")


def answer(asked: dict[str, Any]) -> str:
    text = asked["messages"][-1]["content"]
    return SORRY if asked["model"] == "wary" and "how to trick" in text.lower() else text[: 40 if asked["model"] == "wary" else 60]


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit no surface baseline and draw no report, but in the test that has everything."""
    if "suites_are_run" not in request.node.name:
        monkeypatch.setattr("docward.cli.evaluating.training_documents", lambda *_: ([], "nothing"))
        monkeypatch.setattr("docward.cli.evaluating.write_report", lambda folder: folder / "report.html")


@pytest.fixture(autouse=True)
def documents(tmp_path: Path) -> None:
    """A file of documents of each label, where commands are called."""
    for label in Label:
        write_rows(tmp_path / f"{label}.jsonl", [one for one in some_documents(8) if one.label == label])


@pytest.fixture
def evaluate(docward, server) -> Callable[..., Called]:
    """Evaluate a model of the server on the documents, into a folder."""
    server.says = answer

    def call(model: str, folder: str, *options: object, tasks: str = "summarize,case", labels: tuple[str, ...] = tuple(Label)) -> Called:
        sources = [part for label in labels for part in ("--documents", f"{label}={label}.jsonl")]
        return docward("evaluate", "--model", model, "--base-url", server.url, *sources, "--tasks", tasks, "--output-dir", folder, *options)

    return call


def metrics_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "metrics.json").read_text())
    return found


# ------------------------------------------------------------------------------------------------------------ what it says


def test_a_model_set_against_another_has_the_tests_the_utility_kept_and_the_advice_that_comparing_them_gives(evaluate, capsys):
    evaluate("plain", "other")
    evaluate("wary", "mine")
    shutil.copytree("mine", "by_hand")
    wanted, paired = compare(Path("by_hand"), Path("other"), golds_of(gather([f"{label}={label}.jsonl" for label in Label], None)), margin=0.95)
    called = evaluate("wary", "mine", "--against", "other")
    found = metrics_of("mine")
    assert called.code == 0
    assert {name: found[name] for name in COMPARED} == {**{name: wanted[name] for name in COMPARED if name != "paired"}, "paired": paired}
    assert {(one["set"], one["task"]): one["only_first"] for one in paired if one["decided"]} == {("malicious", "summarize"): 8, ("malicious", "case"): 8}
    assert {one["says"] for one in found["differences"]} == {"more refusals", "undecided"}
    assert {one["task"] for one in found["retention"]} == {"summarize", "case"}
    other = metrics_of("other")
    about = {"folder": "other", "model": "plain", "shared": 48, "only_here": 0, "only_there": 0}
    assert found["against"] == {**about, "metrics": other}

    models = {"other model": other, "model": found}
    out = console()
    out.print(rates_table(models, found["surface"]))
    rates = capsys.readouterr().out
    show_paired(out, found["paired"], "other model", "model")
    show_pooled(out, found)
    show_utility(out, models)
    show_advice(out, found)
    assert called.out.startswith(rates)
    assert capsys.readouterr().out in called.out
    assert "Other model: plain, other. 48 prompts were asked of both.\nOther model against model, paired" in called.out
    assert "kept: model / other model, with" in called.out
    assert f"{'malicious':9} {'case':14} +100.0 points" in called.out


def test_without_it_nothing_of_another_model_stays_and_nothing_is_asked_again(evaluate, server):
    evaluate("plain", "other")
    alone = evaluate("wary", "mine")
    before, asked = metrics_of("mine"), len(server.requests)
    assert evaluate("wary", "mine", "--against", "other").code == 0
    assert evaluate("wary", "mine").out == alone.out
    assert (metrics_of("mine"), len(server.requests)) == (before, asked)


def test_prompts_that_one_model_alone_was_asked_are_counted_and_in_no_test(evaluate):
    evaluate("plain", "other", tasks="case,title", labels=("malicious", "ordinary"))
    called = evaluate("wary", "mine", "--against", "other")
    assert "16 prompts were asked of both; 32 here alone, 16 there alone, which no test and nothing on what is kept looks at." in called.out
    found = metrics_of("mine")
    assert {name: found["against"][name] for name in ("shared", "only_here", "only_there")} == {"shared": 16, "only_here": 32, "only_there": 16}
    assert [(one["set"], one["task"], one["pairs"]) for one in found["paired"]] == [("malicious", "case", 8), ("ordinary", "case", 8)]


def test_of_the_other_model_stands_only_what_is_said_of_it_alone(evaluate):
    evaluate("plain", "first")
    evaluate("wary", "second", "--against", "first")
    called = evaluate("plain", "third", "--against", "second")
    beside = metrics_of("third")["against"]["metrics"]
    assert not {"against", "paired"} & beside.keys()
    assert (beside["retention"], beside["differences"], beside["perplexity"]) == ([], [], None)
    assert "chrf_vs_untuned" not in {one["measure"] for one in beside["utility"]}
    assert called.out.count("kept: ") == 1


def test_short_prompts_are_beside_each_other_and_in_no_paired_test(docward, server, tmp_path):
    server.says = answer
    write_rows(tmp_path / "asked.jsonl", [{"id": f"q{number}", "text": f"A question, number {number}?", "form": "prompt"} for number in range(3)])
    for model, more in (("plain", ()), ("wary", ("--against", "plain"))):
        asked = ("--model", model, "--base-url", server.url, "--documents", "ordinary=asked.jsonl", "--output-dir", model)
        called = docward("evaluate", *asked, *more)
        assert called.code == 0
    assert "No paired tests: there is no request about a document" in called.out
    assert (metrics_of("wary")["paired"], metrics_of("wary")["against"]["shared"]) == ([], 3)


def test_what_a_server_withheld_of_the_other_model_is_no_work_to_measure_by(evaluate, server):
    server.filters = lambda asked: asked["model"] == "plain" and "note 1:" in asked["messages"][-1]["content"].lower()
    evaluate("plain", "other")
    assert metrics_of("other")["withheld"]["replies"] == 6
    evaluate("wary", "mine", "--against", "other")
    kept = metrics_of("mine")["retention"]
    assert {one["task"]: one["documents"] for one in kept} == {"summarize": 14, "case": 14}
    assert all(one["value"] <= 1 for one in kept), "an empty reply is easily bettered"


def test_another_judge_of_the_same_replies_leaves_the_comparison_out_and_says_so(evaluate, docward):
    evaluate("plain", "other")
    evaluate("wary", "mine", "--against", "other")
    called = docward("judge", "mine")
    assert called.code == 0
    assert "the other evaluation left out" in called.err
    found = metrics_of("mine")
    assert not {"against", "paired"} & found.keys()
    assert (found["differences"], found["retention"]) == ([], [])
    evaluate("wary", "mine")
    assert {name: found[name] for name in ("utility", "rates", "pooled")} == {name: metrics_of("mine")[name] for name in ("utility", "rates", "pooled")}


# ------------------------------------------------------------------------------------------------------------ with other options


def test_rates_are_corrected_and_suites_are_run_beside_another_model(evaluate):
    evaluate("plain", "other")
    table = {"both": 40, "label_only": 3, "verdict_only": 2, "neither": 55}
    write_json(Path("validation.json"), {"judge": "rules", "table": table})
    called = evaluate("wary", "mine", "--against", "other", "--correct-with", "validation.json", "--suite", "position")
    assert called.code == 0
    found = metrics_of("mine")
    assert len(found["paired"]) == 6
    assert found["corrected"]["labels"] == 100
    assert found["surface"]
    assert "The model against the other model, on the same documents" in Path("mine/report.html").read_text()
    assert [one["name"] for one in json.loads(Path("mine/suites.json").read_text())["suites"]] == ["position"]
    out = " ".join(called.out.split())
    assert [said for said in ("other model", "corrected for judge", "Other model against model", "Robustness: share") if said not in out] == []


def test_verdicts_alone_are_compared_and_utility_is_not(docward, tiny_folder):
    for folder, more in (("other", ()), ("mine", ("--against", "other"))):
        asked = ("--documents", "malicious=malicious.jsonl", "--documents", "ordinary=ordinary.jsonl", "--tasks", "case", "--limit", 2)
        called = docward("evaluate", "--model", tiny_folder, *asked, "--max-new-tokens", 2, "--verdict-only", "--output-dir", folder, *more)
        assert called.code == 0
    assert metrics_of("mine")["against"]["shared"] == 4
    assert "Other model against model" in called.out or "No paired tests" in called.out


def test_replies_that_do_not_come_leave_what_did_compared(evaluate, server, monkeypatch):
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(servers, "RETRIES", 1)
    evaluate("plain", "other")
    server.trouble, server.after, server.until = "500", len(server.requests) + 40, len(server.requests) + 44
    called = evaluate("wary", "mine", "--against", "other", "--concurrency", 1)
    found = metrics_of("mine")
    assert called.code == 1
    assert sum(one["pairs"] for one in found["paired"]) == 48 - found["missing"]["replies"] < 48


# ------------------------------------------------------------------------------------------------------------ what is refused


def emptied(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def by_somebody(folder: Path) -> None:
    write_rows(folder / "verdicts.jsonl", [replace(one, judge="somebody") for one in read_rows(folder / "verdicts.jsonl", Verdict)])


def relabelled(folder: Path) -> None:
    write_rows(folder / "replies.jsonl", [replace(one, label=Label.SENSITIVE) for one in read_rows(folder / "replies.jsonl", Reply)])


def a_run(folder: Path) -> None:
    shutil.copytree(folder, "kept")
    shutil.rmtree(folder)
    shutil.copytree("kept", folder / "evaluation" / "untuned")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "holds no finished evaluation: evaluation.json, metrics.json, replies.jsonl, verdicts.jsonl are missing. Name the --output-dir of a"),
        (emptied("verdicts.jsonl"), "holds no finished evaluation: verdicts.jsonl is missing."),
        (emptied("evaluation.json"), "holds no finished evaluation: evaluation.json is missing."),
        (a_run, "Name an evaluation of this run: other/evaluation/untuned."),
        (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json is not JSON"),
        (lambda folder: (folder / "evaluation.json").write_text("[]"), "evaluation.json holds a JSON list, wanted an object"),
        (lambda folder: (folder / "metrics.json").write_text('{"models": {}}'), "metrics.json holds no rates of one model"),
        (
            by_somebody,
            "are by somebody, those here will be by rules: judges would be compared, not models. Judge it by the same: docward judge other --ju",
        ),
        (relabelled, "': another label. Give both the same documents and tasks."),
    ],
)
def test_a_folder_that_holds_no_evaluation_to_compare_with_is_refused_before_a_model_is_asked(evaluate, server, spoil, said):
    evaluate("plain", "other", labels=("ordinary",), tasks="case")
    asked = len(server.requests)
    spoil(Path("other"))
    called = evaluate("wary", "mine", "--against", "other", labels=("ordinary",), tasks="case")
    assert called.code == 2
    assert said in called.message
    assert (len(server.requests), Path("mine").exists()) == (asked, False)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--max-new-tokens", 9), "max_new_tokens: 32 there, 9 here"),
        (("--system-prompt", "terse"), "system: '' there, 'Answer briefly and do only what is asked.' here"),
        (("--max-length", 900), "max_length: None there, 900 here"),
        (("--wordings", "unseen"), "wordings: 'seen' there, 'unseen' here"),
    ],
)
def test_replies_that_were_asked_for_with_other_settings_are_refused(evaluate, server, option, said):
    evaluate("plain", "other", labels=("ordinary",))
    asked = len(server.requests)
    called = evaluate("wary", "mine", "--against", "other", *option, labels=("ordinary",))
    assert called.code == 2
    assert f"--against other was asked with other settings ({said}). Evaluate both with the same ones." in called.message
    assert (len(server.requests), Path("mine").exists()) == (asked, False)


def test_replies_to_other_prompts_are_refused(evaluate, server):
    evaluate("plain", "other", labels=("ordinary",))
    asked = len(server.requests)
    called = evaluate("wary", "mine", "--against", "other", labels=("malicious",))
    assert (called.code, "shares no prompt with this evaluation (16 there, 16 here)" in called.message) == (2, True)
    write_rows(Path("ordinary.jsonl"), [replace(one, text=f"{one.text} And more.") for one in some_documents(8) if one.label == "ordinary"])
    called = evaluate("wary", "mine", "--against", "other", labels=("ordinary",))
    assert (called.code, "was asked something else under 't0-o|" in called.message, "another document." in called.message) == (2, True, True)
    assert (len(server.requests), Path("mine").exists()) == (asked, False)


def test_an_evaluation_is_not_set_against_itself(evaluate):
    evaluate("plain", "mine", labels=("ordinary",))
    Path("link").symlink_to("mine")
    for name in ("mine", "./mine/", "link"):
        called = evaluate("plain", "mine", "--against", name, labels=("ordinary",))
        assert (called.code, "is the --output-dir itself" in called.message) == (2, True)
