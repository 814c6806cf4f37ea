"""Judging files and folders: by one judge or several side by side, anew or only what is unjudged, never generating again.

In: a JSONL of replies, the folder of an evaluation with its suites, or a run folder. Out: verdicts, and what follows from them. Verdicts that are kept stay
byte for byte.
A judge that is stopped leaves what it has said and the rest unjudged, and the same command goes on from there (see `judging`). One real row of what is kept:
`{"key": "1", "document_id": "1", "task": "summarize", "outcome": "refused", "judge": "rules", "why": "opens with: i cannot provide", "on": "5f0c1d9a22b3e471"}`
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations, compress, islice
from pathlib import Path
from typing import Any

from docward.errors import DocumentError, RunError
from docward.evaluation.against import of_one
from docward.evaluation.collecting import AT_A_TIME
from docward.evaluation.comparing import Pairs, advice
from docward.evaluation.evaluating import verdict_metrics
from docward.evaluation.judges import Judge
from docward.evaluation.judging import Row, Validation, agreement, read_replies, remembering, tell_of_others
from docward.evaluation.rates import Sums
from docward.evaluation.suites.summing import SUITES_FILE, check_told, judged_anew, read_suites, write_suite
from docward.keyed import KeyedRows, KeyTable
from docward.records import Rows, drop_torn_line, held, read_lines, row_text, text_hash, typed, whole_file, write_json
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
    replies: Iterable[Reply],
    judge: Judge,
    *,
    as_row: Callable[[Reply, Verdict], Any],
    again: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Outcome]:
    """Judge replies and write their verdicts to `place`, in order; returns the outcomes.

    Replies are gone through more than once, and a thousand of them are in memory at a time. With `again` the verdicts that are there stay, byte for byte, and
    only replies that are unjudged, have none yet, or are others now are asked about. Where the judge fails or is stopped on the way, what it has said is
    written (but not over verdicts that were to be replaced), the rest unjudged, and the error goes on.

    Raises:
        DocumentError: `again`, and there are no verdicts at `place`, or they are those of other replies.
        StorageError: the verdicts cannot be written.
    """
    keys = KeyTable((reply.key, 1) for reply in replies)
    with kept_verdicts(place, keys) if again else nullcontext(Kept({}, 0)) as kept:
        judging = Judging(replies, judge, kept, as_row, lambda said: progress(f"verdicts of {judge.name}", said, len(keys) - kept.judged))
        worth_keeping = again or not place.exists()  # a whole file of before is worth more than the beginning of a new one
        with suppress(NothingToKeep), whole_file(place) as draft, draft.open("w", encoding="utf-8", errors="surrogateescape") as out:
            out.writelines(judging.lines())
            if judging.error and not (judging.said and worth_keeping):
                raise NothingToKeep
            out.writelines(judging.rest())
    if judging.error:
        raise judging.error
    return judging.outcomes


class NothingToKeep(Exception):  # noqa: N818 - ends the writing of a file that is not to replace what is there
    """A judge was stopped, and what it has said is not worth what it would replace."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Verdicts of before: outcome, line and what it is on, by key, and how many of them are judged and so may stay."""

    lines: Mapping[str, tuple[Outcome, str, str]]
    judged: int

    def get(self, reply: Reply) -> tuple[Outcome, str] | None:
        """The verdict that stays on a reply; None where there is none, it is unjudged, or on another text."""
        outcome, line, on = self.lines.get(reply.key) or (Outcome.UNJUDGED, "", "")
        return None if outcome == Outcome.UNJUDGED or on not in ("", _hash_of(reply)) else (outcome, line)


@dataclass(slots=True)
class Judging:
    """Replies on their way to lines of verdicts: those that are kept, and a judge's for the others, as far as it comes."""

    replies: Iterable[Reply]
    judge: Judge
    kept: Kept
    as_row: Callable[[Reply, Verdict], Any]
    progress: Callable[[int], None]
    outcomes: list[Outcome] = field(default_factory=list)
    said: int = 0
    error: BaseException | None = None

    def lines(self) -> Iterator[str]:
        """A line a reply, in order, until the judge ends or fails; then `error` says how."""
        rest = iter(self.replies)
        try:
            while some := list(islice(rest, AT_A_TIME)):
                known = [self.kept.get(reply) for reply in some]
                fresh = iter(self.judge.judge_all([reply for reply, one in zip(some, known, strict=True) if not one]))
                for reply, one in zip(some, known, strict=True):
                    outcome, line = one or self._new(reply, next(fresh))
                    self.outcomes.append(outcome)
                    yield line
        except GeneratorExit:
            raise
        except BaseException as error:  # raised again once what has been said is on disk
            self.error = error

    def _new(self, reply: Reply, verdict: Verdict) -> tuple[Outcome, str]:
        self.said += 1
        self.progress(self.said)
        return verdict.outcome, row_text(self.as_row(reply, verdict))

    def rest(self) -> Iterator[str]:
        """The lines behind those that `lines` has given: kept, or unjudged."""
        for reply in islice(self.replies, len(self.outcomes), None) if self.error else ():
            unjudged = Verdict.on(reply, Outcome.UNJUDGED, judge=self.judge.name, why="not asked: the judge was stopped before")
            one = self.kept.get(reply)
            yield one[1] if one else row_text(self.as_row(reply, unjudged))


@contextmanager
def kept_verdicts(place: Path, keys: Container[str]) -> Iterator[Kept]:
    """The verdicts of a file, each read when it is asked for.

    Raises:
        DocumentError: the file is missing, or has verdicts on replies with other keys.
    """
    if not place.is_file():
        raise DocumentError(f"{place} is missing, so there is nothing to judge again. Judge all of it first: leave out --again.")
    judged = 0
    for number, row in read_lines(place):
        key, outcome = row.get("key"), row.get("outcome")
        if key not in keys or outcome not in list(Outcome):
            what = f"the key {key!r}, which no reply has" if key not in keys else f"the outcome {outcome!r}, wanted one of {', '.join(Outcome)}"
            raise DocumentError(f"{place}:{number}: found {what}. These are verdicts on other replies: judge all of them anew, without --again.")
        judged += outcome != Outcome.UNJUDGED
    with KeyedRows(place, lambda row, line: (Outcome(row["outcome"]), line, str(row.get("on", "")))) as lines:
        yield Kept(lines, judged)


def judge_file_by(judges: Sequence[Judge], path: Path, *, validate: bool = False, again: bool = False, progress: Progress = lambda *_: None) -> FileJudged:
    """Judge the replies of a JSONL by each judge and write its verdicts; with `validate`, measure the judges against `label`.

    One judge writes `<FILE>.verdicts.jsonl` and, with labels, `<FILE>.validation.json`; several write `<FILE>.<judge>.verdicts.jsonl` each, and so on. Labels
    are checked before anything is written. `again` asks only about what is unjudged: see `judge_onto`.

    Raises:
        DocumentError: a line is not a JSON object, `reply` is missing or no string, or (validating) a label is not allowed; nothing to judge again.
        StorageError: the verdicts cannot be written.
    """
    read = read_replies(path, validate=validate)
    found, said = FileJudged(len(read)), dict[str, list[Outcome]]()
    for judge in judges:
        place = found.places[judge.name] = verdicts_place(path, judge.name if len(judges) > 1 else "")
        with remembering(judge, path, progress) as asked:
            outcomes = judge_onto(place, read, asked, as_row=_row, again=again, progress=progress)
        said[judge.name], found.asked[judge.name] = outcomes, asked.asked
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


def _row(reply: Reply, verdict: Verdict) -> Row:
    """A verdict as a file's row: the label of a reply is none of a document here."""
    return Row(verdict.key, verdict.document_id, verdict.task, verdict.outcome, verdict.judge, verdict.why, _hash_of(reply))


def _hash_of(reply: Reply) -> str:
    return text_hash(reply.document, reply.instruction, reply.reply)


def agreements(said: Mapping[str, Sequence[Outcome]]) -> list[Agreement]:
    """Compare every two judges on the same rows; a row that either left unjudged counts for neither."""
    found = []
    for first, second in combinations(said, 2):
        both = [Outcome.UNJUDGED not in pair for pair in zip(said[first], said[second], strict=True)]
        compared = agreement(*(list(compress(said[name], both)) for name in (first, second)))
        found.append(Agreement(first, second, sum(both), compared))
    return found


@dataclass(frozen=True, slots=True)
class SuiteJudged:
    """What came of judging the replies of a suite: how many were asked about, how many stay unjudged, and what `suites.json` holds of it now."""

    n: int
    asked: int
    unjudged: int
    found: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SuitesJudged:
    """What came of judging the suites of an evaluation; `left` names those that stay as they were, and says why."""

    judged: list[SuiteJudged] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FolderJudged:
    """What came of judging the replies of a model: how many were asked about, how many stay unjudged, which judges stand in the file, the metrics, suites."""

    n: int
    asked: int
    unjudged: int
    judges: dict[str, int]
    metrics: dict[str, Any]
    suites: SuitesJudged


def judge_evaluation(folder: Path, judge: Judge, *, again: bool = False, progress: Progress = lambda *_: None) -> FolderJudged:
    """Judge the replies in the folder of an evaluation; write `verdicts.jsonl`, and `metrics.json` as far as it follows from verdicts. Then its suites.

    Where there are verdicts, their replies are judged, in their order; else all replies. What does not come from verdicts (utility) stays as it was, but for
    what an evaluation with `--against` says of another one: that was compared with the verdicts of before.

    Raises:
        RunError: the folder holds no replies, or another process writes there or to a suite.
        DocumentError: as `judge_onto`, or `suites.json` is broken.
    """
    if not (folder / "replies.jsonl").is_file():
        where = folder / "replies.jsonl"
        raise RunError(f"{where} is missing, so there is nothing to judge. Give a JSONL of replies, the folder of an evaluation, or a run folder.")
    with held(folder):
        told = read_suites(folder / SUITES_FILE)
        with _judged(folder, judge, again=again, progress=progress) as one:
            verdicts = Rows(folder / "verdicts.jsonl", Verdict)
            before = json.loads((folder / "metrics.json").read_text(encoding="utf-8")) if (folder / "metrics.json").is_file() else {}
            metrics = {"utility": [], "retention": [], "perplexity": None} | before | verdict_metrics(one.replies, verdicts)
        judges = dict(Counter(verdict.judge for verdict in verdicts))
        if "corrected" in metrics and not ([metrics["corrected"]["judge"]] == list(judges) and all(before[one] == metrics[one] for one in ("rates", "pooled"))):
            del metrics["corrected"]
            progress("corrected rates left out, as they were of other verdicts: docward evaluate ... --correct-with FILE corrects these", 0, 0)
        if "against" in metrics:
            metrics = of_one(metrics)
            progress("the other evaluation left out, as it was compared with other verdicts: docward evaluate ... --against FOLDER compares these", 0, 0)
        write_json(folder / "metrics.json", metrics)
        suites = _judge_suites(folder, told, judge, again=again, progress=progress)
    return FolderJudged(one.n, one.asked, one.unjudged, judges, metrics, suites)


@dataclass(frozen=True, slots=True)
class _Judged:
    """The replies of a folder, and what came of judging them."""

    replies: InOrder
    n: int
    asked: int
    unjudged: int


@contextmanager
def _judged(folder: Path, judge: Judge, *, again: bool, progress: Progress) -> Iterator[_Judged]:
    """Judge the replies of a folder that is held, into its `verdicts.jsonl`; they can be read as long as the `with` lasts."""
    place, known = folder / "replies.jsonl", folder / "verdicts.jsonl"
    drop_torn_line(place)
    with KeyedRows(place, lambda row, _: typed(Reply, row, where=str(place))) as by_key:
        replies = InOrder(by_key, known if known.is_file() else place)
        if not again:
            tell_of_others(folder, judge, progress)
        with remembering(judge, place, progress) as asked:
            outcomes = judge_onto(known, replies, asked, as_row=lambda _, verdict: verdict, again=again, progress=progress)
        yield _Judged(replies, len(outcomes), asked.asked, outcomes.count(Outcome.UNJUDGED))


def _judge_suites(folder: Path, told: Sequence[dict[str, Any]], judge: Judge, *, again: bool, progress: Progress) -> SuitesJudged:
    """Judge the suites that `suites.json` tells of; those that were not run to their end stay as they are."""
    places = {place.parent.name: place.parent for place in sorted((folder / "suites").glob("*/replies.jsonl"))}
    found = SuitesJudged()
    for one in told:
        try:
            found.judged.append(_judge_suite(places.pop(one["name"], None), one, judge, again=again, progress=progress))
        except DocumentError as error:
            found.left[one["name"]] = str(error)
    found.left.update(dict.fromkeys(places, f"{SUITES_FILE} does not tell of it."))
    return found


def _judge_suite(place: Path | None, told: dict[str, Any], judge: Judge, *, again: bool, progress: Progress) -> SuiteJudged:
    """Judge the replies of a suite in its folder, and bring what `suites.json` tells of it up to date.

    Raises:
        RunError: another process writes there.
        DocumentError: what is told is not of the replies that are there; as `judge_onto`.
    """
    if place is None or not (place / "verdicts.jsonl").is_file():
        raise DocumentError("Its replies or its verdicts are missing.")
    with held(place):
        verdicts = Rows(place / "verdicts.jsonl", Verdict)
        check_told(told, verdicts)
        with _judged(place, judge, again=again, progress=_of_suite(place.name, progress)) as one:
            found = judged_anew(told, verdicts)
        write_suite(place.parent.parent / SUITES_FILE, found)
    return SuiteJudged(one.n, one.asked, one.unjudged, found)


def _of_suite(name: str, progress: Progress) -> Progress:
    """Progress that names the suite in what is counted."""
    return lambda what, done, total: progress(f"suite {name}, {what}" if total else what, done, total)


@dataclass(frozen=True, slots=True)
class InOrder(Iterable[Reply]):
    """The replies whose keys a file of rows has, in its order."""

    by_key: Mapping[str, Reply]
    order: Path

    def __iter__(self) -> Iterator[Reply]:
        """Read from the beginning."""
        return (reply for _, row in read_lines(self.order) if (reply := self.by_key.get(str(row.get("key")))))


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
            untuned, defended = (Rows(folder / "verdicts.jsonl", Verdict) for folder in folders)
            pairs = Pairs(defended, untuned)
            metrics["paired"] = [asdict(one) for one in pairs.paired()]
            mine = found["defended"].metrics
            mine |= {"differences": [asdict(one) for one in pairs.differences()], "advice": advice(Sums(defended), pairs)}
            write_json(folders[1] / "metrics.json", mine)
        metrics["models"] |= {name: one.metrics for name, one in found.items()}
        write_json(place, metrics)
    return found
