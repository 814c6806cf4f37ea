"""An evaluation and a suite of it, killed before each call that makes something last: what is there stays, and the files end as those of an undisturbed one."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from docward.evaluation import evaluating
from docward.evaluation.collecting import PART, REPLIES
from docward.evaluation.evaluating import Settings, evaluate
from docward.evaluation.generating import generate
from docward.evaluation.suites import get_suites
from docward.evaluation.suites.running import run_suites
from docward.models import Loaded, load
from docward.tasks import get_tasks
from killed import die_before, started
from tiny import some_documents

DOCUMENTS = [replace(one, text=one.text * (1 + place)) for place, one in enumerate(some_documents(1)[1:])]  # the longer one, which comes first, stands last
SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "next_sentence"])), max_new_tokens=3)
SUITE = Path("suites") / "position"
NEVER = 10**6
MOMENTS = {  # some that are surely among them
    *(f"replace {name}" for name in ("replies.jsonl", "likelihoods.jsonl", "verdicts.jsonl", "metrics.json", "suites.json")),
    *("fsync replies.jsonl", "fsync likelihoods.jsonl", f"unlink {PART.format(REPLIES, 1)}", "unlink .lock"),
}


def run(loaded: Loaded, folder: Path, settings: Settings = SETTINGS) -> None:
    evaluate(loaded, DOCUMENTS, settings, folder)
    run_suites(loaded, DOCUMENTS, get_suites([SUITE.name]), settings, folder, ordinary=DOCUMENTS)


def killed_before(number: int, noted: Path, folder: Path, model: Path) -> None:
    """In a process of its own: the evaluation by small batches, as far as it comes."""
    torch.set_num_threads(1)
    loaded = load(str(model), dtype="float32")
    die_before(number, noted)
    run(loaded, folder, replace(SETTINGS, max_batch_tokens=300))


def begin(folder: Path, whole: Path) -> None:
    """What one of two processes leaves that are killed in the middle of their second replies."""
    for place in (folder, folder / SUITE):
        of_whole = whole / place.relative_to(folder)
        place.mkdir(parents=True)
        (place / "evaluation.json").write_bytes((of_whole / "evaluation.json").read_bytes())
        last, torn = (of_whole / "replies.jsonl").read_bytes().splitlines(keepends=True)[:-3:-1]
        (place / PART.format(REPLIES, 1)).write_bytes(last + torn[:-9])


def files(folder: Path) -> dict[str, bytes]:
    """All that is there; drafts of killed processes are hidden and in nobody's way."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".draft"}


def answered(folder: Path) -> set[str]:
    """The keys of all whole rows of replies."""
    lines = [line for name, rows in files(folder).items() if Path(name).name.startswith(REPLIES) for line in rows.splitlines(keepends=True)]
    return {json.loads(line)["key"] for line in lines if line.endswith(b"\n")}


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The keys of what the model of this process is asked."""
    seen: list[str] = []

    def spy(loaded, prompts, **options):
        seen.extend(one.key for one in prompts)
        return generate(loaded, prompts, **options)

    monkeypatch.setattr(evaluating, "generate", spy)
    return seen


def test_an_evaluation_that_is_killed_at_any_moment_loses_nothing_and_ends_with_the_same_bytes(tiny, tiny_folder, tmp_path, asked):
    """Before each call of its kind the first time and the last: there are many of some."""
    run(tiny, whole := tmp_path / "whole")

    def stopped(number: int) -> list[str]:
        begin(folder := tmp_path / str(number), whole)
        before, noted = answered(folder), tmp_path / f"{number}.moments"
        process = started("test_killed_anywhere", "killed_before", number, noted, folder, tiny_folder)
        process.join()
        moments = noted.read_text().splitlines()
        kept = answered(folder)
        asked.clear()
        run(tiny, folder)
        assert files(folder) == files(whole), moments[-1]
        assert before <= kept, moments[-1]
        assert kept.isdisjoint(asked), moments[-1]
        assert process.exitcode == (0 if number == NEVER else -signal.SIGKILL)
        assert number in (NEVER, len(moments))
        return moments

    moments = stopped(NEVER)
    assert set(moments) >= MOMENTS
    first, last = {moment: number for number, moment in reversed([*enumerate(moments, 1)])}, {moment: number for number, moment in enumerate(moments, 1)}
    for number in sorted({*first.values(), *last.values()}):
        stopped(number)
