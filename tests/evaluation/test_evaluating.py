from __future__ import annotations

import json
from dataclasses import replace

import pytest

from docward.errors import DocumentError, RunError
from docward.evaluation import judging
from docward.evaluation.collecting import PART
from docward.evaluation.evaluating import Settings, compare, evaluate, planned_replies, wording_of
from docward.evaluation.judges import RuleJudge
from docward.evaluation.rejudging import judge_evaluation
from docward.evaluation.utility import case_accuracy, chrf, golds_of
from docward.models import load
from docward.records import held, read_rows
from docward.servers import Server
from docward.tasks import TASKS, get_tasks
from docward.types import Label, Outcome, Reply, Split, Verdict
from serving_stub import strictest
from tiny import some_documents

SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "case"])), max_new_tokens=4)


def test_every_document_and_task_gets_one_reply_and_one_verdict(tiny, tmp_path):
    documents = some_documents(3)
    metrics = evaluate(tiny, documents, SETTINGS, tmp_path)
    replies, verdicts = read_rows(tmp_path / "replies.jsonl", Reply), read_rows(tmp_path / "verdicts.jsonl", Verdict)
    assert (
        sorted(reply.key for reply in replies) == sorted(verdict.key for verdict in verdicts) == sorted(one.key for one in planned_replies(documents, SETTINGS))
    )
    assert len({reply.key for reply in replies}) == 18
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert {(rate["set"], rate["task"]) for rate in metrics["rates"]} == {
        (label, task) for label in ("malicious", "sensitive", "ordinary") for task in ("summarize", "case")
    }
    assert set(metrics) >= {"rates", "pooled", "balance", "utility"}


class StopHere(Exception):  # noqa: N818 - a stand-in for Ctrl-C
    pass


def test_a_stopped_evaluation_goes_on_and_ends_the_same(tiny, tmp_path):
    documents = some_documents(4)
    settings = Settings(tasks=tuple(get_tasks(["summarize", "case"])), max_new_tokens=4, max_batch_tokens=600)
    whole = evaluate(tiny, documents, settings, tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        if 0 < done < total:
            raise StopHere

    with pytest.raises(StopHere):
        evaluate(tiny, documents, settings, tmp_path / "stopped", progress=stop)
    before = (tmp_path / "stopped" / "replies.jsonl").read_bytes()
    with (tmp_path / "stopped" / "replies.jsonl").open("ab") as log:
        log.write(b'{"key": "torn')  # what a kill leaves behind
    assert evaluate(tiny, documents, settings, tmp_path / "stopped") == whole
    assert 0 < len(before.splitlines()) < 24
    for name in ("replies.jsonl", "verdicts.jsonl", "metrics.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_replies_stand_in_the_order_of_documents_and_tasks_and_those_of_a_larger_evaluation_stay(tiny, tmp_path):
    documents = some_documents(2)
    evaluate(tiny, documents, SETTINGS, tmp_path)
    larger = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in larger] == [one.key for one in planned_replies(documents, SETTINGS)]
    metrics = evaluate(tiny, documents[:2:-1], SETTINGS, tmp_path)
    after = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert after[:6] == [line for one in documents[:2:-1] for line in larger if json.loads(line)["document_id"] == one.id]
    assert sorted(after) == sorted(larger)
    assert sum(metrics["documents"].values()) == 3
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 6


def test_two_evaluations_into_one_folder_at_once_are_refused(tiny, tmp_path):
    evaluate(tiny, some_documents(1), SETTINGS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with held(tmp_path), pytest.raises(RunError, match="Another process is working in"):
        evaluate(tiny, some_documents(2), SETTINGS, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_lock_that_a_kill_left_holds_nobody_up_and_a_finished_evaluation_leaves_none(tiny, tmp_path):
    (tmp_path / ".lock").touch()
    evaluate(tiny, some_documents(1), SETTINGS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "metrics.json", "replies.jsonl", "verdicts.jsonl"]


def test_a_folder_of_another_evaluation_is_refused_and_left_alone(tiny, tmp_path):
    evaluate(tiny, some_documents(1), SETTINGS, tmp_path)
    before = (tmp_path / "replies.jsonl").read_bytes()
    with pytest.raises(RunError, match="max_new_tokens: 4 there, 5 now"):
        evaluate(tiny, some_documents(1), Settings(tasks=tuple(get_tasks(["summarize"])), max_new_tokens=5), tmp_path)
    assert (tmp_path / "replies.jsonl").read_bytes() == before


def test_matched_documents_are_asked_in_the_same_words():
    for task in TASKS.values():
        asked = {document.triple: set() for document in some_documents(8)}
        for document in some_documents(8):
            asked[document.triple].add(wording_of(task, document, "seen"))
        assert all(len(found) == 1 for found in asked.values())


def test_validation_documents_are_asked_in_seen_words_that_training_does_not_have():
    for task in TASKS.values():
        for language in ("en", "de"):
            document = replace(some_documents(1)[0], language=language, split=Split.VALIDATION)
            number, words = wording_of(task, document, "seen")
            assert number in task.seen_by(Split.VALIDATION, language)
            assert number not in task.seen_by(Split.TRAIN, language)
            assert words == task.asked(language)[number]


def test_unseen_wordings_are_never_seen_ones():
    for task in TASKS.values():
        number, words = wording_of(task, some_documents(1)[0], "unseen")
        assert words not in task.wordings
        assert number >= len(task.wordings)
        assert len(task.wordings) >= 3


def test_the_same_model_twice_has_full_utility_and_no_decided_difference(tiny, tiny_folder, tmp_path):
    documents = some_documents(3)
    for name in ("first", "second"):
        evaluate(load(str(tiny_folder)), documents, SETTINGS, tmp_path / name)
    metrics, tests = compare(tmp_path / "first", tmp_path / "second", golds_of(documents), margin=0.95)
    assert next(one for one in metrics["utility"] if one["measure"] == "chrf_vs_untuned")["value"] == pytest.approx(1)
    assert tests
    assert all(one["says"] == "undecided" for one in tests)


def test_utility_measures_know_right_from_wrong():
    assert case_accuracy("Hello Anna. How", "Hello Anna. How") == 1
    assert case_accuracy("hello anna. how", "Hello Anna. How") == pytest.approx(12 / 15)
    assert case_accuracy("", "Hello") == 0
    assert chrf("the cat sat", "the cat sat") == pytest.approx(1)
    assert chrf("zzz", "the cat sat") == 0


def test_metrics_beside_the_untuned_model_say_what_is_kept_and_what_cannot_be_told(tiny, tiny_folder, tmp_path):
    documents = some_documents(2)
    for name in ("first", "second"):
        evaluate(load(str(tiny_folder)), documents, SETTINGS, tmp_path / name)
    alone = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert (alone["retention"], alone["differences"]) == ([], [])
    assert all(said.startswith(("2 documents cannot", "No reply")) for said in alone["advice"].values())
    metrics, _ = compare(tmp_path / "first", tmp_path / "second", golds_of(documents), margin=0.95)
    assert json.loads((tmp_path / "first" / "metrics.json").read_text()) == metrics
    assert {(one["task"], one["measure"]) for one in metrics["retention"]} == {("summarize", "chrf_vs_untuned"), ("case", "case_accuracy")}
    assert {one["says"] for one in (*metrics["retention"], *metrics["differences"])} == {"undecided"}
    assert set(metrics["advice"]) == set(metrics["pooled"])


# ------------------------------------------------------------------------------------- what is given anew, into the same folder


FILES = ("replies.jsonl", "verdicts.jsonl", "metrics.json")


def same_files(first, second, names=FILES) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def echo(asked) -> str:
    return "Well: " + asked["messages"][-1]["content"]


def test_documents_under_another_label_are_counted_under_it_and_not_asked_again(server, tmp_path):
    server.says, model = echo, Server(server.url, "big")
    before = [replace(one, label=Label.SENSITIVE, source="a.jsonl") for one in some_documents(2)]
    now = [replace(one, label=Label.MALICIOUS, category="theft", source="b.jsonl") for one in before]
    evaluate(model, before, SETTINGS, tmp_path / "run")
    metrics = evaluate(model, now, SETTINGS, tmp_path / "run")
    assert len(server.requests) == len(before) * 2, "asked again"
    assert (set(metrics["pooled"]), {(one["source"], one["set"]) for one in metrics["sets"]}) == ({"malicious"}, {("b.jsonl", "malicious")})
    evaluate(model, now, SETTINGS, tmp_path / "fresh")
    assert same_files(tmp_path / "run", tmp_path / "fresh")


@pytest.mark.parametrize("what", ["text", "words"])
def test_another_text_under_the_same_id_is_asked_anew_and_it_is_said(server, tmp_path, what):
    server.says, model, notes = echo, Server(server.url, "big"), []
    documents, settings = some_documents(2), SETTINGS
    evaluate(model, documents, settings, tmp_path / "run")
    if what == "text":
        documents = [replace(documents[0], text="Note 7: another one. It has another end."), *documents[1:]]
    else:
        words = [replace(task, wordings=tuple(f"Please. {one}" for one in task.wordings)) for task in settings.tasks[:1]]
        settings = replace(settings, tasks=(*words, *settings.tasks[1:]))
    asked, anew = len(server.requests), 2 if what == "text" else 6
    evaluate(model, documents, settings, tmp_path / "run", progress=lambda said, *_: notes.append(said))
    assert len(server.requests) == asked + anew
    assert f"{anew} replies in run are to other texts or words than now, so they are asked for again" in notes
    evaluate(model, documents, settings, tmp_path / "fresh")
    assert same_files(tmp_path / "run", tmp_path / "fresh")
    asked = len(server.requests)
    evaluate(model, documents, settings, tmp_path / "run")
    assert len(server.requests) == asked


def test_the_likelihood_of_another_text_under_the_same_id_is_measured_anew(tiny, tmp_path):
    settings, documents = Settings(tuple(get_tasks(["next_sentence"])), max_new_tokens=1), some_documents(1)
    evaluate(tiny, documents, settings, tmp_path / "run")
    documents = [*documents[:2], replace(documents[2], text="This is quite another note. It has another end, too. And it stops right here.")]
    for name in ("run", "fresh"):
        evaluate(tiny, documents, settings, tmp_path / name)
    assert_measured_alike(tmp_path / "run", tmp_path / "fresh")


def assert_measured_alike(run, fresh) -> None:
    """What is measured of other texts stays behind what counts."""
    assert same_files(run, fresh)
    there, wanted = ((folder / "likelihoods.jsonl").read_bytes() for folder in (run, fresh))
    assert there.startswith(wanted)
    assert len(there) > len(wanted)


def test_the_likelihood_of_another_gold_sentence_is_measured_anew_though_no_reply_is_asked_for_again(tiny, tmp_path):
    settings, documents = Settings(tuple(get_tasks(["next_sentence"])), max_new_tokens=1), some_documents(1)
    documents = [replace(one, gold={"next_sentence": "It ends here."}) for one in documents]
    before = evaluate(tiny, documents, settings, tmp_path / "run")
    documents, notes = [replace(one, gold={"next_sentence": "Quite another end, and a long one."}) for one in documents], []
    after = evaluate(tiny, documents, settings, tmp_path / "run", progress=lambda said, *_: notes.append(said))
    assert not [said for said in notes if "asked for again" in said]
    assert after["utility"] == evaluate(tiny, documents, settings, tmp_path / "fresh")["utility"] != before["utility"]
    assert_measured_alike(tmp_path / "run", tmp_path / "fresh")
    with_all, _ = compare(tmp_path / "run", tmp_path / "fresh", golds_of(documents), margin=0.9)
    wanted, _ = compare(tmp_path / "fresh", tmp_path / "run", golds_of(documents), margin=0.9)
    assert (with_all["utility"], with_all["retention"]) == (wanted["utility"], wanted["retention"]), "what is of other texts is in no figure"


def test_what_a_killed_process_measured_of_another_text_is_not_of_this_one(tiny, tmp_path):
    settings, documents = Settings(tuple(get_tasks(["next_sentence"])), max_new_tokens=1), some_documents(1)
    evaluate(tiny, documents, settings, tmp_path / "run")
    (tmp_path / "run" / "likelihoods.jsonl").rename(tmp_path / "run" / PART.format("likelihoods", 1))
    documents = [*documents[:2], replace(documents[2], text="This is quite another note. It has another end, too. And it stops right here.")]
    for name in ("run", "fresh"):
        evaluate(tiny, documents, settings, tmp_path / name)
    assert_measured_alike(tmp_path / "run", tmp_path / "fresh")


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_run_that_stops_before_it_judges_leaves_no_verdict_on_a_text_of_before(server, tmp_path, monkeypatch, all_of_them):
    server.says, model, documents = echo, Server(server.url, "big"), some_documents(2)
    evaluate(model, documents, SETTINGS, tmp_path)
    server.says = lambda asked: "I'm sorry, but I can't help with that."
    changed = [replace(one, text=f"{one.text} And more.") if all_of_them or one == documents[0] else one for one in documents]

    def stop(*_, **__):
        raise StopHere

    with monkeypatch.context() as patch:
        patch.setattr("docward.evaluation.evaluating.judge_folder", stop)
        with pytest.raises(StopHere):
            evaluate(model, changed, SETTINGS, tmp_path)
    if all_of_them:
        with pytest.raises(DocumentError, match="leave out --again"):
            judge_evaluation(tmp_path, RuleJudge(), again=True)
    else:
        judge_evaluation(tmp_path, RuleJudge(), again=True)
        assert {one.document_id for one in read_rows(tmp_path / "verdicts.jsonl", Verdict)} == {one.id for one in documents[1:]}
    evaluate(model, changed, SETTINGS, tmp_path)
    said = {one.document_id: one.outcome for one in read_rows(tmp_path / "verdicts.jsonl", Verdict)}
    assert said == {one.id: Outcome.REFUSED if one not in documents else Outcome.COMPLIED for one in changed}


def test_what_is_compared_still_says_what_is_missing_and_what_a_server_does_not_take(server, tmp_path):
    server.objects, server.says = strictest, echo
    for name in ("first", "second"):
        alone = evaluate(Server(server.url, "big"), some_documents(1), SETTINGS, tmp_path / name)
    (tmp_path / "first" / "likelihoods.jsonl").touch()  # of an evaluation in which nothing was measured
    metrics, _ = compare(tmp_path / "first", tmp_path / "second", golds_of(some_documents(1)), margin=0.9)
    assert metrics["not_taken"] == ["seed", "temperature"]
    assert {name: metrics[name] for name in ("missing", "withheld", "not_taken")} == {name: alone[name] for name in ("missing", "withheld", "not_taken")}
    assert json.loads((tmp_path / "first" / "metrics.json").read_text()) == metrics
    (tmp_path / "first" / "metrics.json").unlink()
    assert compare(tmp_path / "first", tmp_path / "second", golds_of(some_documents(1)), margin=0.9)[0]["utility"] == metrics["utility"]


class Paid:
    """A judge that counts what it is asked; `away`, it leaves all unjudged."""

    def __init__(self, name: str = "paid") -> None:
        self.name, self.asked, self.away = name, [], False

    def judge_all(self, replies):
        for reply in replies:
            self.asked.append(reply.key)
            yield Verdict.on(reply, Outcome.UNJUDGED if self.away else Outcome.REFUSED, judge=self.name, why="naïvely, as it says")


@pytest.fixture
def paid(monkeypatch) -> Paid:
    judge, get = Paid(), judging.get_judge
    monkeypatch.setattr(judging, "get_judge", lambda name: judge if name == "paid" else get(name))
    return judge


def test_a_model_judge_is_asked_about_new_and_unjudged_replies_alone(server, tmp_path, paid):
    server.says, model, settings = echo, Server(server.url, "big"), replace(SETTINGS, judge="paid")
    evaluate(model, some_documents(1), settings, tmp_path / "run")
    assert len(paid.asked) == 6
    paid.asked, paid.away = [], True
    metrics = evaluate(model, some_documents(2), settings, tmp_path / "run")
    later = [one.key for one in planned_replies(some_documents(2), settings)[6:]]
    assert paid.asked == later
    assert sum(rate["judged"] for rate in metrics["rates"]) == 6, "an outage costs no verdict of before"
    paid.asked, paid.away = [], False
    evaluate(model, some_documents(2), settings, tmp_path / "run")
    assert paid.asked == later
    evaluate(model, some_documents(2), settings, tmp_path / "fresh")
    assert same_files(tmp_path / "run", tmp_path / "fresh")
    paid.asked = []
    evaluate(model, [replace(one, text=f"{one.text} And more.") for one in some_documents(1)], settings, tmp_path / "run")
    assert len(paid.asked) == 6, "a verdict is on a reply, not on its key"


def test_another_judge_than_before_is_told_of_and_the_first_one_is_not_asked_twice(server, tmp_path, paid):
    server.says, model, notes = echo, Server(server.url, "big"), []
    evaluate(model, some_documents(1), replace(SETTINGS, judge="paid"), tmp_path / "run")
    before = (tmp_path / "run" / "verdicts.jsonl").read_bytes()
    for judge in ("rules", "rules", "paid"):
        evaluate(model, some_documents(1), replace(SETTINGS, judge=judge), tmp_path / "run", progress=lambda said, *_: notes.append(said))
        assert {one.judge for one in read_rows(tmp_path / "run" / "verdicts.jsonl", Verdict)} == {judge}
    assert [said for said in notes if "give way" in said] == [
        "verdicts of paid in run give way to those of rules",
        "verdicts of rules in run give way to those of paid",
    ]
    assert (tmp_path / "run" / "verdicts.jsonl").read_bytes() == before
    assert len(paid.asked) == 6
