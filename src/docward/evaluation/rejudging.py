"""Judging files and folders: by one judge or several side by side, anew or only what is unjudged, never generating again.

In: a JSONL of replies, the folder of an evaluation, or a run folder. Out: verdicts, and what follows from them. Verdicts that are kept stay byte for byte.
A judge that is stopped leaves what it has said and the rest unjudged, so `--again` goes on from there. One real row of what is kept:
`{"key": "1", "document_id": "1", "task": "summarize", "outcome": "refused", "judge": "rules", "why": "opens with: i cannot provide"}`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from docward.errors import DocumentError, RunError
from docward.evaluation.evaluating import model_metrics
from docward.evaluation.judges import Judge
from docward.evaluation.judging import Row, Validation, agreement, read_replies
from docward.evaluation.rates import advice, differences, paired
from docward.records import KeyedLog, read_lines, read_rows, row_text, text_hash, write_json, write_text
from docward.types import Outcome, Reply, Verdict

Progress = Callable[[str, int, int], None]  # what is going on, how much is done, of how much


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the rows that both judged.

    `compared` has the first for label and the second for verdict: its accuracy is how often they say the same of declined against complied, its kappa is the
    same either way round; its precision and recall are of no use here.
    """

    first: str
    second: str
    both_judged: int
    compared: Validation


@dataclass(frozen=True, slots=True)
class FileJudged:
    """What came of judging a file: by judge the place of its verdicts, how many stay unjudged, and its figures where there are labels; pairs of judges."""

    n: int
    asked: dict[str, int] = field(default_factory=dict)
    unjudged: dict[str, int] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)
    validations: dict[str, Validation] = field(default_factory=dict)
    agreements: list[Agreement] = field(default_factory=list)


def judge_onto(
    place: Path,
    replies: Sequence[Reply],
    judge: Judge,
    *,
    as_row: Callable[[Verdict], Any],
    again: bool = False,
    progress: Progress = lambda *_: None,
) -> tuple[list[Outcome], int]:
    """Judge replies and write their verdicts to `place`, in order; returns the outcomes and how many replies were asked about.

    With `again` the verdicts that are there stay, byte for byte, and only replies that are unjudged or have none yet are asked about. Where the judge fails or
    is stopped on the way, what it has said is written (but not over verdicts that were to be replaced), the rest unjudged, and the error goes on.

    Raises:
        DocumentError: `again`, and there are no verdicts at `place`, or they are those of other replies.
        StorageError: the verdicts cannot be written.
    """
    kept = kept_verdicts(place, {reply.key for reply in replies}) if again else {}
    asked = [reply for reply in replies if reply.key not in kept]
    said: dict[str, Verdict] = {}

    def write() -> None:
        rest = (Verdict.on(reply, Outcome.UNJUDGED, judge=judge.name, why="not asked: the judge was stopped before") for reply in asked[len(said) :])
        fresh = {verdict.key: row_text(as_row(verdict)) for verdict in [*said.values(), *rest]}
        write_text(place, "".join(kept[reply.key][1] if reply.key in kept else fresh[reply.key] for reply in replies))

    try:
        for verdict in judge.judge_all(asked):
            said[verdict.key] = verdict
            progress(f"verdicts of {judge.name}", len(said), len(asked))
    except BaseException:
        if said and (again or not place.exists()):  # a whole file of before is worth more than the beginning of a new one
            write()
        raise
    write()
    return [kept[reply.key][0] if reply.key in kept else said[reply.key].outcome for reply in replies], len(asked)


def kept_verdicts(place: Path, keys: set[str]) -> dict[str, tuple[Outcome, str]]:
    """The judged rows of a file of verdicts, by key: outcome and line.

    Raises:
        DocumentError: the file is missing, or has verdicts on replies with other keys.
    """
    if not place.is_file():
        raise DocumentError(f"{place} is missing, so there is nothing to judge again. Judge all of it first: leave out --again.")
    lines = place.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    kept = {}
    for number, row in read_lines(place):
        key, outcome = row.get("key"), row.get("outcome")
        if key not in keys or outcome not in list(Outcome):
            what = f"the key {key!r}, which no reply has" if key not in keys else f"the outcome {outcome!r}, wanted one of {', '.join(Outcome)}"
            raise DocumentError(f"{place}:{number}: found {what}. These are verdicts on other replies: judge all of them anew, without --again.")
        if outcome != Outcome.UNJUDGED:
            kept[str(key)] = (Outcome(outcome), lines[number - 1] + "\n")
    return kept


def judge_file_by(judges: Sequence[Judge], path: Path, *, validate: bool = False, again: bool = False, progress: Progress = lambda *_: None) -> FileJudged:
    """Judge the replies of a JSONL by each judge and write its verdicts; with `validate`, measure the judges against `label`.

    One judge writes `<FILE>.verdicts.jsonl` and, with labels, `<FILE>.validation.json`; several write `<FILE>.<judge>.verdicts.jsonl` each, and so on. Labels
    are checked before anything is written. `again` asks only about what is unjudged: see `judge_onto`.

    Raises:
        DocumentError: a line is not a JSON object, `reply` is missing or no string, or (validating) a label is not allowed; nothing to judge again.
        StorageError: the verdicts cannot be written.
    """
    read = read_replies(path, validate=validate)
    found, said = FileJudged(len(read.replies)), dict[str, list[Outcome]]()
    for judge in judges:
        place = found.places[judge.name] = verdicts_place(path, judge.name if len(judges) > 1 else "")
        outcomes, asked = judge_onto(place, read.replies, judge, as_row=_row, again=again, progress=progress)
        said[judge.name], found.asked[judge.name] = outcomes, asked
        found.unjudged[judge.name] = outcomes.count(Outcome.UNJUDGED)
        if validate:
            found.validations[judge.name] = measured = agreement(read.labels, outcomes, models=read.models)
            write_json(validation_place(place), {"judge": judge.name, **asdict(measured)})
    found.agreements.extend(agreements(said))
    return found


def verdicts_place(path: Path, judge: str = "") -> Path:
    """Where the verdicts on a file go: `FILE.verdicts.jsonl`, or, for one judge of several, `FILE.<judge>.verdicts.jsonl`."""
    plain = re.sub(r"[^\w.-]+", "-", judge)[-60:].strip("-.")
    told = f".{plain}" if plain == judge else f".{plain}-{text_hash(judge)[:6]}"  # two names that look alike as files stay two
    return path.with_name(f"{path.name}{told if judge else ''}.verdicts.jsonl")


def validation_place(verdicts: Path) -> Path:
    """Where a judge's figures go, beside its verdicts: `FILE.validation.json`."""
    return verdicts.with_name(verdicts.name.removesuffix(".verdicts.jsonl") + ".validation.json")


def _row(verdict: Verdict) -> Row:
    """A verdict as a file's row: the label of a reply is none of a document here."""
    return Row(verdict.key, verdict.document_id, verdict.task, verdict.outcome, verdict.judge, verdict.why)


def agreements(said: Mapping[str, Sequence[Outcome]]) -> list[Agreement]:
    """Compare every two judges on the same rows; a row that either left unjudged counts for neither."""
    found = []
    for first, second in combinations(said, 2):
        both = [(one, other) for one, other in zip(said[first], said[second], strict=True) if Outcome.UNJUDGED not in (one, other)]
        compared = agreement([one for one, _ in both], [other for _, other in both])
        found.append(Agreement(first, second, len(both), compared))
    return found


@dataclass(frozen=True, slots=True)
class FolderJudged:
    """What came of judging the replies of a model: how many were asked about, how many stay unjudged, which judges stand in the file, and the metrics."""

    n: int
    asked: int
    unjudged: int
    judges: dict[str, int]
    metrics: dict[str, Any]


def judge_evaluation(folder: Path, judge: Judge, *, again: bool = False, progress: Progress = lambda *_: None) -> FolderJudged:
    """Judge the replies in the folder of an evaluation; write `verdicts.jsonl`, and `metrics.json` as far as it follows from verdicts.

    Where there are verdicts, their replies are judged, in their order; else all replies. What does not come from verdicts (utility) stays as it was.

    Raises:
        RunError: the folder holds no replies, or another process writes there.
        DocumentError: as `judge_onto`.
    """
    place = folder / "replies.jsonl"
    if not place.is_file():
        raise RunError(f"{place} is missing, so there is nothing to judge. Give a JSONL of replies, the folder of an evaluation, or a run folder.")
    with KeyedLog(place):
        by_key = {reply.key: reply for reply in read_rows(place, Reply)}
        known = folder / "verdicts.jsonl"
        keys = [str(row.get("key")) for _, row in read_lines(known)] if known.is_file() else list(by_key)
        replies = [by_key[key] for key in keys if key in by_key]
        outcomes, asked = judge_onto(known, replies, judge, as_row=lambda verdict: verdict, again=again, progress=progress)
        verdicts = read_rows(known, Verdict)
        before = json.loads((folder / "metrics.json").read_text(encoding="utf-8")) if (folder / "metrics.json").is_file() else {}
        found = model_metrics(replies, verdicts, golds={})
        metrics = before | found | {name: before.get(name, nothing) for name, nothing in (("utility", []), ("retention", []), ("perplexity", None))}
        metrics.pop("corrected", None)  # of other verdicts
        write_json(folder / "metrics.json", metrics)
    judges = {name: sum(verdict.judge == name for verdict in verdicts) for name in dict.fromkeys(verdict.judge for verdict in verdicts)}
    return FolderJudged(len(replies), asked, outcomes.count(Outcome.UNJUDGED), judges, metrics)


def judge_run(run: Path, judge: Judge, *, again: bool = False, progress: Progress = lambda *_: None) -> dict[str, FolderJudged]:
    """Judge all models of a run folder, and bring what its `metrics.json` says of them up to date: their metrics, and the paired tests.

    Raises:
        RunError: the run has no evaluation.
        DocumentError: as `judge_onto`.
    """
    folders = [folder for name in ("untuned", "defended") if (folder := run / "evaluation" / name).is_dir()]
    if not folders:
        raise RunError(f"{run / 'evaluation'} holds no replies of a model. Evaluate first: docward run RECIPE --output-dir {run}.")
    found = {folder.name: judge_evaluation(folder, judge, again=again, progress=progress) for folder in folders}
    place = run / "metrics.json"
    if place.is_file():
        metrics = json.loads(place.read_text(encoding="utf-8"))
        if len(folders) == 2:
            untuned, defended = (read_rows(folder / "verdicts.jsonl", Verdict) for folder in folders)
            metrics["paired"] = [asdict(one) for one in paired(defended, untuned)]
            mine = found["defended"].metrics
            mine |= {"differences": [asdict(one) for one in differences(defended, untuned)], "advice": advice(defended, untuned)}
            write_json(folders[1] / "metrics.json", mine)
        metrics["models"] |= {name: one.metrics for name, one in found.items()}
        write_json(place, metrics)
    return found
