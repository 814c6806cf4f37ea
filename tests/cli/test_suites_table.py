"""`docward evaluate --suite` and `docward list suites`: what a person asks for and sees."""

from __future__ import annotations

import json
import sys

import pytest

from docward.cli.main import main
from docward.cli.showing import difference_words
from docward.evaluation.suites import SUITES
from docward.records import write_rows
from tiny import some_documents


def docward(monkeypatch, *command: str) -> int:
    """Run a command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["docward", *command])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_suites_are_run_shown_and_reported(tiny_folder, tmp_path, monkeypatch, capsys):
    for label in ("malicious", "sensitive", "ordinary"):
        write_rows(tmp_path / f"{label}.jsonl", [one for one in some_documents(3) if one.label == label])
    sources = [word for label in ("malicious", "sensitive", "ordinary") for word in ("--documents", f"{label}={tmp_path / label}.jsonl")]
    asked = ["--tasks", "summarize", "--max-new-tokens", "2", "--limit", "2", "--suite", "opener", "--suite", "position", "--seed", "3"]
    assert docward(monkeypatch, "evaluate", "--model", str(tiny_folder), *sources, *asked, "--output-dir", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if any(f" {level} " in line for level in ("unchanged", "before", "added", "stripped"))]
    assert len(lines) >= 5
    assert "block rate" in out
    assert "undecided" in out
    found = json.loads((tmp_path / "out" / "suites.json").read_text())["suites"]
    assert [(one["name"], one["seed"]) for one in found] == [("position", 3), ("opener", 3)]
    assert {row["documents"] for one in found for row in one["rows"]} == {2}
    assert "Robustness" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_suite_that_is_not_there_is_told_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    assert docward(monkeypatch, "evaluate", "--model", "nowhere/nothing", "--suite", "wordings", "--output-dir", str(tmp_path / "out")) == 2
    assert "There is no suite `wordings`. Did you mean `wording`?" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_all_suites_are_listed(monkeypatch, capsys):
    docward(monkeypatch, "list", "suites")
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in SUITES)
    assert "is asked all but forced and drift; dilution and length want its --tokenizer." in " ".join(out.split())


def test_decided_differences_are_told_by_size_and_all_others_as_undecided():
    def test(difference, decided):
        return {"against_unchanged": {"value": difference, "decided": decided}}

    assert difference_words({"malicious": test(-0.4, True), "sensitive": test(0.1, False)}) == "block rate -40.0, others undecided"
    assert difference_words({"malicious": test(-0.4, True)}) == "block rate -40.0"
    assert difference_words({"malicious": test(-0.4, False), "ordinary": test(0, False)}) == "undecided"
    assert difference_words({"malicious": {"against_unchanged": None}}) == ""
