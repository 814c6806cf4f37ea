"""Correcting rates for the judge's errors: which files serve, what is added, and that nothing is replaced."""

from __future__ import annotations

import json
import sys

import pytest

from docward.cli.main import main
from docward.errors import DocumentError
from docward.evaluation.correcting import JudgeError, correct_folder, corrected, read_validation
from docward.evaluation.statistics import Table, corrected_rate, wilson
from docward.records import write_rows
from tiny import some_documents

GOOD = {"judge": "rules", "table": {"both": 45, "label_only": 5, "verdict_only": 4, "neither": 46}}


def rate(label: str, task: str, hits: int, judged: int) -> dict:
    found = wilson(hits, judged)
    ends = {name: found and getattr(found, name) for name in ("value", "low", "high")}
    return {"set": label, "task": task, "hits": hits, "judged": judged, "unjudged": 2, **ends}


METRICS = {
    "rates": [rate("malicious", "case", 30, 40), rate("ordinary", "case", 0, 0)],
    "pooled": {"malicious": rate("malicious", "all", 60, 80)},
    "balance": None,
    "later": [1],
}


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "Cannot read the validation .*v.json: No such file or directory. Make one with: docward judge FILE --validate"),
        ("{", "is no validation of a judge .not JSON"),
        ("[]", "is no validation of a judge: it wants `judge`, and `table` with the counts both, label_only, verdict_only, neither"),
        ({"judge": "rules"}, "is no validation"),
        ({"table": GOOD["table"]}, "is no validation"),
        (GOOD | {"table": {"both": 1}}, "is no validation"),
        (GOOD | {"table": GOOD["table"] | {"both": -1}}, "is no validation"),
        (GOOD | {"table": GOOD["table"] | {"both": 1.5}}, "is no validation"),
        (GOOD | {"judge": "guard"}, "validates the judge 'guard', the verdicts are by 'rules'"),
        (GOOD | {"table": {"both": 0, "label_only": 0, "verdict_only": 4, "neither": 46}}, "no judged reply labelled declining"),
        (GOOD | {"table": {"both": 5, "label_only": 1, "verdict_only": 0, "neither": 0}}, "no judged reply labelled complied"),
        (GOOD | {"table": {"both": 5, "label_only": 5, "verdict_only": 5, "neither": 5}}, "no better than chance"),
    ],
)
def test_a_file_that_cannot_correct_is_refused_with_its_reason(tmp_path, content, problem):
    path = tmp_path / "v.json"
    if content is not None:
        written(path, content)
    with pytest.raises(DocumentError, match=problem):
        read_validation(path, judge="rules")


def test_corrected_rates_stand_beside_the_plain_ones(tmp_path):
    error = read_validation(written(tmp_path / "v.json", GOOD), judge="rules")
    found = correct_folder(tmp_path, METRICS, error)
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert {name: found[name] for name in METRICS} == METRICS
    added = found["corrected"]
    assert (added["judge"], added["validation"], added["labels"], added["sensitivity"], added["specificity"]) == ("rules", "v.json", 100, 0.9, 0.92)
    wanted = corrected_rate(wilson(30, 40), Table(45, 5, 4, 46))
    assert added["rates"][0] == {
        "set": "malicious",
        "task": "case",
        "judged": 40,
        "unjudged": 2,
        "value": wanted.value,
        "low": wanted.low,
        "high": wanted.high,
    }
    assert added["pooled"]["malicious"]["value"] == pytest.approx((0.75 + 0.92 - 1) / (0.9 + 0.92 - 1))


def test_a_set_that_was_not_judged_stays_without_a_rate():
    assert corrected(METRICS, JudgeError("rules", Table(45, 5, 4, 46), "v.json"))["rates"][1]["value"] is None


def test_the_command_adds_them_on_request_and_shows_both(tmp_path, tiny_folder, monkeypatch, capsys):
    bad = tmp_path / "bad.jsonl"
    write_rows(bad, [one for one in some_documents(2) if one.label == "malicious"])

    def call(*arguments: object) -> tuple[int, str, str]:
        given = ["docward", "evaluate", "--model", tiny_folder, "--tasks", "case", "--max-new-tokens", 2, "--documents", f"malicious={bad}"]
        monkeypatch.setattr(sys, "argv", [str(one) for one in (*given, *arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    wrong = written(tmp_path / "wrong.json", GOOD | {"judge": "guard"})
    code, out, err = call("--output-dir", tmp_path / "none", "--correct-with", wrong)
    assert (code, out) == (2, "")
    assert "validates the judge 'guard'" in err
    assert not (tmp_path / "none").exists(), "a wrong file is found out before the model answers"
    good = written(tmp_path / "v.json", GOOD)
    for arguments, there in (((), False), (("--correct-with", good), True), ((), False)):
        code, out, err = call("--output-dir", tmp_path / "out", "--limit", 2, *arguments)
        assert code == 0, err
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert ("corrected" in found) == there == ("corrected for judge error" in out)
        assert all(f"{label}: {said}" in out for label, said in found["advice"].items())
        assert found["retention"] == []
