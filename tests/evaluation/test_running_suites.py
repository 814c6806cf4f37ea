"""Suites as they are run: a folder each, stopped and gone on with, level 0 not asked twice; and what their numbers mean."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import pytest
from rich.console import Console
from test_evaluating import Paid

from docward.cli.showing import suites_table
from docward.errors import RunError
from docward.evaluation import evaluating, judging
from docward.evaluation.comparing import Pairs
from docward.evaluation.evaluating import Settings, evaluate
from docward.evaluation.generating import Prompt, generate
from docward.evaluation.rates import Sums, pooled
from docward.evaluation.suites import SUITES, UNCHANGED, Level, get_suites, running
from docward.evaluation.suites.drifting import drifting
from docward.evaluation.suites.running import run_suites
from docward.evaluation.suites.summing import suite_rates
from docward.models import load
from docward.records import read_rows
from docward.rendering import render
from docward.servers import Server
from docward.tasks import get_tasks
from docward.types import Label, Outcome, Position, Reply, Verdict
from tiny import byte_tokenizer, save_tiny_model, some_documents

SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "case"])), max_new_tokens=3)
ORDINARY = [one for one in some_documents(8) if one.label == Label.ORDINARY]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny model with a context that some lengths do not fit in."""
    return load(str(save_tiny_model(tmp_path_factory.mktemp("small") / "model", context=900)), dtype="float32")


@pytest.fixture
def asked(monkeypatch):
    """The prompts that models are asked in suites."""
    seen = []

    def spy(loaded, prompts, **options):
        seen.extend(prompts)
        return generate(loaded, prompts, **options)

    monkeypatch.setattr(evaluating, "generate", spy)
    return seen


@pytest.fixture(autouse=True)
def short_drift(monkeypatch):
    """A thirtieth of the steps of tuning: what they do is looked at elsewhere."""

    @contextmanager
    def short(loaded, seed):
        with drifting(loaded, seed) as after:
            yield lambda steps: after(-(-steps // 30))

    monkeypatch.setattr(running, "drifting", short)


def run(loaded, folder, *names, documents=None, settings=SETTINGS, **options):
    return run_suites(loaded, documents or some_documents(2), get_suites(names), settings, folder, ordinary=ORDINARY, **options)


def test_every_suite_runs_and_leaves_its_folder_and_a_row_for_each_level_and_set(small, tmp_path):
    evaluate(small, some_documents(1), SETTINGS, tmp_path)
    found = run(small, tmp_path, "all", documents=some_documents(1))
    assert json.loads((tmp_path / "suites.json").read_text()) == {"suites": found}
    assert [suite["name"] for suite in found] == list(SUITES)
    for suite in found:
        folder = tmp_path / "suites" / suite["name"]
        replies, verdicts = read_rows(folder / "replies.jsonl", Reply), read_rows(folder / "verdicts.jsonl", Verdict)
        assert sorted(one.key for one in replies) == sorted(one.key for one in verdicts)
        assert all(one.key.split("|")[:3] == [one.document_id, one.task, str(one.wording)] for one in replies)
        levels = ["unchanged", *(level.name for level in SUITES[suite["name"]].levels if level.name not in suite["left_out"])]
        assert {one.key.split("|")[3] for one in replies} == set(levels)
        assert [(row["level"], row["set"]) for row in suite["rows"]] == list(product(levels, Label))
        assert all((row["against_unchanged"] is None) == (row["level"] == "unchanged") for row in suite["rows"])
        assert all(row["changed"] == 0 for row in suite["rows"] if row["level"] == "unchanged")
        everywhere = [row for row in suite["rows"] if suite["name"] not in ("opener", "noise") and row["level"] not in ("unchanged", "passage alone")]
        assert all(row["changed"] == row["documents"] == 1 for row in everywhere), "short documents are passages, and few open like an answer"
        assert all(one.dropped == 0 for one in replies), "what does not fit is not asked"
    left_out = {suite["name"]: suite["left_out"] for suite in found if suite["left_out"]}
    assert set(left_out) == {"length", "dilution"}
    assert left_out["length"] == ["1000 tokens", "2000 tokens", "4000 tokens", "8000 tokens"]


def test_what_the_evaluation_was_answered_is_not_asked_again(tiny, tmp_path, asked):
    evaluate(tiny, some_documents(2), SETTINGS, tmp_path)
    asked.clear()
    run(tiny, tmp_path, "position", "opener")
    unchanged = {(one.document, one.instruction) for one in read_rows(tmp_path / "replies.jsonl", Reply)}
    assert len(asked) == 2 * len(unchanged), "level `before` and level `added`; no document opens like an answer, so `stripped` changes none"
    for name in ("position", "opener"):
        replies = read_rows(tmp_path / "suites" / name / "replies.jsonl", Reply)
        same = {one.key.removesuffix("|unchanged"): one.reply for one in replies if one.key.endswith("|unchanged")}
        assert same == {one.key: one.reply for one in read_rows(tmp_path / "replies.jsonl", Reply)}
    stripped = [one for one in json.loads((tmp_path / "suites.json").read_text())["suites"][1]["rows"] if one["level"] == "stripped"]
    assert {(row["changed"], row["against_unchanged"]["value"]) for row in stripped} == {(0, 0.0)}


def test_of_what_the_evaluation_was_answered_only_what_is_asked_is_kept(tiny, tmp_path):
    evaluate(tiny, some_documents(2), SETTINGS, tmp_path)
    first, *_ = read_rows(tmp_path / "replies.jsonl", Reply)
    request = (first.document, first.instruction, Position.AFTER, "", 0)
    [(mine, (text, *_))] = running._answers(tmp_path / "replies.jsonl", [request, ("another", "Do it.", Position.AFTER, "", 0)]).items()
    assert mine[0] is request[0], "one text in memory, not one a row"
    assert text == first.reply


def test_without_suites_no_reply_is_read(tiny, tmp_path):
    (tmp_path / "replies.jsonl").write_text("no JSON\n")
    assert run(tiny, tmp_path) == []


class StopHere(Exception):  # noqa: N818 - a stand-in for Ctrl-C
    pass


def test_a_stopped_suite_goes_on_and_ends_the_same(tiny, tmp_path, asked):
    settings = Settings(tasks=SETTINGS.tasks, max_new_tokens=3, max_batch_tokens=700)
    whole = run(tiny, tmp_path / "whole", "noise", settings=settings)
    all_asked = len(asked)

    def stop(what: str, done: int, total: int) -> None:
        if total // 2 < done < total:
            raise StopHere

    with pytest.raises(StopHere):
        run(tiny, tmp_path / "stopped", "noise", settings=settings, progress=stop)
    path = tmp_path / "stopped" / "suites" / "noise" / "replies.jsonl"
    before = path.read_bytes().splitlines()
    with path.open("ab") as log:
        log.write(b'{"key": "torn')
    asked.clear()
    assert run(tiny, tmp_path / "stopped", "noise", settings=settings) == whole
    assert 0 < len(asked) < all_asked
    assert set(before) <= set(path.read_bytes().splitlines())
    assert path.read_bytes() == (tmp_path / "whole" / "suites" / "noise" / "replies.jsonl").read_bytes()
    asked.clear()
    run(tiny, tmp_path / "stopped", "noise", settings=settings)
    assert asked == []


def test_a_suite_of_another_seed_or_other_ordinary_documents_is_refused_and_one_that_was_run_before_stays(tiny, tmp_path):
    run(tiny, tmp_path, "position")
    run(tiny, tmp_path, "opener")
    assert [suite["name"] for suite in json.loads((tmp_path / "suites.json").read_text())["suites"]] == ["position", "opener"]
    with pytest.raises(RunError, match="seed: 0 there, 1 now"):
        run(tiny, tmp_path, "opener", seed=1)
    with pytest.raises(RunError, match="ordinary: "):
        run_suites(tiny, some_documents(2), get_suites(["opener"]), SETTINGS, tmp_path, ordinary=ORDINARY[:3])


def test_a_suite_asks_anew_about_other_texts_alone_and_its_judge_about_other_replies_alone(server, tmp_path, monkeypatch):
    server.says, model, judge = (lambda asked: asked["messages"][-1]["content"]), Server(server.url, "big"), Paid()
    monkeypatch.setattr(judging, "get_judge", lambda _: judge)
    documents, notes = some_documents(2), []
    (whole,) = run(model, tmp_path, "position", documents=documents)
    asked = len(server.requests)
    assert (asked, len(judge.asked)) == (24, 24)
    judge.away = True
    assert run(model, tmp_path, "position", documents=documents) == [whole], "an outage costs no verdict of before"
    judge.away, judge.name = False, "other"
    documents = [replace(documents[0], text="Another note. It is short."), *documents[1:]]
    run(model, tmp_path, "position", documents=documents, progress=lambda said, *_: notes.append(said))
    assert len(server.requests) == asked + 4
    assert "4 replies in position are to other texts or words than now, so they are asked for again" in notes
    assert "verdicts of paid in position give way to those of other" in notes
    assert len(judge.asked) == 48


def test_what_a_server_withholds_is_counted_with_the_suite_and_named_under_its_table(server, tmp_path):
    flagged = (403, {"error": {"message": "flagged"}})
    server.says = lambda asked: asked["messages"][-1]["content"]
    server.objects = lambda asked: flagged if "note 1" in asked["messages"][-1]["content"] else None
    found = run(Server(server.url, "big"), tmp_path, "position", "opener")
    replies = read_rows(tmp_path / "suites" / "position" / "replies.jsonl", Reply)
    withheld = [one.withheld for one in replies if one.withheld]
    assert found[0]["withheld"] == {"replies": len(withheld), "why": {"HTTP 403: flagged": len(withheld)}}
    assert 0 < len(withheld) < len(replies)
    assert json.loads((tmp_path / "suites.json").read_text())["suites"] == found
    assert suites_table(found).caption.endswith(f"unjudged: position {len(withheld)}, opener {found[1]['withheld']['replies']}")
    server.objects = lambda asked: None
    (found,) = run(Server(server.url, "big"), tmp_path / "all", "position")
    assert found["withheld"] == {"replies": 0, "why": {}}
    assert suites_table([found]).caption is None


def test_suites_of_several_judges_are_told_apart_under_the_table(server, tmp_path, monkeypatch):
    server.says = lambda asked: asked["messages"][-1]["content"]
    found = run(Server(server.url, "big"), tmp_path, "position")
    monkeypatch.setattr(judging, "get_judge", lambda _: Paid("[b]paid"))
    found += run(Server(server.url, "big"), tmp_path, "opener")
    assert [one["judges"] for one in found] == [{"rules": 24}, {"[b]paid": 36}]
    assert suites_table(found[:1]).caption is None
    screen = Console(width=300)
    with screen.capture() as shown:
        screen.print(suites_table([*found, {**found[0], "name": "old", "judges": None}]))
    assert "verdicts are of several judges (position: rules 24; opener: [b]paid 36; old: not known)" in shown.get()


# ---- first words of an answer


def test_an_opening_stands_where_the_answer_begins_and_is_no_part_of_the_reply(tiny):
    tokenizer = byte_tokenizer()
    plain = render(tokenizer, document="Some words.", instruction="Do it.", limit=400)
    opened = render(tokenizer, document="Some words.", instruction="Do it.", opening="Sure, here is<|im_end|>", limit=400)
    assert opened.ids[: opened.answer_start] == plain.ids
    assert tokenizer.decode(opened.ids[opened.answer_start :]) == "Sure, here is< |im_end|>", "it cannot end its own turn"
    short = render(tokenizer, document="Some words. " * 50, instruction="Do it.", opening="Sure, here is", limit=400, reserve=20)
    assert len(short.ids) == 380
    assert tokenizer.decode(short.ids).endswith("assistant\nSure, here is"), "a long document does not cost the opening"
    prompts = [Prompt("plain", "Some words.", "Do it."), Prompt("opened", "Some words.", "Do it.", opening="Sure, here is")]
    shared, alone = ([one for batch in generate(tiny, prompts, max_new_tokens=6, share=share) for one in batch] for share in (True, False))
    assert shared == alone
    assert not shared[1].text.startswith("Sure")


# ---- numbers


def verdicts(refused: dict[str, list[int]], label=Label.MALICIOUS) -> list[Verdict]:
    """Of each document: one verdict a task, 1 refused, 0 complied, -1 unjudged."""
    outcomes = {1: Outcome.REFUSED, 0: Outcome.COMPLIED, -1: Outcome.UNJUDGED}
    return [
        Verdict(f"{name}|{task}", name, label, f"task {task}", outcomes[word], "rules", "")
        for name, words in refused.items()
        for task, word in enumerate(words)
    ]


def rows(**levels):
    return suite_rates("noise", {UNCHANGED if name == "unchanged" else Level(name): Sums(found) for name, found in levels.items()}, {})


def test_with_one_task_a_document_the_test_is_mcnemar_s_with_holm_s_correction():
    before = {f"d{number}": [number % 3 == 0] for number in range(30)}
    after = {f"d{number}": [number % 3 == 0 or number % 4 == 1] for number in range(30)}
    found = rows(unchanged=verdicts(before), harder=verdicts(after))[1].against_unchanged
    known = Pairs(verdicts(after), verdicts(before)).paired()[0]
    assert (found.p, found.value, found.documents, found.says) == (pytest.approx(known.p), pytest.approx(known.difference), 30, known.says)
    assert found.says == "more refusals"


def test_five_tasks_on_one_document_are_not_five_samples():
    few = {"a": [1] * 5, "b": [1] * 5, "c": [1] * 5, "d": [0] * 5}
    none = {name: [0] * 5 for name in few}
    found = rows(unchanged=verdicts(none), harder=verdicts(few))[1].against_unchanged
    assert (found.documents, found.value, found.p, found.says) == (4, 0.75, 0.25, "undecided")
    assert found.low < 0.75 < found.high


def test_rates_are_the_pooled_ones_and_unjudged_replies_are_in_no_difference():
    before = {"a": [1, -1], "b": [0, 0], "c": [-1, -1]}
    after = {"a": [0, 0], "b": [-1, 1], "c": [1, 1]}
    unchanged, harder = rows(unchanged=verdicts(before), harder=verdicts(after))
    known = pooled(verdicts(after))["malicious"]
    assert (harder.hits, harder.judged, harder.unjudged, harder.value, harder.low, harder.high) == (3, 5, 1, known.value, known.low, known.high)
    assert harder.against_unchanged.documents == 2, "c has nothing judged at level 0"
    assert harder.against_unchanged.value == 0
    assert unchanged.documents == 3


def test_no_difference_at_all_has_an_interval_that_narrows_with_documents():
    few, many = ({f"d{number}": [0, 1] for number in range(count)} for count in (5, 50))
    widths = [rows(unchanged=verdicts(some), harder=verdicts(some))[1].against_unchanged for some in (few, many)]
    assert [one.value for one in widths] == [0, 0]
    assert widths[0].high > 2 * widths[1].high > 0
    assert widths[0].low == pytest.approx(-widths[0].high, abs=0.03)


def test_many_levels_are_corrected_together():
    before, after = ({f"d{number}": [number < shift] for number in range(12)} for shift in (0, 6))
    alone = rows(unchanged=verdicts(before), harder=verdicts(after))[1].against_unchanged
    crowd = {f"level{number}": verdicts(before) for number in range(5)}
    among = rows(unchanged=verdicts(before), harder=verdicts(after), **crowd)[1].against_unchanged
    assert (alone.p_holm, alone.says) == (pytest.approx(2 / 2**6), "more refusals")
    assert (among.p, among.p_holm, among.says) == (alone.p, pytest.approx(6 * alone.p), "undecided")
