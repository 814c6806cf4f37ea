"""Judging a folder judges its suites: the files of an evaluation by that judge, nothing generated again, and suites that cannot be judged left as they were."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_rejudging import said_by

from docward.errors import DocumentError, RunError
from docward.evaluation import judging
from docward.evaluation.evaluating import Settings, evaluate
from docward.evaluation.rejudging import judge_evaluation, judge_run
from docward.evaluation.suites import SUITES, UNCHANGED, Level, get_suites
from docward.evaluation.suites.running import run_suites
from docward.evaluation.suites.summing import SuiteSums, check_told, judged_anew, suite_rates
from docward.records import held, read_rows, text_hash, write_rows
from docward.servers import Server
from docward.tasks import get_tasks
from docward.types import Label, Outcome, Reply, Verdict
from tiny import some_documents

SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "case"])), max_new_tokens=3)
NAMES = ("position", "opener")
FILES = ("suites.json", *(f"suites/{name}/{file}.jsonl" for name in NAMES for file in ("replies", "verdicts")))


class Coin:
    """A hash of its name and a reply's key decides, so that no reply can be missing or another one unnoticed; `away`, it leaves all unjudged."""

    def __init__(self, name: str, *, away: bool = False) -> None:
        self.name, self.away, self.asked = name, away, []

    def judge_all(self, replies):
        for reply in replies:
            self.asked.append(reply.key)
            outcome = (Outcome.REFUSED, Outcome.COMPLIED, Outcome.PARTIAL)[int(text_hash(self.name, reply.key)[:8], 16) % 3]
            yield Verdict.on(reply, Outcome.UNJUDGED if self.away else outcome, judge=self.name, why=f"a coin of {self.name}")


@pytest.fixture
def evaluated(server, monkeypatch):
    """Evaluate a model behind a server, and two suites of it, by a judge."""
    server.says = lambda asked: asked["messages"][-1]["content"]

    def evaluated(folder: Path, judge: Coin) -> Path:
        monkeypatch.setattr(judging, "get_judge", lambda _: judge)
        model, documents = Server(server.url, "big"), some_documents(2)
        documents[0] = replace(documents[0], text=f"Sure, here is what you asked for.\n\n{documents[0].text}")  # one that `stripped` changes
        evaluate(model, documents, SETTINGS, folder)
        run_suites(model, documents, get_suites(NAMES), SETTINGS, folder, ordinary=documents)
        server.requests.clear()
        return folder

    return evaluated


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def rows(folder: Path) -> list[dict]:
    return [row for suite in json.loads((folder / "suites.json").read_text())["suites"] for row in suite["rows"]]


def test_suites_judged_anew_are_those_of_an_evaluation_by_that_judge_and_nothing_is_asked_of_the_model(server, evaluated, tmp_path):
    wanted = evaluated(tmp_path / "other", Coin("other"))
    folder, judge = evaluated(tmp_path / "run", Coin("one")), Coin("other")
    before = files(folder)
    found = judge_evaluation(folder, judge)
    assert files(folder) == files(wanted)
    assert {name for name, was in before.items() if was != files(folder)[name]} == {name for name in FILES if "replies" not in name}
    assert server.requests == []
    replies = {name: len(read_rows(folder / "suites" / name / "replies.jsonl", Reply)) for name in NAMES}
    assert [(one.found["name"], one.n, one.asked, one.unjudged) for one in found.suites.judged] == [(name, many, many, 0) for name, many in replies.items()]
    assert len(judge.asked) == 12 + sum(replies.values())
    assert [one.found for one in found.suites.judged] == json.loads((folder / "suites.json").read_text())["suites"]
    assert {(row["level"], row["set"]): row["changed"] for row in rows(folder) if row["level"] == "stripped"} == {
        ("stripped", "malicious"): 1,
        ("stripped", "sensitive"): 0,
        ("stripped", "ordinary"): 0,
    }
    assert found.suites.left == {}


def test_suites_judged_again_ask_about_the_unjudged_alone_and_say_whose_verdicts_stand_there(evaluated, tmp_path):
    folder, wanted = evaluated(tmp_path / "run", Coin("coin", away=True)), evaluated(tmp_path / "whole", Coin("coin"))
    assert {row["judged"] for row in rows(folder)} == {0}
    place = folder / "suites" / "position" / "verdicts.jsonl"
    kept, *rest = read_rows(place, Verdict)
    write_rows(place, [replace(kept, outcome=Outcome.REFUSED, judge="by hand"), *rest])
    judge = Coin("coin")
    found = judge_evaluation(folder, judge, again=True)
    position, opener = found.suites.judged
    assert (position.n - position.asked, opener.n - opener.asked) == (1, 0)
    assert judge.asked.count(kept.key) == 1, "of the other suite, whose level 0 has the same keys"
    assert position.found["judges"] == {"by hand": 1, "coin": position.n - 1}
    assert files(folder)["suites/opener/verdicts.jsonl"] == files(wanted)["suites/opener/verdicts.jsonl"]
    assert place.read_bytes().splitlines()[1:] == files(wanted)["suites/position/verdicts.jsonl"].splitlines()[1:]
    asked, before = len(judge.asked), files(folder)
    judge_evaluation(folder, judge, again=True)
    assert (len(judge.asked), files(folder)) == (asked, before)


def forget(name: str):
    """A `suites.json` of before, whose rows lack something."""

    def change(folder: Path) -> None:
        found = json.loads((folder / "suites.json").read_text())
        for row in found["suites"][0]["rows"]:
            del row[name]
        (folder / "suites.json").write_text(json.dumps(found))

    return change


def drop_a_document(folder: Path) -> None:
    """As an evaluation leaves it that is stopped while it asks about a text that is another one now."""
    place = folder / "suites" / "position" / "verdicts.jsonl"
    write_rows(place, [one for one in read_rows(place, Verdict) if one.document_id != "t1-m"])


def drop_a_suite(folder: Path) -> None:
    found = json.loads((folder / "suites.json").read_text())
    (folder / "suites.json").write_text(json.dumps({"suites": found["suites"][1:]}))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (forget("changed"), "not what this version of Docward writes (suites.json, position: the field `rows.0.changed` is missing; "),
        (drop_a_document, "not of the replies that stand there now"),
        (lambda folder: (folder / "suites" / "position" / "verdicts.jsonl").unlink(), "its verdicts are missing"),
        (lambda folder: (folder / "suites" / "position" / "replies.jsonl").unlink(), "Its replies"),
        (drop_a_suite, "suites.json does not tell of it"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_suite_that_cannot_be_judged_stays_as_it_was_and_says_why(evaluated, tmp_path, change, why, again):
    folder = evaluated(tmp_path, Coin("one", away=True))
    change(folder)
    told = json.loads((folder / "suites.json").read_text())["suites"]
    before = {path: path.read_bytes() for path in (folder / "suites" / "position").iterdir()}
    judge = Coin("other")
    found = judge_evaluation(folder, judge, again=again)
    assert list(found.suites.left) == ["position"]
    assert why in found.suites.left["position"]
    assert {path: path.read_bytes() for path in (folder / "suites" / "position").iterdir()} == before
    assert not [key for key in judge.asked if key.endswith("|before")]
    assert [one.found["judges"] for one in found.suites.judged] == [{"other": found.suites.judged[0].n}], "the other one is judged"
    assert json.loads((folder / "suites.json").read_text())["suites"][:-1] == told[:-1]


def test_a_suite_that_is_being_run_and_a_broken_file_of_suites_stop_it(evaluated, tmp_path):
    folder = evaluated(tmp_path, Coin("one"))
    with held(folder / "suites" / "opener"), pytest.raises(RunError, match=r"Another process is working in .*opener"):
        judge_evaluation(folder, Coin("other"))
    judge_evaluation(folder, Coin("other"))
    (folder / "suites.json").write_text("{")
    judge = Coin("third")
    with pytest.raises(DocumentError, match=r"suites\.json is broken"):
        judge_evaluation(folder, judge)
    assert judge.asked == [], "nobody is paid for what cannot be summed"


def test_a_name_in_the_file_leads_out_of_the_folder_of_suites_nowhere(evaluated, tmp_path):
    folder, judge = evaluated(tmp_path, Coin("one")), Coin("other")
    found = json.loads((folder / "suites.json").read_text())
    found["suites"][0]["name"] = ".."
    (folder / "suites.json").write_text(json.dumps(found))
    assert list(judge_evaluation(folder, judge).suites.left) == ["..", "position"]


def test_what_is_counted_anew_of_the_same_verdicts_is_the_same_and_numbers_stay_as_they_are_written():
    levels = (UNCHANGED, Level("100 tokens", 100, "tokens"), Level("OCR noise 5%", 0.05, "OCR noise"))
    replies = [(document, level) for level in levels for document in some_documents(3)]
    outcomes = [(Outcome.REFUSED, Outcome.COMPLIED, Outcome.UNJUDGED)[place % 4 % 3] for place in range(len(replies))]
    verdicts = [
        Verdict(f"a|b|{one.id}|case|0|{level.name}", one.id, one.label, "case", outcome, "one", "")
        for (one, level), outcome in zip(replies, outcomes, strict=True)
    ]
    made = suite_rates("mixed", {level: SuiteSums(verdicts).levels[level.name] for level in levels}, {("100 tokens", Label.ORDINARY): 2})
    found = json.loads(json.dumps({"name": "mixed", "judges": {"one": 27}, "rows": [asdict(row) for row in made]}))
    check_told(found, verdicts)
    assert json.dumps(judged_anew(found, verdicts)) == json.dumps(found)
    assert [row["changed"] for row in found["rows"]] == [0, 0, 0, 0, 0, 2, 0, 0, 0]


def test_a_reply_s_key_tells_its_level():
    assert not [level.name for suite in SUITES.values() for level in suite.levels if "|" in level.name]


def test_judging_a_run_judges_the_suites_of_its_models(evaluated, tmp_path):
    evaluated(tmp_path / "evaluation" / "untuned", Coin("one"))
    evaluated(tmp_path / "evaluation" / "defended", Coin("one"))
    found = judge_run(tmp_path, Coin("other"))
    assert {name: [suite.found["name"] for suite in one.suites.judged] for name, one in found.items()} == {"untuned": [*NAMES], "defended": [*NAMES]}


def test_the_command_says_what_was_asked_in_suites_and_shows_their_table(evaluated, tmp_path, capsys):
    folder = evaluated(tmp_path, Coin("one", away=True))
    one = next(iter(read_rows(folder / "suites" / "position" / "replies.jsonl", Reply)))
    replies = [replace(reply, reply="") if reply.key == one.key else reply for reply in read_rows(folder / "suites" / "position" / "replies.jsonl", Reply)]
    write_rows(folder / "suites" / "position" / "replies.jsonl", replies)
    out = said_by(capsys, folder, "--again")
    assert "the model, in suites: asked about 60 of 60 replies; 1 unjudged (position 1)." in out
    assert "Robustness: share of replies that decline" in out
    assert "Verdicts of <code>rules</code>." in (folder / "report.html").read_text(encoding="utf-8")
    drop_a_document(folder)
    out = said_by(capsys, folder)
    assert "the model, in suites: asked about 36 of 36 replies; 0 unjudged." in out
    assert "the model, suite position: its verdicts and rates are left as they were. What suites.json says of position is not of the replies" in out
    assert "Run the same docward evaluate --suite position again" in out
