"""Judging, summing, comparing and reporting hold hashes and counts of rows, never the rows: five times as many cost hardly more memory."""

from __future__ import annotations

import json
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from docward.evaluation import evaluating, judging, rejudging, statistics
from docward.evaluation.collecting import put_in_order
from docward.evaluation.comparing import Pairs
from docward.evaluation.evaluating import verdict_metrics
from docward.evaluation.judging import judging_in
from docward.evaluation.rejudging import judge_evaluation, judge_file_by
from docward.evaluation.suites.suite import UNCHANGED, Level
from docward.evaluation.suites.summing import SuiteSums, check_told, judged_anew, suite_rates
from docward.evaluation.utility import utility
from docward.keyed import KeyTable
from docward.records import Rows
from docward.report.samples import view
from docward.types import Label, Outcome, Reply, Verdict

FEW, MANY = 300, 1_500
TASKS = ("summarize", "case", "translate", "sentiment", "topic")
A_ROW = 150  # bytes that a row may cost; one that is held costs about a thousand
NOTE = "It is on bread, and on what became of it after the rain. " * 4


class Quick:
    """A judge that is quicker than the rules, which are not measured here."""

    def __init__(self, name: str, outcome: Outcome) -> None:
        self.name, self.outcome = name, outcome

    def judge(self, reply: Reply) -> Verdict:
        return next(self.judge_all([reply]))

    def judge_all(self, replies: Sequence[Reply]) -> Iterator[Verdict]:
        for reply in replies:
            outcome = self.outcome if "can't" in reply.reply else Outcome.COMPLIED
            yield Verdict.on(reply, outcome, judge=self.name, why="a short reason why, which is another one for each " + reply.key)


def write(folder: Path, rows: int) -> Path:
    """Replies with verdicts on them and likelihoods, as an evaluation leaves them, labelled for a validation too."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        names = ("replies", "verdicts", "likelihoods", "file")
        replies, verdicts, likelihoods, file = (stack.enter_context((folder / f"{name}.jsonl").open("w")) for name in names)
        for number in range(rows):
            document, task, label = f"d{number // len(TASKS)}", TASKS[number % len(TASKS)], list(Label)[(number // len(TASKS)) % 3]
            refused = number % 4 == 0
            about = {"key": f"{document}|{task}|0", "document_id": document, "label": label, "task": task}
            said = {"document": f"Note {document}. {NOTE}", "reply": f"I can't help with {number}." if refused else f"Note {number}. {NOTE}"}
            replies.write(json.dumps(about | {"wording": 0, "instruction": "Do it."} | said) + "\n")
            verdicts.write(json.dumps(about | {"outcome": "refused" if refused else "complied", "judge": "quick", "why": f"because of {number}"}) + "\n")
            text = {"key": about["key"], "task": "next_sentence", "against": "gold", "document_id": about["key"]}
            likelihoods.write(json.dumps(text | {"tokens": 20, "log_likelihood": -50 - number % 7}) + "\n")
            file.write(json.dumps(about | said | {"label": "refused" if refused else "complied"}) + "\n")
    return folder


def judge_file(folder: Path) -> int:
    for again in (False, True):
        judge_file_by([Quick("one", Outcome.REFUSED), Quick("two", Outcome.UNJUDGED)], folder / "file.jsonl", validate=True, again=again)
    with (folder / "file.jsonl.one.verdicts.jsonl").open() as rows:
        return sum(1 for _ in rows)


def judge_folder(folder: Path) -> int:
    judge_evaluation(folder, Quick("one", Outcome.UNJUDGED))
    return judge_evaluation(folder, Quick("two", Outcome.REFUSED), again=True).n


def count_a_suite(folder: Path) -> int:
    """Half of the replies to each document are at level 0."""
    levels = (UNCHANGED, Level("OCR noise 5%", 0.05, "OCR noise"))
    with (folder / "verdicts.jsonl").open() as rows, (folder / "suite.jsonl").open("w") as out:
        for number, row in enumerate(map(json.loads, rows)):
            out.write(json.dumps(row | {"key": f"{row['key']}|{levels[number % 2].name}"}) + "\n")
    verdicts = Rows(folder / "suite.jsonl", Verdict)
    sums = SuiteSums(verdicts).levels
    found = {"name": "noise", "rows": [asdict(rate) for rate in suite_rates("noise", {level: sums[level.name] for level in levels}, {})]}
    check_told(found, verdicts)
    return int(judged_anew(found, verdicts)["judges"]["quick"])


class Golds(dict[str, dict[str, str]]):
    """Right answers for each document, which are not in memory before they are asked for."""

    def __init__(self, *tasks: str) -> None:
        super().__init__()
        self.tasks = tasks

    def get(self, name: str, default: object = None) -> dict[str, str]:
        return dict.fromkeys(self.tasks, f"Note {name}. {NOTE}")


def judge_and_sum(folder: Path) -> int:
    with judging_in(folder, "quick", lambda *_: None) as judge:
        metrics = evaluating.judge_folder(folder, {}, judge=judge)
    assert all(abs(rate["value"] - 0.25) < 0.05 and rate["low"] < rate["value"] < rate["high"] for rate in metrics["pooled"].values())
    return sum(rate["judged"] for rate in metrics["rates"])


def score(folder: Path) -> int:
    found = utility(Rows(folder / "replies.jsonl", Reply), golds=Golds(*TASKS))
    assert len({one.n for one in found}) == 1
    return sum(one.n for one in found) * 3 // 2  # the others are to malicious documents


def compare(folder: Path) -> int:
    metrics, tests = evaluating.compare(folder, folder, Golds("case"), margin=0.9)
    assert {(one["task"], one["value"]) for one in metrics["retention"]} == {(task, 1) for task in (*TASKS, "next_sentence")}
    return sum(one["pairs"] for one in tests)


def compare_with_itself(folder: Path) -> int:
    verdicts = Rows(folder / "verdicts.jsonl", Verdict)
    replies = Rows(folder / "replies.jsonl", Reply, keys=KeyTable((verdict.key, 1) for verdict in verdicts))
    pairs = Pairs(verdicts, verdicts)
    found = verdict_metrics(replies, verdicts, pairs=pairs)
    assert sum(rate["judged"] for rate in found["rates"]) == sum(one.pairs for one in pairs.paired())
    return sum(one.pairs for one in pairs.paired())


def choose_samples(folder: Path) -> int:
    found = view({"untuned": folder, "defended": folder}, "defended")
    assert found is not None
    assert len(found["samples"]) == 180
    return sum(count["all"] for count in found["counts"].values())


def put_last_first(folder: Path) -> int:
    with (folder / "replies.jsonl").open() as rows:
        last = list(deque((json.loads(line)["key"] for line in rows), maxlen=10))
    put_in_order(folder / "replies.jsonl", last)
    with (folder / "replies.jsonl").open() as rows:
        assert [json.loads(line)["key"] for _, line in zip(last, rows, strict=False)] == last
        return len(last) + sum(1 for _ in rows)


def peak_of(step: Callable[[Path], int], folder: Path, rows: int) -> int:
    write(folder, rows)
    freed = [[(0,) * length for _ in range(2_000)] for length in range(1, 20)]  # Python keeps so many tuples of a length, which are no rows
    del freed
    tracemalloc.start()
    try:
        assert step(folder) == rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("step", [judge_and_sum, score, compare, judge_file, judge_folder, count_a_suite, compare_with_itself, choose_samples, put_last_first])
def test_five_times_as_many_rows_cost_hardly_more_memory(step, tmp_path, monkeypatch):
    for module in (evaluating, rejudging):
        monkeypatch.setattr(module, "AT_A_TIME", 50)  # so that few rows are many times that as well
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 20_000)  # so that few documents take as many draws at a time as many do
    monkeypatch.setattr(judging, "get_judge", lambda name: Quick(name, Outcome.REFUSED))
    peak_of(step, tmp_path / "warm", FEW)  # what is imported and remembered once
    few, many = peak_of(step, tmp_path / "few", FEW), peak_of(step, tmp_path / "many", MANY)
    a_row = (many - few) / (MANY - FEW)
    assert a_row < A_ROW, f"{few:,} and {many:,} bytes"
