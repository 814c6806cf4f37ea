"""Replies that are cut where their verdict is settled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from docward.errors import RunError
from docward.evaluation import branching, evaluating
from docward.evaluation.evaluating import Settings, compare, evaluate
from docward.evaluation.generating import Prompt, generate
from docward.evaluation.judges import is_settled, judge_text
from docward.recipe import EvaluationSection
from docward.records import read_rows
from docward.tasks import get_tasks
from docward.types import Outcome, Reply
from tiny import some_documents

ROWS = [json.loads(line) for line in (Path(__file__).parent / "replies.jsonl").read_text(encoding="utf-8").splitlines()]
DOCUMENT = "The ferry leaves at nine and comes back at six. Tickets are sold on board, and dogs may come along."
OPENING = "The ferry runs twice. It is cheap. People may bring their pets. "


def cut(row: dict[str, str]) -> str | None:
    """A reply up to where it would be stopped, asked every few signs; None where it never would."""
    given = {"document": row["document"], "instruction": row["instruction"]}
    return next((row["reply"][:end] for end in range(8, len(row["reply"]), 8) if is_settled(row["reply"][:end], **given)), None)


def outcomes(row: dict[str, str], *texts: str) -> list[Outcome]:
    return [judge_text(text, document=row["document"], instruction=row["instruction"]).outcome for text in texts]


def test_written_replies_get_the_verdict_where_they_are_cut_that_they_get_whole():
    """But for a refusal behind the work, which is made to come late: that is not seen, and said to be."""
    found = [(row, *outcomes(row, said, row["reply"])) for row in ROWS if (said := cut(row)) is not None]
    assert len(found) > 20
    wrong = [(row["kind"], short, whole) for row, short, whole in found if short != whole]
    assert {(short, whole) for _, short, whole in wrong} <= {(Outcome.COMPLIED, Outcome.PARTIAL)}
    assert {kind for kind, *_ in wrong} <= {"do-then-decline", "do-and-stop"}


MORE = "The days went by and nothing changed in that town. Some rain fell on the hills. A boat came in late. "


@pytest.mark.parametrize("more", [MORE * 3, "lorem " * 3 + MORE * 9, f'"{MORE}" {MORE}', f"{MORE}\n\n{MORE}"])
def test_what_follows_a_settled_reply_changes_no_verdict(more):
    """Written replies go on for a while here, so that most are settled on the way."""
    settled = 0
    for row in ROWS[::8]:
        whole = f"{row['reply']} {more}"
        if (said := cut(row | {"reply": whole})) is not None and row["kind"] not in ("do-then-decline", "do-and-stop"):
            settled += 1
            short, longer = outcomes(row, said, whole)
            assert short == longer, (row["id"], said)
    assert settled > 25


@pytest.mark.parametrize(
    "said",
    [
        "",
        OPENING[:40],
        OPENING.rstrip(),  # the third sentence may go on
        OPENING + 'He said "I',  # and a quotation may take in what was said before
        f"<think>{OPENING} So I will do it.",
        "word " * 40,
    ],
)
def test_a_reply_is_not_settled_before_its_opening_is_complete(said):
    assert not is_settled(said, document=DOCUMENT)


@pytest.mark.parametrize(
    "said",
    [
        OPENING + "And",
        "I'm sorry, but I can't help with that. " + OPENING + "And",
        "A long way from " + ", ".join(f"place {n} and town {n}" for n in range(40)) + ". And",
    ],
)
def test_a_reply_with_a_complete_opening_is_settled(said):
    assert is_settled(said, document=DOCUMENT)


def test_a_copy_of_the_document_does_not_complete_the_opening():
    assert not is_settled(f"{DOCUMENT} {DOCUMENT} And", document=DOCUMENT)
    assert is_settled(f"{DOCUMENT} {DOCUMENT} And")


def prompts() -> list[Prompt]:
    asked = [(document, task) for document in some_documents(2) for task in get_tasks(["summarize", "case", "sentiment"])]
    return [Prompt(f"{document.id}|{task.name}", document.text, task.wordings[0]) for document, task in asked]


def test_replies_are_cut_at_the_same_places_with_and_without_sharing(tiny):
    how = {"max_new_tokens": 14, "enough": lambda prompt, said: len(said) > 5 + len(prompt.key) % 3}
    shared, plain = ({one.key: one for batch in generate(tiny, prompts(), share=share, **how) for one in batch} for share in (True, False))
    whole = {one.key: one.text for batch in generate(tiny, prompts(), max_new_tokens=14) for one in batch}
    assert shared == plain
    assert any(one.cut for one in shared.values())
    assert all(whole[one.key].startswith(one.text) and not one.finished for one in shared.values() if one.cut)


def test_a_real_model_is_spared_tokens_and_judged_the_same(real, monkeypatch):
    rows = []
    step = branching.Branches.step
    monkeypatch.setattr(branching.Branches, "step", lambda self, layer, query, *given: rows.append(len(query)) or step(self, layer, query, *given))
    asked = [Prompt("trip", DOCUMENT, "What can a traveller do here? Answer in a few sentences.")]

    def answered(enough):
        rows.clear()
        found = {one.key: one for batch in generate(real, asked, max_new_tokens=64, enough=enough) for one in batch}
        return found, sum(rows)

    whole, every = answered(None)
    cut, fewer = answered(evaluating._settled)
    assert fewer < 0.85 * every
    assert any(one.cut for one in cut.values())
    for prompt in asked:
        outcomes = {judge_text(found[prompt.key].text, document=prompt.document, instruction=prompt.instruction).outcome for found in (whole, cut)}
        assert len(outcomes) == 1


CUT = Settings(tasks=tuple(get_tasks(["summarize", "case"])), max_new_tokens=12, max_batch_tokens=600, verdict_only=True)


@pytest.fixture
def soon(monkeypatch):
    """A tiny model says nothing that is a sentence, so every other reply is settled after a few signs here."""
    monkeypatch.setattr(evaluating, "_settled", lambda prompt, said: len(said) > 4 and "case" in prompt.key)


class StopHere(Exception):  # noqa: N818 - a stand-in for Ctrl-C
    pass


def test_a_stopped_evaluation_of_verdicts_only_goes_on_and_ends_the_same(tiny, tmp_path, soon):
    def stop(what: str, done: int, total: int) -> None:
        if 0 < done < total:
            raise StopHere

    whole = evaluate(tiny, some_documents(3), CUT, tmp_path / "whole")
    with pytest.raises(StopHere):
        evaluate(tiny, some_documents(3), CUT, tmp_path / "stopped", progress=stop)
    assert evaluate(tiny, some_documents(3), CUT, tmp_path / "stopped") == whole
    assert (tmp_path / "stopped" / "replies.jsonl").read_bytes() == (tmp_path / "whole" / "replies.jsonl").read_bytes()
    assert whole["cut"] == sum(reply.cut for reply in read_rows(tmp_path / "whole" / "replies.jsonl", Reply)) > 0


def test_what_cut_replies_are_worth_as_work_is_not_measured(tiny, tmp_path, soon):
    assert not evaluate(tiny, some_documents(2), CUT, tmp_path / "cut")["utility"]
    assert evaluate(tiny, some_documents(2), replace(CUT, verdict_only=False), tmp_path / "whole")["utility"]
    for first, second in (("cut", "whole"), ("whole", "cut")):
        metrics, _ = compare(tmp_path / first, tmp_path / second, {}, margin=0.9)
        assert (metrics["retention"], metrics["utility"]) == ([], []), "nor is it a measure of other work"


@pytest.mark.parametrize("first", [True, False])
def test_cut_and_whole_replies_never_share_a_folder(tiny, tmp_path, soon, first):
    evaluate(tiny, some_documents(1), replace(CUT, verdict_only=first), tmp_path)
    with pytest.raises(RunError, match=f"verdict_only: {first} there, {not first} now"):
        evaluate(tiny, some_documents(1), replace(CUT, verdict_only=not first), tmp_path)


def test_a_folder_from_before_there_were_cut_replies_holds_whole_ones(tiny, tmp_path):
    evaluate(tiny, some_documents(1), replace(CUT, verdict_only=False), tmp_path)
    place = tmp_path / "evaluation.json"
    place.write_text(json.dumps({name: value for name, value in json.loads(place.read_text()).items() if name != "verdict_only"}))
    evaluate(tiny, some_documents(2), replace(CUT, verdict_only=False), tmp_path)
    with pytest.raises(RunError, match="verdict_only"):
        evaluate(tiny, some_documents(2), CUT, tmp_path)


def test_only_the_rule_judge_says_when_its_verdict_is_settled():
    with pytest.raises(ValueError, match="verdict_only goes with the judge rules"):
        EvaluationSection(verdict_only=True, judge="wildguard")
