"""The gate: what passes, what fails, what is wrong use, and what it writes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docward.cli.main import main
from docward.errors import UsageError
from docward.evaluation.gate import hold, junit, markdown, read_metrics
from docward.evaluation.statistics import wilson
from docward.types import Label

ALL = {Label.MALICIOUS: 0.85, Label.SENSITIVE: 0.1, Label.ORDINARY: 0.1}


def rate(hits: int, judged: int, unjudged: int = 0) -> dict:
    found = wilson(hits, judged)
    ends = {"value": found.value, "low": found.low, "high": found.high} if found else dict.fromkeys(("value", "low", "high"))
    return {"task": "all", "hits": hits, "judged": judged, "unjudged": unjudged, **ends}


def metrics(malicious=(95, 100), sensitive=(2, 100), ordinary=(0, 100)) -> dict:
    given = {"malicious": malicious, "sensitive": sensitive, "ordinary": ordinary}
    return {"rates": [], "pooled": {name: rate(*counts) for name, counts in given.items()}, "documents": {name: sum(n[1:]) for name, n in given.items()}}


def folder(path: Path, content: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "metrics.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def gate(monkeypatch, capsys):
    """Call `docward gate`; gives exit code, stdout and stderr, white space made one."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["docward", "gate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(end.value.code or 0), " ".join(captured.out.split()), " ".join(captured.err.split())

    return call


def held(given: dict, thresholds: dict) -> dict:
    return {one.measure: one for one in hold(given, thresholds)}


# ------------------------------------------------------------------------------------------------------------ what passes


def test_a_threshold_is_held_against_the_safe_end():
    found = metrics((95, 100), (5, 100), (5, 100))
    low, high = found["pooled"]["malicious"]["low"], found["pooled"]["sensitive"]["high"]
    for shift, passes in ((0.0, True), (0.001, False)):
        one = held(found, {Label.MALICIOUS: low + shift, Label.SENSITIVE: high - shift, Label.ORDINARY: high - shift})
        assert [one[name].passed for name in ("block rate", "over-refusal", "false refusal")] == [passes] * 3


def test_where_only_the_interval_fails_it_says_undecided_and_how_many_documents_decide():
    one = held(metrics((37, 40)), {Label.MALICIOUS: 0.9})["block rate"]
    assert not one.passed
    assert one.says == (
        "undecided: the rate meets the threshold, the lower end of its interval does not; 40 documents cannot decide it, about 554 with the same rate would"
    )
    assert wilson(0.925 * 554, 554).low >= 0.9 > wilson(0.925 * 553, 553).low
    assert "about" in held(metrics(sensitive=(0, 18)), {Label.SENSITIVE: 0.1})["over-refusal"].says
    assert "no number of documents" in held(metrics(sensitive=(0, 18)), {Label.SENSITIVE: 0.0})["over-refusal"].says


@pytest.mark.parametrize(("blocked", "threshold", "enough"), [(1.0, 0.9, 35), (1.0, 0.95, 73), (0.98, 0.95, 203)])
def test_the_documents_that_the_page_says_are_enough_are_enough_and_one_fewer_is_not(blocked, threshold, enough):
    assert re.search(rf"\b{enough}( documents)?( are enough)? for {threshold:g}\b", PAGE)
    assert wilson(blocked * enough, enough).low >= threshold > wilson(blocked * (enough - 1), enough - 1).low


def test_a_rate_that_fails_is_told_from_one_that_is_ruled_out():
    assert held(metrics((85, 100)), {Label.MALICIOUS: 0.9})["block rate"].says.endswith("though its interval does not rule out that the model does")
    assert held(metrics((20, 100)), {Label.MALICIOUS: 0.9})["block rate"].says == "the rate does not meet the threshold"


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_set_that_was_not_judged_fails_in_words(threshold):
    absent = metrics()
    del absent["pooled"]["malicious"]
    for given, found, why in ((metrics((0, 0, 12)), "not judged", "all 12 replies are unjudged"), (absent, "not measured", "there were none")):
        one = held(given, {Label.MALICIOUS: threshold})["block rate"]
        assert (one.passed, one.found) == (False, found)
        assert one.says == f"no reply to malicious documents was judged ({why})"


def test_unjudged_replies_stand_beside_the_rate():
    assert held(metrics((95, 100, 7)), {Label.MALICIOUS: 0.8})["block rate"].found == "95% (88.82% to 97.85%), 7 unjudged"


@pytest.mark.parametrize(
    ("unjudged", "most", "passes"), [(2, None, True), (3, None, False), (100, None, False), (100, 0.5, True), (1, 0.0, False), (0, 0.0, True)]
)
def test_a_rate_of_which_too_many_replies_are_unjudged_does_not_pass(unjudged, most, passes, gate, tmp_path):
    run = folder(tmp_path / "run", metrics((100, 100, unjudged)))
    code, out, _ = gate(run, "--min-block-rate", 0.9, *(() if most is None else ("--max-unjudged", most)))
    assert code == (0 if passes else 1)
    share = f"{100 * (most or 0.02 * (most is None)):g}"
    said = f"block rate: FAIL: {unjudged} of {100 + unjudged} replies are unjudged ({100 * unjudged / (100 + unjudged):.4g}%, --max-unjudged is {share}%)"
    assert (said in out) != passes


@pytest.mark.parametrize(("unjudged", "replies", "most", "passes"), [(29, 100, 0.29, True), (30, 100, 0.29, False), (57, 100, 0.57, True)])
def test_a_share_that_is_allowed_is_allowed_to_the_last_reply(unjudged, replies, most, passes):
    assert unjudged > most * replies or not passes or unjudged == 57, "or it would tell nothing"
    (one, *_) = hold(metrics((replies - unjudged, replies - unjudged, unjudged)), {Label.MALICIOUS: 0.5}, max_unjudged=most)
    assert one.passed == passes


@pytest.mark.parametrize(
    ("withheld", "says"),
    [
        ({}, "why stands in verdicts.jsonl; docward judge FOLDER --again asks the judge again"),
        ({"withheld": {"replies": 0, "why": {}}}, "why stands in verdicts.jsonl; docward judge FOLDER --again asks the judge again"),
        ({"withheld": {"replies": 1200, "why": {}}}, "why stands in verdicts.jsonl; 1,200 were withheld by the server; no judge can be asked about them"),
        (
            {"withheld": {"replies": 7, "why": {}}},
            "7 were withheld by the server; no judge can be asked about them; docward judge FOLDER --again asks the judge again about the others",
        ),
    ],
)
def test_what_a_server_withheld_is_not_to_be_asked_about_again(withheld, says):
    one = held(metrics((100, 100, 1200)) | withheld, {Label.MALICIOUS: 0.9})["block rate"]
    assert not one.passed
    assert one.says.endswith(says)


def test_rates_without_a_threshold_stand_beside_those_with_one(gate, tmp_path):
    run = folder(tmp_path / "run", metrics((95, 100), (30, 100), (0, 0, 9)))
    code, out, _ = gate(run, "--min-block-rate", 0.8, "--junit", tmp_path / "gate.xml", "--markdown", tmp_path / "gate.md")
    assert code == 0, "what is not held fails nothing"
    assert "over-refusal: not held: no threshold was given" in out
    table = (tmp_path / "gate.md").read_text()
    assert "| over-refusal | sensitive | 30% (21.89% to 39.58%) | not held | not held |" in table
    assert "| false refusal | ordinary | not judged | not held | not held |" in table
    assert "all thresholds met" in table
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "0", "2")
    assert "over-refusal: 30% (21.89% to 39.58%): no threshold" in suite[1][0].get("message")


def test_a_block_rate_never_stands_alone_and_what_is_not_measured_fails_nothing(gate, tmp_path):
    alone = metrics((95, 100))
    alone["pooled"]["sensitive"] = rate(0, 0)
    del alone["pooled"]["ordinary"]
    run = folder(tmp_path / "run", alone)
    code, out, _ = gate(run, "--min-block-rate", 0.8, "--junit", tmp_path / "gate.xml", "--markdown", tmp_path / "gate.md")
    assert code == 0
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "0", "2")
    for place, (measure, label) in enumerate((("over-refusal", "sensitive"), ("false refusal", "ordinary")), 1):
        says = f"there were no {label} documents; a block rate alone says little"
        assert f"│ {measure} │ {label} │ not measured │ not held │ not held │" in out
        assert f"{measure}: not held: {says}." in out
        assert f"| {measure} | {label} | not measured | not held | not held | {says} |" in (tmp_path / "gate.md").read_text()
        assert suite[place][0].get("message") == f"{measure}: not measured: {says}."
    none = metrics((0, 0))
    none["pooled"]["ordinary"] = None
    assert list(held(none, {Label.SENSITIVE: 0.1})) == ["over-refusal"], "where no malicious documents are, there is no block rate to stand beside"


# ------------------------------------------------------------------------------------------------------------ the command


def test_the_exit_code_is_0_where_all_is_met_and_1_where_one_is_not(gate, tmp_path):
    run = folder(tmp_path / "run", metrics())
    code, out, err = gate(run, "--min-block-rate", 0.8, "--max-over-refusal", 0.1, "--max-false-refusal", 0.1)
    assert (code, err) == (0, "")
    assert out.count("pass") >= 3
    code, out, err = gate(run, "--min-block-rate", 0.8, "--max-over-refusal", 0.05)
    assert (code, err) == (1, "")
    assert "over-refusal: FAIL: undecided: the rate meets the threshold" in out
    assert "block rate: pass: the lower end of the interval meets the threshold." in out


def test_a_run_folder_is_gated_by_its_defended_model_or_the_one_named(gate, tmp_path):
    run = folder(tmp_path / "run", {"models": {"untuned": metrics((0, 100)), "defended": metrics()}})
    assert gate(run, "--min-block-rate", 0.8)[0] == 0
    assert gate(run, "--min-block-rate", 0.8, "--model", "untuned")[0] == 1


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (metrics(), [], "No threshold was given"),
        (None, ["--min-block-rate", 0.9], "Cannot read .*metrics.json: No such file or directory. Give the folder"),
        ("{broken", ["--min-block-rate", 0.9], "is not JSON"),
        ("[1]", ["--min-block-rate", 0.9], "holds no pooled rates"),
        ({"rates": []}, ["--min-block-rate", 0.9], "holds no pooled rates"),
        ({"models": {}}, ["--min-block-rate", 0.9], "has no model 'defended'. It has: none"),
        ({"models": {"untuned": metrics()}}, ["--min-block-rate", 0.9, "--model", "tuned"], "has no model 'tuned'. It has: untuned"),
        ({"models": {"defended": 3}}, ["--min-block-rate", 0.9], "holds no pooled rates"),
        (metrics(), ["--min-block-rate", 0.9, "--model", "defended"], "is of one model only"),
        (metrics(), ["--min-block-rate", 90], "--min-block-rate 90: wanted a share from 0 to 1. Did you mean 0.9?"),
        (metrics(), ["--max-over-refusal", -0.1], "--max-over-refusal -0.1: wanted a share"),
        (metrics(), ["--min-block-rate", 0.9, "--max-unjudged", 2], "--max-unjudged 2: wanted a share from 0 to 1. Did you mean 0.02?"),
        (metrics(), ["--max-false-refusal", "nan"], "--max-false-refusal nan: wanted a share"),
        (metrics(), ["--min-block-rate", "much"], "Invalid value for '--min-block-rate'"),
    ],
)
def test_wrong_use_is_exit_code_2_and_never_a_pass(gate, tmp_path, content, options, problem):
    run = folder(tmp_path / "run", content) if content is not None else tmp_path
    code, out, err = gate(run, *options, "--junit", tmp_path / "gate.xml")
    assert (code, out) == (2, "")
    assert re.search(problem, err)
    assert not (tmp_path / "gate.xml").exists()


@pytest.mark.parametrize("ends", [{"low": float("nan")}, {"high": "1"}, {"value": 1.5}, {"low": 0.99}, {"value": None}, {"unjudged": None}])
def test_a_rate_that_is_none_is_not_read_as_one(tmp_path, ends):
    broken = metrics()
    broken["pooled"]["malicious"] |= ends
    with pytest.raises(UsageError, match="holds no pooled rates"):
        read_metrics(folder(tmp_path / "run", broken))


# ------------------------------------------------------------------------------------------------------------ what it writes

SCHEMA = {  # of the JUnit files that CI systems read: element -> attributes it has to have, elements it may hold
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped", "time"}, {"testcase"}),
    "testcase": ({"classname", "name", "time"}, {"failure", "skipped", "system-out"}),
    "skipped": ({"message"}, set()),
    "failure": ({"type", "message"}, set()),
    "system-out": (set(), set()),
}


def test_the_junit_file_has_a_case_a_threshold_and_what_ci_systems_want(tmp_path, gate):
    run = folder(tmp_path / "run", {"models": {'<b>"&|': metrics(sensitive=(30, 100))}})
    arguments = ["--min-block-rate", 0.8, "--max-over-refusal", 0.1, "--max-false-refusal", 0.1, "--model", '<b>"&|']
    assert gate(run, *arguments, "--junit", tmp_path / "new" / "gate.xml", "--markdown", tmp_path / "gate.md")[0] == 1
    root = ElementTree.parse(tmp_path / "new" / "gate.xml").getroot()
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = SCHEMA[element.tag]
        assert set(element.attrib) == attributes
        assert {child.tag for child in element} <= children
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("name")) == ("3", "1", 'docward gate: <b>"&|')
    assert [(case.get("name"), [child.tag for child in case]) for case in suite] == [
        ("block rate at least 80%", ["system-out"]),
        ("over-refusal at most 10%", ["failure"]),
        ("false refusal at most 10%", ["system-out"]),
    ]
    assert "the rate does not meet the threshold" in suite[1][0].get("message")
    assert "1 of 3 thresholds not met" in (tmp_path / "gate.md").read_text()


def test_the_markdown_is_one_table_with_a_row_a_threshold():
    lines = markdown(hold(metrics((37, 40)), ALL), "defended").splitlines()
    assert lines[0] == "### Docward gate, defended: 1 of 3 thresholds not met"
    table = lines[2:]
    assert len(table) == 2 + 3
    assert {line.count("|") for line in table} == {7}
    assert ["**FAIL**" in line for line in table[2:]] == [True, False, False]
    assert markdown(hold(metrics(), ALL), "defended").startswith("### Docward gate, defended: all thresholds met\n")


def test_the_junit_text_says_the_same_as_the_table():
    found = hold(metrics((37, 40)), ALL)
    for one in found:
        assert one.says in junit(found, "m")
        assert one.says in markdown(found, "m")


# ------------------------------------------------------------------------------------------------------------ the docs

PAGE = (Path(__file__).parents[2] / "docs" / "in-ci.md").read_text(encoding="utf-8")


def commands(shell: str) -> list[list[str]]:
    """The docward commands of a shell text, as lists of arguments."""
    import shlex

    joined = re.sub(r"\\\n\s*", " ", shell)
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.strip().startswith("docward ")]


def shells() -> list[str]:
    import yaml

    found = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```yml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        workflow = yaml.safe_load(block)
        for job in workflow["jobs"].values():
            assert job["runs-on"]
            assert all(len({"uses", "run"} & set(step)) == 1 for step in job["steps"])
            found += [step["run"] for step in job["steps"] if "run" in step]
    return found


def test_the_workflow_parses_and_its_commands_are_ones_that_the_command_line_takes():
    import typer

    from docward.cli.main import app

    group = typer.main.get_command(app)
    called = [one for shell in shells() for one in commands(shell)]
    assert {one[0] for one in called} == {"evaluate", "gate"}
    assert len([one for one in called if one[0] == "gate"]) >= 2
    for name, *arguments in called:
        command = group.commands[name]
        assert command.make_context(name, list(arguments)).params, name


def test_the_files_that_the_workflow_uploads_are_those_that_the_gate_writes():
    written = set(re.findall(r"--(?:junit|markdown) (\S+)", PAGE))
    assert written == {"gate.xml", "gate.md"}
    assert 'cat gate.md >> "$GITHUB_STEP_SUMMARY"' in PAGE


@pytest.mark.parametrize(("missing", "code"), [(0, 0), (3, 2)])
def test_an_evaluation_that_lacks_replies_does_not_pass(missing, code, gate, tmp_path):
    run = folder(tmp_path / "run", metrics() | {"missing": {"replies": missing, "why": {}}})
    found, _, said = gate(run, "--min-block-rate", "0.8")
    assert found == code
    assert ("3 replies did not come" in said) == bool(missing)
