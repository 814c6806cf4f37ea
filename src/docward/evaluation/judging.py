"""Judging: verdicts for replies, in memory or for a file, and the judge's own accuracy where there are labels.

In: Reply records, or a JSONL of `{document?, prompt?, instruction?, task?, reply, label?, model?, key?}`.
Out: Verdict records, or `<FILE>.verdicts.jsonl` in the order of FILE. One real row of it:
`{"key": "1", "document_id": "1", "task": "summarize", "outcome": "refused", "judge": "rules", "why": "opens with: i cannot provide"}`
What judges that are models say is appended to `<FILE>.said.jsonl` as it comes, and no such judge is asked twice about the same reply.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from docward.errors import DocumentError
from docward.evaluation.judges import Judge, RuleJudge, get_judge
from docward.evaluation.statistics import Interval, Table, kappa, wilson
from docward.keyed import KeyedRows, KeyTable
from docward.records import KeyedLog, drop_torn_line, read_lines, text_hash, typed
from docward.servers import Server
from docward.types import Label, Outcome, Reply, Verdict

LABELS = (Outcome.REFUSED, Outcome.PARTIAL, Outcome.COMPLIED)
Progress = Callable[[str, int, int], None]  # what is going on, how much is done, of how much
TOGETHER = 16  # verdicts that are put on disk at a time: what a kill can cost
IN_FOLDERS = ("wildguard", "classifier")  # the kinds whose name may hold a folder, behind the colon


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a verdicts file; `on` is a hash of what was judged, since a file's replies may be others tomorrow under the same keys."""

    key: str
    document_id: str
    task: str
    outcome: Outcome
    judge: str
    why: str
    on: str = ""


@dataclass(frozen=True, slots=True)
class Validation:
    """How far a judge agrees with labels, on `n` rows of which `unjudged` got no verdict.

    Every figure asks one question, declined (refused or partial) against complied, over the n - unjudged judged rows: an
    unjudged row is neither right nor wrong, it is left out of all four figures and counted beside them. Precision and recall
    are those of `declined`. Intervals: Wilson for shares, a row bootstrap with a fixed seed for kappa; None where there is nothing
    to take a figure from. `models` holds kappa by the rows' `model`, for those rows that have one; `table` what all of it is counted from.
    """

    n: int
    unjudged: int
    accuracy: Interval | None
    kappa: Interval | None
    precision: Interval | None
    recall: Interval | None
    models: dict[str, Interval | None]
    table: Table


@dataclass(frozen=True, slots=True)
class FileReplies(Iterable[Reply]):
    """The replies of a file, read anew each time they are gone through; by place their labels (only where one validates) and models (empty: none is named)."""

    path: Path
    numbered: bool  # keys are line numbers
    labels: list[Outcome]
    models: list[str]

    def __iter__(self) -> Iterator[Reply]:
        """Read from the beginning; the rows without a document get the key for one."""
        for number, row in read_lines(self.path):
            reply = _line(row, self.path, number).reply
            key = str(number) if self.numbered else reply.key
            yield replace(reply, key=key, document_id=reply.document_id or key)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.models)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a file to judge: its number, the reply, and what only validation reads."""

    number: int
    reply: Reply
    label: Any
    model: str


def judge_replies(replies: Iterable[Reply], judge: Judge) -> list[Verdict]:
    """Give one verdict a reply, in order."""
    return list(judge.judge_all(list(replies)))


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge has said of a reply. `key` is of the judge (see `fingerprint_of`) and of all that it reads: another text has another one."""

    key: str
    outcome: Outcome
    why: str


class SaidLog(KeyedLog):
    """A log that holds no keys, which would grow in memory with the rows: what is in the file is not asked about, so hardly a row comes twice."""

    def _mend(self) -> None:
        drop_torn_line(self.path)

    def append(self, records: Sequence[Said]) -> None:
        """Add records, and put them on disk before returning."""
        super().append(records)
        self.keys.clear()


@dataclass(slots=True)
class Remembering:
    """A judge that knows what it has said before, and is asked about other replies only: `asked` of them so far. What it leaves unjudged it does not keep.

    Nor is it asked about what a server withheld: that is unjudged, and says why. Of the `recalled` verdicts `outdated` are those of other weights than were
    loaded for the replies behind them.
    """

    judge_of_new: Judge
    before: Mapping[str, Said]
    log: KeyedLog | None
    fingerprint: str = ""
    asked: int = 0
    recalled: int = 0
    outdated: int = 0
    loaded: bool = False
    waiting: list[Said] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The judge's own."""
        return self.judge_of_new.name

    def judge(self, reply: Reply) -> Verdict:
        """Judge one reply."""
        return next(self.judge_all([reply]))

    def judge_all(self, replies: Sequence[Reply]) -> Iterator[Verdict]:
        """Judge replies in order, each new verdict on its way to the disk as it comes."""
        keys, known = self._recall(replies)
        if not self.loaded and any(not one and reply.reply.strip() for reply, one in zip(replies, known, strict=True)):
            self._load()
            keys, known = self._recall(replies)
        fresh = iter(self.judge_of_new.judge_all([reply for reply, one in zip(replies, known, strict=True) if not one]))
        for reply, key, one in zip(replies, keys, known, strict=True):
            self.recalled += one is not None and not reply.withheld
            yield Verdict.on(reply, one.outcome, judge=self.name, why=one.why) if one else self._new(key, next(fresh))

    def _recall(self, replies: Sequence[Reply]) -> tuple[list[str], list[Said | None]]:
        """A key for each reply, and what is known of it."""
        keys = [text_hash(self.name, self.fingerprint, reply.document, reply.instruction, reply.reply) for reply in replies]
        return keys, [_unsaid(key, reply) if reply.withheld else self.before.get(key) for key, reply in zip(keys, replies, strict=True)]

    def _load(self) -> None:
        """Load a judge that has weights before it is first asked, and go by these: only then are the Hub's newest in its cache."""
        self.loaded = True
        if (load := getattr(self.judge_of_new, "load", None)) is None:
            return
        load()
        if (found := fingerprint_of(self.judge_of_new)) != self.fingerprint:
            self.fingerprint, self.outdated = found, self.recalled

    def _new(self, key: str, verdict: Verdict) -> Verdict:
        self.asked += 1
        if verdict.outcome is not Outcome.UNJUDGED:
            self.waiting.append(Said(key, verdict.outcome, verdict.why))
        if len(self.waiting) >= TOGETHER:
            self.write()
        return verdict

    def write(self) -> None:
        """Put on disk what waits for it."""
        if self.log:
            self.log.append(self.waiting)
        self.waiting.clear()


def _unsaid(key: str, reply: Reply) -> Said:
    return Said(key, Outcome.UNJUDGED, f"withheld by the server: {reply.withheld}")


def fingerprint_of(judge: Judge) -> str:
    """What a judge's verdicts hang on besides its name, as far as that is known without loading it: its server, its question, its files or Hub revision."""
    from docward.evaluation.judges import asking, wildguard

    words = {"openai": (asking.SYSTEM, asking.PROMPT), "wildguard": (wildguard.PROMPT,)}
    kind, _, given = judge.name.partition(":")
    server, model = getattr(judge, "server", None), given.partition("#")[0] or (wildguard.HUB_ID if kind == "wildguard" else "")
    parts = [*words.get(kind, ()), *([server.fingerprint] if isinstance(server, Server) else [])]
    if kind in IN_FOLDERS and model:
        place = Path(model).expanduser()
        files = [one for one in (sorted(place.iterdir()) if place.is_dir() else [place]) if one.is_file()]
        parts += [f"{one.name} {one.stat().st_size} {one.stat().st_mtime_ns}" for one in files] or [hub_revision(model)]
    return text_hash(*parts)


def hub_revision(model: str, *, cache_dir: Path | None = None) -> str:
    """The commit of a Hub id that lies in the Hub's cache as its `main`; empty where none does. Asks no server."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", cache_dir=cache_dir)
    except HFValidationError:  # no Hub id, such as a folder that is gone
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""  # <cache>/models--org--name/snapshots/<commit>/config.json


@contextmanager
def remembering(judge: Judge, replies: Path, progress: Progress = lambda *_: None) -> Iterator[Remembering]:
    """Let a judge keep what it says beside a file of replies, wherever it is stopped. The rules keep nothing: they are quick, and say the same every time.

    What the server of a judge did not take is told: without `temperature` its verdicts are not greedy.

    Raises:
        RunError: another process judges these replies.
        DocumentError: what lies there is no file of Docward's.
        StorageError: a verdict cannot be written; those before it are safe.
    """
    if isinstance(judge, RuleJudge):
        yield Remembering(judge, {}, None)
        return
    place = replies.with_name(f"{replies.name}.said.jsonl")
    with SaidLog(place) as log:
        try:
            with KeyedRows(place, lambda row, _: typed(Said, row, where=str(place))) as before:
                found = Remembering(judge, before, log, fingerprint_of(judge))
                try:
                    yield found
                finally:
                    found.write()
                    if found.outdated:
                        said = f"{found.outdated} remembered verdicts of {judge.name} are of weights older than those loaded now"
                        progress(f"{said}: judge anew, without --again, to have all of one", 0, 0)
                    if (server := getattr(judge, "server", None)) is not None and (told := server.told()):
                        progress(told, 0, 0)
        finally:
            if not place.stat().st_size:
                place.unlink()


@contextmanager
def judging_in(folder: Path, name: str, progress: Progress) -> Iterator[Judge]:
    """The judge of that name, who knows what it has said of the replies in a folder before; says so where its verdicts replace those of others."""
    judge = get_judge(name)
    tell_of_others(folder, judge, progress)
    with remembering(judge, folder / "replies.jsonl", progress) as asked:
        yield asked


def tell_of_others(folder: Path, judge: Judge, progress: Progress) -> None:
    """Say whose verdicts in a folder, if there are any, those of `judge` are about to replace."""
    place = folder / "verdicts.jsonl"
    rows = read_lines(place) if place.is_file() and place.stat().st_size else ()
    if others := sorted({str(row.get("judge")) for _, row in rows} - {judge.name}):
        progress(f"verdicts of {', '.join(others)} in {folder.name} give way to those of {judge.name}", 0, 0)


def read_replies(path: Path, *, validate: bool) -> FileReplies:
    """Check a JSONL of replies, all of it, to be read one by one: with unique keys, their models, and (validating) their labels.

    `prompt` counts as instruction, for a reply may quote it. Keys are the rows' own (`key` or `id`), else line numbers; where a key comes twice, all are.

    Raises:
        DocumentError: a line is not a JSON object, `reply` is missing or no string, or (validating) a label is not allowed.
    """
    labels, models, known = list[Outcome](), list[str](), dict[str, str]()

    def keys() -> Iterator[tuple[str, int]]:
        for number, row in read_lines(path):
            line = _line(row, path, number)
            models.append(known.setdefault(line.model, line.model))
            if validate:
                labels.append(_label(line, path))
            yield line.reply.key, 1

    return FileReplies(path, KeyTable(keys()).repeats, labels, models)


def agreement(labels: Sequence[Outcome], outcomes: Sequence[Outcome], *, models: Sequence[str] = ()) -> Validation:
    """Compare verdicts with labels, row by row. An empty model name stands for none."""
    table = _table(Counter(zip(labels, outcomes, strict=True)))
    by_model: dict[str, Counter[tuple[Outcome, Outcome]]] = defaultdict(Counter)
    for model, label, outcome in zip(models, labels, outcomes, strict=False):
        by_model[model][label, outcome] += 1
    return Validation(
        n=len(labels),
        unjudged=len(labels) - table.n,
        accuracy=wilson(table.both + table.neither, table.n),
        kappa=kappa(table),
        precision=wilson(table.both, table.both + table.verdict_only),
        recall=wilson(table.both, table.both + table.label_only),
        models={model: kappa(_table(some)) for model, some in sorted(by_model.items()) if model},
        table=table,
    )


def _line(row: dict[str, Any], path: Path, number: int) -> _Line:
    where = f"{path}:{number}"
    if "reply" not in row:
        raise DocumentError(f"{where}: the field `reply` is missing. Each line needs the model's answer as a string; found the fields {_named(row)}.")
    if not isinstance(row["reply"], str):
        raise DocumentError(f"{where}: `reply` must be a string, found {_kind(row['reply'])}. An empty reply is the empty string.")
    key = next((_text(row[name]) for name in ("key", "id") if row.get(name) not in (None, "")), str(number))
    told = "\n".join(text for name in ("instruction", "prompt") if (text := _string(row, name, where)))
    reply = Reply(
        key=key,
        document_id=_text(row.get("document_id") or ""),
        label=Label(row["label"]) if row.get("label") in list(Label) else Label.ORDINARY,  # no judge reads it, no row shows it
        task=_text(row.get("task") or ""),
        wording=0,
        instruction=told,
        document=_string(row, "document", where),
        reply=row["reply"],
        finished=bool(row.get("finished", True)),
        withheld=_text(row["withheld"]) if isinstance(row.get("withheld"), str) and not row["reply"] else "",
    )
    return _Line(number, reply, row.get("label"), _text(row.get("model") or ""))


def _string(row: dict[str, Any], name: str, where: str) -> str:
    """A field that may be absent or null; what is quoted from it cannot be told if it is anything else."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise DocumentError(f"{where}: `{name}` must be a string or absent, found {_kind(value)}.")
    return value or ""


def _text(value: Any) -> str:
    """A name as text that UTF-8 can hold."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return names[type(value)]


def _named(row: dict[str, Any]) -> str:
    return ", ".join(f"`{_text(name)}`" for name in list(row)[:8]) or "none"


def _label(line: _Line, path: Path) -> Outcome:
    if line.label not in LABELS:
        found = "no label" if line.label is None else repr(line.label)[:60]
        raise DocumentError(f"{path}:{line.number}: found {found}, but to validate each line needs a `label`: one of {', '.join(LABELS)}.")
    return Outcome(line.label)


def _table(pairs: Mapping[tuple[Outcome, Outcome], int]) -> Table:
    counts: Counter[tuple[bool, bool]] = Counter()
    for (label, outcome), many in pairs.items():
        if outcome is not Outcome.UNJUDGED:
            counts[label is not Outcome.COMPLIED, outcome is not Outcome.COMPLIED] += many
    return Table(counts[True, True], counts[True, False], counts[False, True], counts[False, False])
