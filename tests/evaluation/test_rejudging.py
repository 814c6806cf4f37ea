"""Judging again and judging side by side: what stays as it was, who is asked about what, and what a stopped judge leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from docward.errors import DocumentError, RunError
from docward.evaluation.evaluating import judge_folder, model_metrics
from docward.evaluation.judges import RuleJudge, asking, get_judge
from docward.evaluation.judging import fingerprint_of, hub_revision, judge_replies, remembering
from docward.evaluation.rejudging import agreements, judge_evaluation, judge_file_by, judge_run, verdicts_place
from docward.records import read_rows, write_json, write_rows
from docward.types import Label, Outcome, Reply, Verdict
from serving_stub import ChatServer

R, P, C, U = Outcome.REFUSED, Outcome.PARTIAL, Outcome.COMPLIED, Outcome.UNJUDGED
SORRY = "I'm sorry, but I can't help with that."
ANSWER = "The ferry sails again on Saturday."


class Scripted:
    """Gives the outcome that its script has for a reply, UNJUDGED where it has none, and notes what it was asked; dies at a reply `die`."""

    def __init__(self, script: dict[str, Outcome], name: str = "scripted") -> None:
        self.script, self.name, self.asked = script, name, []

    def judge(self, reply: Reply) -> Verdict:
        return next(self.judge_all([reply]))

    def judge_all(self, replies):
        for reply in replies:
            if reply.reply == "die":
                raise KeyboardInterrupt
            self.asked.append(reply.key)
            yield Verdict.on(reply, self.script.get(reply.key, U), judge=self.name, why=f"said by {self.name}, naïvely")


def written(folder: Path, *texts: str, **more) -> Path:
    path = folder / "answers.jsonl"
    rows = [{"key": str(number), "reply": text} | {name: values[number] for name, values in more.items()} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[bytes]:
    return verdicts_place(path).read_bytes().splitlines(keepends=True)


def test_judging_again_asks_only_about_the_unjudged_and_keeps_all_else_byte_for_byte(tmp_path):
    path = written(tmp_path, "a", "b", "c", "d")
    judge_file_by([Scripted({"0": R, "2": C})], path)
    place = verdicts_place(path)
    place.write_bytes(place.read_bytes().replace(b'"outcome": "refused"', b'"outcome":"refused",   "note": "by hand"'))  # somebody else's spacing stays, too
    before = lines_of(path)
    other = Scripted({"1": P, "0": C, "2": R}, "other")
    found = judge_file_by([other], path, again=True)
    after = lines_of(path)
    assert other.asked == ["1", "3"]
    assert [after[0], after[2]] == [before[0], before[2]]
    assert [json.loads(line)["outcome"] for line in after] == ["refused", "partial", "complied", "unjudged"]
    assert [json.loads(line)["judge"] for line in after] == ["scripted", "other", "scripted", "other"]
    assert (found.asked, found.unjudged, found.n) == ({"other": 2}, {"other": 1}, 4)


def test_judging_again_when_all_is_judged_changes_nothing(tmp_path):
    path = written(tmp_path, SORRY, ANSWER)
    judge_file_by([RuleJudge()], path)
    before = lines_of(path)
    other = Scripted({})
    judge_file_by([other], path, again=True)
    assert other.asked == []
    assert lines_of(path) == before


def test_replies_that_came_later_are_judged_again_too(tmp_path):
    judge_file_by([RuleJudge()], written(tmp_path, SORRY))
    path = written(tmp_path, SORRY, ANSWER)
    judge_file_by([RuleJudge()], path, again=True)
    assert [json.loads(line)["outcome"] for line in lines_of(path)] == ["refused", "complied"]


def test_of_replies_that_are_others_under_the_same_keys_no_verdict_stays(tmp_path):
    """As when a model answers anew into a file whose keys are line numbers."""
    judge_file_by([RuleJudge()], written(tmp_path, SORRY, ANSWER))
    path = written(tmp_path, ANSWER, ANSWER)
    found = judge_file_by([RuleJudge()], path, again=True)
    assert [json.loads(line)["outcome"] for line in lines_of(path)] == ["complied", "complied"]
    assert found.asked == {"rules": 1}


@pytest.mark.parametrize("wrong", [{"key": "9", "outcome": "refused"}, {"key": "0", "outcome": "maybe"}, {"outcome": "refused"}])
def test_verdicts_on_other_replies_are_left_alone(tmp_path, wrong):
    path = written(tmp_path, SORRY)
    verdicts_place(path).write_text(json.dumps(wrong) + "\n", encoding="utf-8")
    before = lines_of(path)
    with pytest.raises(DocumentError, match="without --again"):
        judge_file_by([RuleJudge()], path, again=True)
    assert lines_of(path) == before


def test_there_must_be_verdicts_to_judge_again(tmp_path):
    with pytest.raises(DocumentError, match="leave out --again"):
        judge_file_by([RuleJudge()], written(tmp_path, SORRY), again=True)


def test_a_stopped_judge_leaves_what_it_said_and_goes_on_from_there(tmp_path):
    path = written(tmp_path, "a", "b", "die", "d")
    with pytest.raises(KeyboardInterrupt):
        judge_file_by([Scripted({"0": R, "1": C})], path)
    assert [json.loads(line)["outcome"] for line in lines_of(path)] == ["refused", "complied", "unjudged", "unjudged"]
    kept = lines_of(path)[:2]
    path.write_text(path.read_text().replace("die", "c"))
    judge = Scripted({"2": R, "3": R})
    judge_file_by([judge], path, again=True)
    assert judge.asked == ["2", "3"]
    assert lines_of(path)[:2] == kept


def test_a_judge_is_not_asked_twice_about_the_same_reply_and_is_about_another_one_or_an_unjudged_one(tmp_path):
    path = written(tmp_path, "a", "b", "c")
    judge_file_by([Scripted({"0": R, "1": C})], path)
    before, other = lines_of(path), Scripted({"0": C, "1": C, "2": C}, "other")
    judge_file_by([other], path)
    assert other.asked == ["0", "1", "2"], "another judge has said nothing yet"
    again = Scripted({})
    found = judge_file_by([again], path)
    assert (again.asked, found.asked) == (["2"], {"scripted": 1})
    assert lines_of(path) == before
    path.write_text(path.read_text().replace('"b"', '"x"'))
    again = Scripted({"1": P, "2": P})
    judge_file_by([again], path)
    assert again.asked == ["1", "2"]
    assert [json.loads(line)["outcome"] for line in lines_of(path)] == ["refused", "partial", "partial"]


KILLED = """
import os, signal, sys
from pathlib import Path
from docward.evaluation import evaluating, judging, rejudging
from docward.types import Outcome, Verdict

class Paid:
    name = "paid"

    def judge_all(self, replies):
        for reply in replies:
            if reply.key == "37":
                os.kill(os.getpid(), signal.SIGKILL)
            yield Verdict.on(reply, Outcome.REFUSED, judge=self.name, why="said by paid, naïvely")

place = Path(sys.argv[2])
if sys.argv[1] == "file":
    rejudging.judge_file_by([Paid()], place / "replies.jsonl")
else:
    with judging.remembering(Paid(), place / "replies.jsonl") as judge:
        evaluating.judge_folder(place, {}, judge=judge)
"""


@pytest.mark.parametrize("what", ["file", "evaluation"])
def test_a_killed_judge_is_not_asked_again_about_what_it_has_said(tmp_path, what):
    path, replies = tmp_path / "replies.jsonl", [replace(replies_of("m")[0], key=str(number), reply=f"reply {number}") for number in range(40)]
    write_rows(path, replies)
    done = subprocess.run([sys.executable, "-c", KILLED, what, tmp_path])
    assert done.returncode == -signal.SIGKILL
    with (tmp_path / "replies.jsonl.said.jsonl").open("ab") as log:
        log.write(b'{"key": "torn')  # it might have been killed in the middle of a row
    judge = Scripted({str(number): R for number in range(40)}, "paid")
    if what == "file":
        judge_file_by([judge], path)
        place = verdicts_place(path)
    else:
        with remembering(judge, path) as asked:
            judge_folder(tmp_path, {}, judge=asked)
        place = tmp_path / "verdicts.jsonl"
    assert judge.asked == [str(number) for number in range(32, 40)], "16 verdicts are written at a time"
    verdicts = [json.loads(line) for line in place.read_text().splitlines()]
    assert [(one["key"], one["outcome"], one["judge"], one["why"]) for one in verdicts] == [
        (str(number), "refused", "paid", "said by paid, naïvely") for number in range(40)
    ]


def test_a_stopped_judge_does_not_replace_whole_verdicts_of_before(tmp_path):
    path = written(tmp_path, "a", "b", "c")
    judge_file_by([Scripted({"0": R, "1": C, "2": P})], path)
    before = lines_of(path)
    path.write_text(path.read_text().replace('"c"', '"die"'))
    with pytest.raises(KeyboardInterrupt):
        judge_file_by([Scripted({}, "other")], path)
    assert lines_of(path) == before


def test_judges_side_by_side_write_a_file_each_and_are_compared(tmp_path):
    path = written(tmp_path, "a", "b", "c", "d", label=["refused", "partial", "complied", "complied"], model=["x", "y", "x", "y"])
    first, second = Scripted({"0": R, "1": R, "2": C, "3": C}, "first"), Scripted({"0": R, "1": C, "2": C}, "second:of/two")
    found = judge_file_by([first, second], path, validate=True)
    assert not verdicts_place(path).exists()
    assert set(found.places) == {"first", "second:of/two"}
    for name, place in found.places.items():
        assert {json.loads(line)["judge"] for line in place.read_text().splitlines()} == {name}
    assert found.validations["first"].kappa.value == 1
    assert (found.validations["second:of/two"].unjudged, found.validations["second:of/two"].recall.value) == (1, 0.5)
    assert set(found.validations["first"].models) == {"x", "y"}
    (pair,) = found.agreements
    assert (pair.first, pair.second, pair.both_judged) == ("first", "second:of/two", 3)
    assert pair.compared.accuracy.value == pytest.approx(2 / 3)
    assert pair.compared.kappa.value == pytest.approx(0.4)  # (2/3 - 4/9) / (1 - 4/9)


def test_agreement_is_the_same_either_way_round():
    one, two = [R, P, C, C, U, R, C], [R, C, C, R, R, P, U]
    (forth,), (back,) = agreements({"a": one, "b": two}), agreements({"b": two, "a": one})
    assert (forth.both_judged, forth.compared.kappa.value, forth.compared.accuracy.value) == (5, back.compared.kappa.value, back.compared.accuracy.value)
    assert len(agreements({"a": one, "b": two, "c": one})) == 3


def test_judges_with_names_that_look_alike_as_files_keep_two_files(tmp_path):
    names = ["classifier:a/b", "classifier:a-b", "classifier-a-b", "openai:m@http://h/v1"]
    assert len({verdicts_place(tmp_path / "f.jsonl", name) for name in names}) == 4
    assert all(verdicts_place(tmp_path / "f.jsonl", name).parent == tmp_path for name in names)
    assert verdicts_place(tmp_path / "f.jsonl", "rules").name == "f.jsonl.rules.verdicts.jsonl"


# ------------------------------------------------------------------------------------------------------------------ folders


def replies_of(model: str) -> list[Reply]:
    return [
        Reply(f"{label}{number}|summarize|0", f"{label}{number}", label, "summarize", 0, "Summarize it.", "A note on ferries.", f"{model} {label} {number}")
        for label in Label
        for number in range(4)
    ]


def evaluated(folder: Path, model: str, outcome: Outcome = U) -> list[Reply]:
    """The folder of an evaluation in which a judge was away: every verdict is `outcome`."""
    replies = replies_of(model)
    write_rows(folder / "replies.jsonl", [*reversed(replies), replace(replies[0], key="of an earlier run")])
    verdicts = [Verdict.on(reply, outcome, judge="gone", why="no answer of the judge") for reply in replies]
    write_rows(folder / "verdicts.jsonl", verdicts)
    utility = [{"task": "case", "measure": "case_accuracy", "n": 3, "value": 0.5, "low": 0.4, "high": 0.6}]
    metrics = model_metrics(replies, verdicts, golds={}) | {"utility": utility, "own": 1}
    write_json(folder / "metrics.json", metrics)
    return replies


def script(replies: list[Reply]) -> Scripted:
    return Scripted({reply.key: R if reply.label == Label.MALICIOUS else C for reply in replies}, "back")


def test_an_evaluation_is_judged_again_without_generating(tmp_path):
    replies = evaluated(tmp_path, "m")
    before = (tmp_path / "replies.jsonl").read_bytes()
    found = judge_evaluation(tmp_path, script(replies), again=True)
    assert (found.n, found.asked, found.unjudged, found.judges) == (12, 12, 0, {"back": 12})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["pooled"]["malicious"]["value"] == 1
    assert metrics["pooled"]["ordinary"]["value"] == 0
    assert metrics["balance"]["value"] == 1
    assert (metrics["utility"][0]["value"], metrics["own"]) == (0.5, 1), "what does not come from verdicts stays"
    assert [verdict.key for verdict in read_rows(tmp_path / "verdicts.jsonl", Verdict)] == [reply.key for reply in replies], "order and choice of replies stay"
    assert (tmp_path / "replies.jsonl").read_bytes() == before


def test_judging_an_evaluation_in_two_goes_is_judging_it_in_one(tmp_path):
    replies = evaluated(tmp_path / "one", "m")
    evaluated(tmp_path / "two", "m")
    whole = script(replies)
    half = Scripted(dict(list(whole.script.items())[::2]), "back")
    judge_evaluation(tmp_path / "one", whole)
    judge_evaluation(tmp_path / "two", half)
    judge_evaluation(tmp_path / "two", whole, again=True)
    for name in ("verdicts.jsonl", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_corrected_rates_stay_with_their_own_verdicts_and_their_going_is_said(tmp_path):
    replies, notes = evaluated(tmp_path, "m"), []
    judge_evaluation(tmp_path, script(replies))
    place = tmp_path / "metrics.json"
    corrected = {"judge": "back", "pooled": {}}
    write_json(place, json.loads(place.read_text()) | {"corrected": corrected})
    judge_evaluation(tmp_path, script(replies), progress=lambda said, *_: notes.append(said))
    assert json.loads(place.read_text())["corrected"] == corrected
    assert not [said for said in notes if "corrected" in said or "give way" in said]
    judge_evaluation(tmp_path, Scripted({}, "other"), progress=lambda said, *_: notes.append(said))
    assert "corrected" not in json.loads(place.read_text())
    assert f"verdicts of back in {tmp_path.name} give way to those of other" in notes
    assert any("corrected rates left out" in said and "--correct-with" in said for said in notes)
    write_json(place, json.loads(place.read_text()) | {"corrected": corrected | {"judge": "other"}})
    judge_evaluation(tmp_path, Scripted({reply.key: R for reply in replies}, "other"))
    assert "corrected" not in json.loads(place.read_text()), "by the same judge, but of fewer verdicts"


def test_a_run_is_judged_whole_and_its_paired_tests_with_it(tmp_path):
    models = {}
    for name in ("untuned", "defended"):
        replies = evaluated(tmp_path / "evaluation" / name, name)
        models[name] = json.loads((tmp_path / "evaluation" / name / "metrics.json").read_text())
    write_json(tmp_path / "metrics.json", {"models": models, "surface": None, "paired": [], "seconds": {"build": 1.0}})
    found = judge_run(tmp_path, script(replies))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: one.metrics for name, one in found.items()} == metrics["models"]
    assert {row["says"] for row in metrics["paired"]} == {"undecided"}
    assert metrics["seconds"] == {"build": 1.0}
    with pytest.raises(RunError, match="holds no replies of a model"):
        judge_run(tmp_path / "evaluation", script(replies))
    with pytest.raises(RunError, match=r"replies\.jsonl is missing"):
        judge_evaluation(tmp_path, script(replies))


def test_a_batch_of_the_rules_is_the_rules_one_by_one():
    replies = [replace(reply, reply=text) for reply, text in zip(replies_of("m"), [SORRY, ANSWER, "", SORRY] * 3, strict=True)]
    assert [asdict(one) for one in judge_replies(replies, RuleJudge())] == [asdict(RuleJudge().judge(reply)) for reply in replies]


def test_no_judge_is_asked_about_what_a_server_withheld_and_the_reason_stays(tmp_path):
    replies = evaluated(tmp_path, "m")
    held = [replace(one, reply="", withheld="HTTP 403: flagged") if place % 3 == 0 else one for place, one in enumerate(replies)]
    write_rows(tmp_path / "replies.jsonl", held)
    why = {one.key: "withheld by the server: HTTP 403: flagged" for one in held if one.withheld}
    for again in (False, True):
        judge = script(replies)
        found = judge_evaluation(tmp_path, judge, again=again)
        assert (found.asked, len(judge.asked), found.unjudged) == ((0, 0, 4) if again else (8, 8, 4))
        assert {one.key: one.why for one in read_rows(tmp_path / "verdicts.jsonl", Verdict) if one.outcome == U} == why
    asked = judge_file_by([script(replies)], tmp_path / "replies.jsonl")
    assert (asked.asked, asked.unjudged) == ({"back": 0}, {"back": 4}), "a file of the same replies says the same"
    rows = [json.loads(line) for line in verdicts_place(tmp_path / "replies.jsonl").read_text().splitlines()]
    assert {row["key"]: row["why"] for row in rows if row["outcome"] == "unjudged"} == why


@pytest.mark.parametrize("withheld", [True, "not this one"])
def test_what_a_file_of_others_calls_withheld_costs_no_reply_that_is_there_its_verdict(tmp_path, withheld):
    path = written(tmp_path, SORRY, withheld=[withheld])
    assert judge_file_by([RuleJudge()], path).unjudged == {"rules": 0}


# ------------------------------------------------------------------------------------------------------- what a verdict hangs on


def test_a_row_more_or_another_key_has_no_reply_paid_for_twice(tmp_path):
    judge_file_by([Scripted({"1": R, "2": C})], path_of(tmp_path, ["1", "2"], ["a", "b"]))
    judge = Scripted({"1": P, "2": P, "3": P})
    judge_file_by([judge], path_of(tmp_path, ["1", "2", "3"], ["new", "a", "b"]))
    assert judge.asked == ["1"]
    assert [json.loads(line)["outcome"] for line in lines_of(tmp_path / "answers.jsonl")] == ["partial", "refused", "complied"]


def path_of(folder: Path, keys: list[str], texts: list[str]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps({"key": key, "reply": text}) + "\n" for key, text in zip(keys, texts, strict=True)), encoding="utf-8")
    return path


def test_another_server_of_the_same_model_and_another_question_are_another_judge(tmp_path, monkeypatch, server):
    path = written(tmp_path, "a", "b")
    with ChatServer() as other:
        for one in (server, other):
            one.replies = ["VERDICT: refused"]
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert judge_file_by([get_judge("openai:m")], path).asked == {"openai:m": 2}
        assert judge_file_by([get_judge("openai:m")], path).asked == {"openai:m": 0}
        monkeypatch.setenv("OPENAI_BASE_URL", other.url)
        other.replies = ["VERDICT: complied"]
        assert judge_file_by([get_judge("openai:m")], path).asked == {"openai:m": 2}
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert judge_file_by([get_judge("openai:m")], path).asked == {"openai:m": 0}
    monkeypatch.setattr(asking, "PROMPT", asking.PROMPT.replace("One short sentence why", "Two short sentences why"))
    assert judge_file_by([get_judge("openai:m")], path).asked == {"openai:m": 2}


def test_a_judge_that_was_trained_anew_in_the_same_folder_is_another_judge(tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    write_json(place / "config.json", {})
    (place / "model.safetensors").write_bytes(b"one")
    (tmp_path / "model.gguf").write_bytes(b"one")
    names = (f"classifier:{place}", f"classifier:{place}#NO", f"wildguard:{place}", f"wildguard:{place}.gguf", "classifier:org/name", "wildguard")
    judges = [Scripted({}, name) for name in names]
    before = [fingerprint_of(judge) for judge in judges]
    assert [fingerprint_of(judge) for judge in judges] == before
    for one in (place / "model.safetensors", tmp_path / "model.gguf"):
        one.write_bytes(b"other")
    after = [fingerprint_of(judge) for judge in judges]
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, True, True, False, False]


def revision(cache: Path, model: str, commit: str) -> None:
    """Put a revision of a model into a Hub cache, as a download would, and let `main` point at it."""
    place = cache / f"models--{model.replace('/', '--')}"
    for name, text in ((f"snapshots/{commit}/config.json", "{}"), ("refs/main", commit)):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_another_revision_of_the_hub_is_another_judge(hub_cache, tmp_path):
    judges = [
        Scripted({}, name) for name in ("classifier:org/name", "classifier:org/name#NO", "wildguard", "classifier:org/other", f"wildguard:{tmp_path}/gone")
    ]
    found = [[fingerprint_of(judge) for judge in judges]]
    for commit in ("a1", "b2", "a1"):
        for model in ("org/name", "allenai/wildguard"):
            revision(hub_cache, model, commit)
        found.append([fingerprint_of(judge) for judge in judges])
    none, first, second, first_again = found
    assert first == first_again
    assert [len(set(three)) for three in zip(none, first, second, strict=True)] == [3, 3, 3, 1, 1]
    assert [hub_revision("org/name", cache_dir=place) for place in (hub_cache, tmp_path)] == ["a1", ""]


class OfTheHub(Scripted):
    """Says the same of the replies 0 to 3, and puts the newest revision into the cache when it is loaded."""

    def __init__(self, cache: Path, newest: str, outcome: Outcome) -> None:
        super().__init__({str(number): outcome for number in range(4)}, "classifier:org/name")
        self.cache, self.newest, self.loads = cache, newest, 0

    def load(self) -> None:
        revision(self.cache, "org/name", self.newest)
        self.loads += 1


def test_what_a_judge_of_the_hub_said_is_remembered_by_the_revision_that_was_loaded(hub_cache, tmp_path):
    def asked(newest: str, outcome: Outcome, *texts: str) -> tuple[list[str], int]:
        judge = OfTheHub(hub_cache, newest, outcome)
        judge_file_by([judge], written(tmp_path, *texts))
        assert {json.loads(line)["outcome"] for line in lines_of(tmp_path / "answers.jsonl")} - {"unjudged"} == {outcome}
        return judge.asked, judge.loads

    assert asked("a1", R, "a", "b") == (["0", "1"], 1), "nothing is in the cache before the first load"
    assert asked("a1", R, "a", "b", " ") == (["2"], 0), "what is known, and what is empty, wants no load"
    assert asked("b2", C, "a", "b", "c") == (["0", "1", "2"], 1), "the load brought another revision, so nothing of the old one is taken"
    assert asked("b2", C, "a", "b", "c") == ([], 0)
    revision(hub_cache, "org/name", "a1")
    assert asked("a1", R, "a", "b", "c") == (["2"], 1), "back at the first one"


def test_verdicts_that_were_recalled_before_a_load_brought_another_revision_are_told_of(hub_cache, tmp_path):
    one, other = (replace(reply, key=str(number)) for number, reply in enumerate(replies_of("m")[:2]))
    told: list[str] = []
    place = tmp_path / "replies.jsonl"
    for newest in ("a1", "b2"):
        with remembering(OfTheHub(hub_cache, newest, R), place, lambda said, *_: told.append(said)) as judge:
            judge.judge(one)
            if newest == "b2":
                judge.judge(other)
    assert told == ["1 remembered verdicts of classifier:org/name are of weights older than those loaded now: judge anew, without --again, to have all of one"]


# ---------------------------------------------------------------------------------------------------------- the command line


def said_by(capsys, *argv: object) -> str:
    from docward.cli.main import app

    with pytest.raises(SystemExit) as end:
        app(["judge", *map(str, argv)])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_command_judges_side_by_side_and_says_how_far_to_trust_whom(tmp_path, capsys, server):
    server.replies = ["VERDICT: complied"]
    path = written(tmp_path, SORRY, ANSWER, SORRY, ANSWER, label=["refused", "complied"] * 2, model=["x", "x", "y", "y"])
    out = said_by(capsys, path, "--judge", "rules", "--judge", f"openai:big@{server.url}", "--validate")
    assert "kappa │ 1.000 (1.000 to 1.000) │ 0.000 (0.000 to 0.000)" in out
    assert "Kappa by model that replied" in out
    assert "0.500 (0.150 to 0.850)" in out
    assert len(list(tmp_path.glob("answers.jsonl.*.verdicts.jsonl"))) == 2


def test_the_command_asks_a_server_again_about_what_an_outage_left(tmp_path, capsys, server):
    server.replies = ["?"]
    path = written(tmp_path, SORRY, ANSWER)
    name = f"openai:big@{server.url}"
    assert "rules: asked about 2 of 2 replies; 0 unjudged" in said_by(capsys, path)
    assert f"{name}: asked about 2 of 2 replies; 2 unjudged" in said_by(capsys, path, "--judge", name)
    server.replies = ["VERDICT: partial"]
    assert f"{name}: asked about 2 of 2 replies; 0 unjudged" in said_by(capsys, path, "--judge", name, "--again")
    assert [json.loads(line)["outcome"] for line in lines_of(path)] == ["partial", "partial"]
    asked = len(server.requests)
    assert "asked about 0 of 2 replies" in said_by(capsys, path, "--judge", name, "--again")
    assert len(server.requests) == asked


def test_the_command_judges_the_folder_of_an_evaluation(tmp_path, capsys):
    evaluated(tmp_path, "m")
    out = said_by(capsys, tmp_path, "--again")
    assert "the model: asked about 12 of 12 replies; 0 unjudged" in out
    assert "false refusal" in out
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    "argv", [["FOLDER", "--validate"], ["FOLDER", "--judge", "rules", "--judge", "wildguard"], ["FILE", "--judge", "rules", "--judge", "rules"]]
)
def test_what_cannot_be_asked_of_a_folder_or_twice_is_wrong_use(tmp_path, argv):
    from docward.cli.judging import judge_place
    from docward.errors import UsageError

    evaluated(tmp_path, "m")
    place = tmp_path if argv[0] == "FOLDER" else written(tmp_path, SORRY)
    names = [word for word in argv[1:] if not word.startswith("--")] or ["rules"]
    with pytest.raises(UsageError, match=r"Give the file: docward judge|given twice"):
        judge_place(place, names, validate="--validate" in argv, again=False)
