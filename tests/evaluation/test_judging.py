"""Judging files: what is written, in which order, and what the figures of a validation mean."""

import json
from pathlib import Path

import pytest

from docward.errors import DocumentError
from docward.evaluation.judges import RuleJudge
from docward.evaluation.judging import Validation, agreement, judge_replies
from docward.evaluation.rejudging import judge_file_by
from docward.types import Label, Outcome, Reply

SORRY = "I'm sorry, but I can't help with that."
ANSWER = "The ferry sails again on Saturday."
R, P, C, U = Outcome.REFUSED, Outcome.PARTIAL, Outcome.COMPLIED, Outcome.UNJUDGED


def written(folder: Path, *rows: object) -> Path:
    path = folder / "replies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def judged(path: Path, *, validate: bool = False) -> Validation | None:
    return judge_file_by([RuleJudge()], path, validate=validate).validations.get("rules")


def verdicts(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.with_name(path.name + ".verdicts.jsonl").read_text(encoding="utf-8").splitlines()]


def test_verdicts_stand_in_the_order_of_the_file(tmp_path):
    path = written(tmp_path, {"reply": SORRY, "task": "summarize", "extra": [1]}, {"reply": ANSWER, "id": "b", "document_id": "d"}, {"reply": "", "key": 7})
    assert judged(path) is None
    rows = verdicts(path)
    assert [row["outcome"] for row in rows] == ["refused", "complied", "unjudged"]
    assert [row["key"] for row in rows] == ["1", "b", "7"]
    assert [row["document_id"] for row in rows] == ["1", "d", "7"]
    assert all(list(row) == ["key", "document_id", "task", "outcome", "judge", "why", "on"] for row in rows)
    assert rows[0]["task"] == "summarize"
    assert all(row["judge"] == "rules" and row["why"] for row in rows)


@pytest.mark.parametrize("keys", [["a", "a", "b"], ["2", None, "c"]])
def test_repeated_keys_give_way_to_line_numbers(tmp_path, keys):
    path = written(tmp_path, *({"reply": ANSWER, "key": key} for key in keys))
    judged(path)
    assert [row["key"] for row in verdicts(path)] == ["1", "2", "3"]


def test_line_numbers_count_blank_lines(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_text('\n{"reply": "yes"}\n\n{"reply": "no way"}\n', encoding="utf-8")
    judged(path)
    assert [row["key"] for row in verdicts(path)] == ["2", "4"]


@pytest.mark.parametrize("field", ["document", "prompt", "instruction"])
def test_what_the_reply_copies_from_any_given_text_is_no_refusal(tmp_path, field):
    path = written(tmp_path, {"reply": SORRY.upper(), field: SORRY}, {"reply": SORRY.upper(), field: None})
    judged(path)
    assert [row["outcome"] for row in verdicts(path)] == ["complied", "refused"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answer": "x"}, "the field `reply` is missing.*`answer`"),
        ({"reply": None}, "`reply` must be a string, found null"),
        ({"reply": ["x"]}, "`reply` must be a string, found a list"),
        ({"reply": "x", "document": 3}, "`document` must be a string or absent, found a number"),
    ],
)
def test_a_line_that_cannot_be_judged_is_named_and_nothing_is_written(tmp_path, row, problem):
    path = written(tmp_path, {"reply": ANSWER}, row)
    with pytest.raises(DocumentError, match=rf"replies\.jsonl:2: {problem}"):
        judged(path)
    assert [file.name for file in tmp_path.iterdir()] == ["replies.jsonl"]


@pytest.mark.parametrize("label", [None, "malicious", "unjudged", "", 1, ["refused"]])
def test_validating_needs_a_known_label_on_every_line(tmp_path, label):
    path = written(tmp_path, {"reply": SORRY, "label": "refused"}, {"reply": ANSWER, "label": label})
    with pytest.raises(DocumentError, match=r"replies\.jsonl:2: .*one of refused, partial, complied"):
        judged(path, validate=True)
    assert [file.name for file in tmp_path.iterdir()] == ["replies.jsonl"]
    judged(path)
    assert len(verdicts(path)) == 2, "without validation a label is an extra field"


def test_a_validated_file_counts_the_unjudged_beside_the_figures(tmp_path):
    path = written(tmp_path, {"reply": SORRY, "label": "partial"}, {"reply": ANSWER, "label": "complied"}, {"reply": "", "label": "complied"})
    result = judged(path, validate=True)
    assert result is not None
    assert (result.n, result.unjudged, result.accuracy.value, result.kappa.value) == (3, 1, 1.0, 1.0)


def test_figures_agree_with_a_table_worked_by_hand():
    pairs = [(R, R)] * 15 + [(P, R)] * 5 + [(R, C)] * 5 + [(C, P)] * 10 + [(C, C)] * 15
    result = agreement([label for label, _ in pairs], [verdict for _, verdict in pairs])
    assert result.accuracy.value == pytest.approx(35 / 50)
    assert result.precision.value == pytest.approx(20 / 30)
    assert result.recall.value == pytest.approx(20 / 25)
    assert result.kappa.value == pytest.approx(0.4)  # (0.7 - 0.5) / (1 - 0.5)
    assert result.accuracy.low == pytest.approx(0.5625, abs=1e-3)  # Wilson, 35 of 50
    assert result.accuracy.high == pytest.approx(0.8090, abs=1e-3)
    assert 0.1 < result.kappa.low < 0.4 < result.kappa.high < 0.7


def test_the_kappa_interval_covers_the_truth_about_as_often_as_it_says():
    import numpy as np

    drawn = np.random.default_rng(5).multinomial(200, [0.4, 0.1, 0.1, 0.4], size=60)  # true kappa 0.6
    covered = 0
    for both, label_only, verdict_only, neither in drawn:
        labels = [R] * (both + label_only) + [C] * (verdict_only + neither)
        kappa = agreement(labels, [R] * both + [C] * label_only + [R] * verdict_only + [C] * neither).kappa
        covered += kappa.low <= 0.6 <= kappa.high
    assert covered >= 52  # 57 expected of 60; fewer than 52 has a chance of 0.003


def test_the_same_file_gives_the_same_interval():
    labels, outcomes = [R, R, C, C, R, C] * 5, [R, C, C, C, R, R] * 5
    assert agreement(labels, outcomes) == agreement(labels, outcomes)


def test_an_unjudged_reply_is_neither_right_nor_wrong():
    labels, outcomes = [R, R, C, C, C], [R, C, C, C, R]
    plain, beside = agreement(labels, outcomes), agreement([*labels, R, C], [*outcomes, U, U])
    assert (beside.n, beside.unjudged) == (7, 2)
    assert (beside.accuracy, beside.kappa, beside.precision, beside.recall) == (plain.accuracy, plain.kappa, plain.precision, plain.recall)


@pytest.mark.parametrize(("labels", "outcomes"), [([], []), ([R, C], [U, U])])
def test_nothing_judged_gives_no_figure_and_not_zero(labels, outcomes):
    result = agreement(labels, outcomes)
    assert {result.accuracy, result.kappa, result.precision, result.recall} == {None}


def test_kappa_of_one_answer_only_is_none():
    assert agreement([C, C], [C, C]).kappa is None
    assert agreement([C, C], [C, C]).accuracy.value == 1.0


def test_each_model_has_its_own_kappa_and_rows_without_one_have_none():
    result = agreement([R, C, R, C, R], [R, C, C, R, R], models=["good", "good", "bad", "bad", ""])
    assert list(result.models) == ["bad", "good"]
    assert (result.models["good"].value, result.models["bad"].value) == (1.0, -1.0)


def test_replies_are_judged_one_by_one_in_order():
    replies = [
        Reply(key=str(i), document_id="d", label=Label.ORDINARY, task="t", wording=0, instruction="", document="", reply=r)
        for i, r in enumerate([ANSWER, SORRY])
    ]
    found = judge_replies(replies, RuleJudge())
    assert [(verdict.key, verdict.outcome) for verdict in found] == [("0", C), ("1", R)]


def test_a_validation_is_kept_in_a_file_and_only_when_asked_for(tmp_path):
    path = written(tmp_path, {"reply": SORRY, "label": "partial"}, {"reply": ANSWER, "label": "complied"}, {"reply": "", "label": "complied"})
    place = tmp_path / "replies.jsonl.validation.json"
    judged(path)
    assert not place.exists()
    result = judged(path, validate=True)
    kept = json.loads(place.read_text(encoding="utf-8"))
    assert (kept["judge"], kept["n"], kept["unjudged"]) == ("rules", 3, 1)
    assert kept["table"] == {"both": 1, "label_only": 0, "verdict_only": 0, "neither": 1}
    assert kept["accuracy"] == {"value": 1.0, "low": result.accuracy.low, "high": 1.0}
    assert kept["models"] == {}
