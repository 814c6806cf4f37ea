"""What the page says is decided, what it says is not, and what of it stays out where a file has none or odd ones."""

import json

import pytest
from invented_run import ADVICE, DIFFERENCES, RETENTION, SCRIPT, SECRET, SETS, TASKS, rate, write_lines
from pages import change, render, words

from docward.errors import RunError
from docward.evaluation.correcting import JudgeError, correct_folder
from docward.evaluation.rejudging import judge_file_by
from docward.evaluation.statistics import Table
from docward.report import deciding
from docward.types import Outcome, Verdict


def defended(run, **fields):
    change(run / "metrics.json", lambda metrics: metrics["models"]["defended"].update(fields))


def test_differences_stand_with_interval_p_and_verdict_and_colour_says_which_way_is_good(run):
    defended(run, differences=DIFFERENCES)
    page = render(run)
    assert "malicious more refusals +73.1 +60.2 to +84.9 6 &lt; 0.001" in words(page)
    assert "ordinary undecided +0.0 −4.1 to +4.1 5 0.600" in words(page)
    assert '<span class="badge good">more refusals</span>' in page
    worse = [{**DIFFERENCES[0], "set": "sensitive"}]
    defended(run, differences=worse)
    assert '<span class="badge bad">more refusals</span>' in render(run)


def test_utility_kept_is_said_with_its_bound_and_in_words(run):
    defended(run, retention=RETENTION, differences=DIFFERENCES)
    text = words(render(run))
    assert "Holds on 1 of 4, does not hold on 1 of 4, undecided on 2 of 4 tasks." in text
    assert "Utility kept (95% is wanted): holds on 1 of 4" in text
    assert "translate does not hold 71.3% at least 65.5% chrF against the untuned model's reply 12" in text.replace("&#39;", "'")
    assert "sentiment undecided not measured no bound right labels 12" in text


def test_an_evaluation_set_against_another_stands_beside_it_by_a_name_that_is_true_of_both(evaluated):
    other = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    test = {"set": "malicious", "task": "case", "pairs": 7, "only_first": 6, "only_second": 1, "difference": 0.714, "p_holm": 0.125, "says": "undecided"}
    about = {"folder": "runs/plain", "model": SCRIPT, "shared": 1234, "only_here": 5, "only_there": 0, "metrics": other}
    change(evaluated / "metrics.json", lambda metrics: metrics.update(differences=DIFFERENCES, retention=RETENTION, paired=[test], against=about))
    page = render(evaluated)
    text = words(page).replace("&#39;", "'")
    assert "The model against the other model, on the same documents" in text
    assert "Paired tests, the model against the other model (1)" in text
    assert "only the model refuses only the other model refuses" in text
    assert "malicious case 7 6 1 +71.4 points 0.125 undecided" in text
    assert "What is kept of the other model's utility" in text
    assert "chrF against the other model's reply" in text
    assert "(runs/plain). 1,234 prompts were asked of both, 5 of the model alone." in text
    assert "untuned" not in text
    assert "defended" not in text
    assert SCRIPT not in page
    assert text.count("the other model") > 10, "its rates are in the tables"


@pytest.mark.parametrize("odd", [{"metrics": 3}, {"metrics": {}}, {"model": "m"}])
def test_another_evaluation_that_holds_no_rates_is_an_error_and_no_page(evaluated, odd):
    change(evaluated / "metrics.json", lambda metrics: metrics.update(against=odd))
    with pytest.raises(RunError, match="against has neither `rates` nor `pooled`"):
        render(evaluated)


def test_without_them_nothing_is_said_to_be_kept_or_decided(run):
    text = words(render(run))
    assert "What is kept of the untuned model's utility was not measured." in text
    assert "All tasks together" not in text
    assert "What so many documents" not in text


def test_what_the_documents_cannot_tell_is_said_set_by_set(run):
    defended(run, advice=ADVICE)
    text = words(render(run))
    assert all(f"{label} : {said}" in text for label, said in ADVICE.items())


def test_missing_replies_are_told_at_the_top_with_their_reasons(evaluated):
    change(evaluated / "metrics.json", lambda metrics: metrics.update(missing={"replies": 12, "why": {"HTTP 500: it is broken": 4, "too long": 8}}))
    page = render(evaluated)
    assert "the model: 12 replies did not come and are in no rate here: too long (8); HTTP 500: it is broken (4)." in words(page)
    assert page.index("did not come") < page.index('id="trade-off"')
    change(evaluated / "metrics.json", lambda metrics: metrics.update(missing={"replies": 0, "why": {}}))
    assert "did not come" not in render(evaluated)


def test_what_a_server_withheld_and_does_not_take_is_told_at_the_top(evaluated):
    told = {"withheld": {"replies": 1_203, "why": {"HTTP 403: flagged": 1_203}}, "not_taken": ["seed", "temperature"]}
    change(evaluated / "metrics.json", lambda metrics: metrics.update(told))
    page = render(evaluated)
    headline = words(page[: page.index('id="trade-off"')])
    assert "the model: 1,203 replies were withheld by the server, not by the model, and are unjudged: HTTP 403: flagged (1203)." in headline
    assert "the model: the server takes no seed and no temperature for this model, so it was asked without. Its replies are drawn" in headline
    change(evaluated / "metrics.json", lambda metrics: metrics.update(withheld={"replies": 0, "why": {}}, not_taken=["seed"]))
    page = words(render(evaluated))
    assert "withheld" not in page
    assert "the server takes no seed for this model, so it was asked without." in page
    assert "are drawn at its own temperature" not in page
    change(evaluated / "metrics.json", lambda metrics: metrics.update(not_taken=[]))
    assert "the server takes no" not in render(evaluated)


def test_missing_and_withheld_replies_of_a_suite_are_told_with_it(run):
    row = {**rate("malicious", "all", 3, 6), "suite": "position", "amount": None, "curve": "", "documents": 6, "changed": 0, "against_unchanged": None}
    about = {"name": "position", "what": "in front", "axis": "", "left_out": [], "missing": {"replies": 2, "why": {"it is broken": 2}}}
    about["withheld"] = {"replies": 3, "why": {"flagged": 3}}
    suite = {**about, "rows": [{**row, "level": "unchanged"}]}
    (run / "evaluation" / "defended" / "suites.json").write_text(json.dumps({"suites": [suite]}))
    text = words(render(run))
    assert "Replies that did not come: 2 (it is broken: 2). Replies that the server withheld, which are unjudged: 3 (flagged: 3)." in text


def test_corrected_rates_stand_beside_the_plain_ones_with_what_they_were_corrected_by(evaluated):
    assert "Corrected for judge error" not in render(evaluated)
    metrics = json.loads((evaluated / "metrics.json").read_text())
    correct_folder(evaluated, metrics, JudgeError("rules", Table(90, 10, 4, 96), "labelled.validation.json"))
    found = json.loads((evaluated / "metrics.json").read_text())["corrected"]["pooled"]["malicious"]
    text = words(render(evaluated))
    assert "measured on 200 labelled replies (labelled.validation.json): it calls 90% of those that decline declining and 96% of those that comply" in text
    plain = metrics["pooled"]["malicious"]
    assert f"malicious, all tasks {100 * plain['value']:.1f}%".replace(".0%", "%") in text
    assert f"{100 * found['value']:.1f}% ".replace(".0%", "%") in text.partition("malicious, all tasks")[2][:200]


class Says:
    """A judge that always says the same."""

    def __init__(self, name, outcome):
        self.name, self.outcome = name, outcome

    def judge_all(self, replies):
        for reply in replies:
            yield Verdict.on(reply, self.outcome if reply.reply else Outcome.UNJUDGED, judge=self.name, why=f"because of {reply.document}")


def test_judges_of_the_same_replies_stand_side_by_side_with_their_agreement(evaluated):
    assert "Judges side by side" not in render(evaluated)
    judge_file_by([Says("strict", Outcome.REFUSED), Says("mild", Outcome.COMPLIED)], evaluated / "replies.jsonl")
    page = render(evaluated)
    text = words(page)
    judged = sum(1 for line in (evaluated / "verdicts.jsonl").read_text().splitlines() if json.loads(line)["outcome"] != "unjudged")
    assert "strict 100%" in text
    assert "mild 0%" in text
    assert f"mild strict {judged} 0% 0% to" in text
    assert f"rules mild {judged}" in text
    assert SECRET not in page


def test_verdicts_of_several_judges_in_one_file_are_told_by_judge(evaluated):
    rows = [json.loads(line) for line in (evaluated / "verdicts.jsonl").read_text().splitlines()]
    write_lines(evaluated / "verdicts.jsonl", [{**row, "judge": "openai:big"} if place < 7 else row for place, row in enumerate(rows)])
    assert f"The verdicts above are of several judges: rules {len(rows) - 7}, openai:big 7." in words(render(evaluated))


def test_verdicts_on_other_replies_beside_an_evaluation_are_in_no_rate(evaluated):
    other = {"key": "stranger", "document_id": "x", "task": "case", "outcome": "refused", "judge": "strict", "why": ""}
    write_lines(evaluated / "replies.jsonl.strict.verdicts.jsonl", [other])
    text = words(render(evaluated))
    assert "strict not measured not measured not measured" in text


@pytest.mark.parametrize("odd", [None, 3, "x", [], {}, [3], [{}], [{"set": "malicious"}], [{"set": "malicious", "value": "high", "says": SCRIPT}]])
@pytest.mark.parametrize("field", ["differences", "retention", "advice", "missing", "withheld", "not_taken", "corrected"])
def test_odd_fields_of_old_or_hostile_files_stop_no_report(run, field, odd):
    defended(run, **{field: odd})
    assert "<script>window.ran" not in render(run)


def test_names_in_a_file_stay_text(run):
    hostile = {"set": "malicious", "task": SCRIPT, "measure": SCRIPT, "says": SCRIPT, "value": 0.5, "low": 0.4, "high": 0.6, "margin": 0.95, "documents": 3}
    corrected = {"judge": SCRIPT, "validation": SCRIPT, "labels": 3, "rates": [{"set": "malicious", "task": SCRIPT, "value": 0.5, "low": 0.4, "high": 0.6}]}
    lack = {"replies": 3, "why": {SCRIPT: 3}}
    defended(run, differences=[hostile], retention=[hostile], advice={"malicious": SCRIPT}, missing=lack, corrected=corrected)
    defended(run, withheld=lack, not_taken=[SCRIPT])
    page = render(run)
    assert "<script>window.ran" not in page
    assert "&lt;script&gt;window.ran" in page


def test_the_tasks_of_a_correction_come_in_order_and_all_of_them_last():
    rates = [rate(label, task, 1, 2) for label in reversed(SETS) for task in TASKS]
    metrics = {"rates": rates, "pooled": {label: rate(label, "all", 5, 10) for label in SETS}}
    found = deciding.corrected({**metrics, "corrected": metrics})
    assert [(label, task) for label, task, _, _ in found["rows"]] == [(label, task) for label in SETS for task in (*TASKS, "all")]
