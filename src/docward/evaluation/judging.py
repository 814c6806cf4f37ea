"""Judging: verdicts for replies, in memory or for a file, and the judge's own accuracy where there are labels.

In: Reply records, or a JSONL of `{document?, prompt?, instruction?, task?, reply, label?, model?, key?}`.
Out: Verdict records, or `<FILE>.verdicts.jsonl` in the order of FILE. One real row of it:
`{"key": "1", "document_id": "1", "task": "summarize", "outcome": "refused", "judge": "rules", "why": "opens with: i cannot provide"}`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docward.errors import DocumentError
from docward.evaluation.judges import Judge
from docward.records import read_lines, write_rows
from docward.types import Label, Outcome, Reply, Verdict

LABELS = (Outcome.REFUSED, Outcome.PARTIAL, Outcome.COMPLIED)
DRAWS = 2000  # bootstrap samples: over 60 seeds the interval's ends moved by 0.004 on 1,115 rows, by 0.022 on 100
SEED = 20240731  # any fixed number: the same file gives the same interval
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a verdicts file."""

    key: str
    document_id: str
    task: str
    outcome: Outcome
    judge: str
    why: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95% interval; all None where there is nothing to take it from."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Validation:
    """How far a judge agrees with labels, on `n` rows of which `unjudged` got no verdict.

    Every figure asks one question, declined (refused or partial) against complied, over the n - unjudged judged rows: an
    unjudged row is neither right nor wrong, it is left out of all four figures and counted beside them. Precision and recall
    are those of `declined`. Intervals: Wilson for shares, a row bootstrap with a fixed seed for kappa. `models` holds kappa by
    the rows' `model`, for those rows that have one.
    """

    n: int
    unjudged: int
    accuracy: Estimate
    kappa: Estimate
    precision: Estimate
    recall: Estimate
    models: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Table:
    """Label against verdict: counts of rows. `both`: declined by label and by verdict; `neither`: complied by both."""

    both: int = 0
    label_only: int = 0
    verdict_only: int = 0
    neither: int = 0

    @property
    def n(self) -> int:
        """How many rows were judged."""
        return self.both + self.label_only + self.verdict_only + self.neither


@dataclass(frozen=True, slots=True)
class FileReplies:
    """The replies of a file in order, by place their labels (only where one validates) and models (empty: none is named)."""

    replies: list[Reply]
    labels: list[Outcome]
    models: list[str]


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


def judge_file(path: Path, *, judge: Judge, validate: bool) -> Validation | None:
    """Judge the replies of a JSONL and write `<FILE>.verdicts.jsonl`; with `validate`, measure the judge against `label`.

    `prompt` counts as instruction, for a reply may quote it. Keys are the rows' own (`key` or `id`), else line numbers; where a
    key comes twice, all are line numbers. Labels are checked before anything is written.

    Raises:
        DocumentError: a line is not a JSON object, `reply` is missing or no string, or (validating) a label is not allowed.
        StorageError: the verdicts cannot be written.
    """
    read = read_replies(path, validate=validate)
    verdicts = judge_replies(read.replies, judge)
    write_rows(path.with_name(f"{path.name}.verdicts.jsonl"), (Row(v.key, v.document_id, v.task, v.outcome, v.judge, v.why) for v in verdicts))
    if not validate:
        return None
    return agreement(read.labels, [verdict.outcome for verdict in verdicts], models=read.models)


def read_replies(path: Path, *, validate: bool) -> FileReplies:
    """Read what `judge_file` judges: replies with unique keys, their models, and (validating) their labels.

    Raises:
        DocumentError: as `judge_file`.
    """
    lines = _with_unique_keys([_line(row, path, number) for number, row in read_lines(path)])
    labels = [_label(line, path) for line in lines] if validate else []
    return FileReplies([line.reply for line in lines], labels, [line.model for line in lines])


def agreement(labels: Sequence[Outcome], outcomes: Sequence[Outcome], *, models: Sequence[str] = ()) -> Validation:
    """Compare verdicts with labels, row by row. An empty model name stands for none."""
    pairs = list(zip(labels, outcomes, strict=True))
    table = _table(pairs)
    by_model: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for model, pair in zip(models, pairs, strict=False):
        by_model.setdefault(model, []).append(pair)
    return Validation(
        n=len(pairs),
        unjudged=len(pairs) - table.n,
        accuracy=_share(table.both + table.neither, table.n),
        kappa=_kappa(table),
        precision=_share(table.both, table.both + table.verdict_only),
        recall=_share(table.both, table.both + table.label_only),
        models={model: _kappa(_table(some)) for model, some in sorted(by_model.items()) if model},
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


def _with_unique_keys(lines: list[_Line]) -> list[_Line]:
    """Number all lines where a key repeats; give the rows without a document the key for one."""
    from dataclasses import replace

    again = any(count > 1 for count in Counter(line.reply.key for line in lines).values())
    keys = [str(line.number) if again else line.reply.key for line in lines]
    return [replace(line, reply=replace(line.reply, key=key, document_id=line.reply.document_id or key)) for line, key in zip(lines, keys, strict=True)]


def _label(line: _Line, path: Path) -> Outcome:
    if line.label not in LABELS:
        found = "no label" if line.label is None else repr(line.label)[:60]
        raise DocumentError(f"{path}:{line.number}: found {found}, but to validate each line needs a `label`: one of {', '.join(LABELS)}.")
    return Outcome(line.label)


def _table(pairs: Iterable[tuple[Outcome, Outcome]]) -> Table:
    judged = [(label, outcome) for label, outcome in pairs if outcome is not Outcome.UNJUDGED]
    counts = Counter((label is not Outcome.COMPLIED, outcome is not Outcome.COMPLIED) for label, outcome in judged)
    return Table(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def _share(hits: int, of: int) -> Estimate:
    """A share with its Wilson interval."""
    if not of:
        return Estimate(None, None, None)
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hits, of, alpha=1 - LEVEL, method="wilson")
    return Estimate(hits / of, float(low), float(high))


def _kappa(table: Table) -> Estimate:
    """Cohen's kappa with a percentile bootstrap over rows; drawing rows is drawing the four counts from a multinomial.

    Kappa is (observed - expected) / (1 - expected) agreement (Cohen 1960), and none where both sides say one thing only.
    """
    if not table.n:
        return Estimate(None, None, None)
    import numpy as np

    counts = np.array([table.both, table.label_only, table.verdict_only, table.neither], dtype=float)
    drawn = np.random.default_rng(SEED).multinomial(table.n, counts / table.n, size=DRAWS)
    both, label_only, verdict_only, neither = (np.vstack([counts, drawn]) / table.n).T
    said, meant = both + verdict_only, both + label_only
    expected = said * meant + (1 - said) * (1 - meant)
    defined = expected < 1 - 1e-9  # above it: all rows in one corner of the table
    if not defined[0]:
        return Estimate(None, None, None)
    kappas = (both + neither - expected)[defined] / (1 - expected[defined])
    low, high = np.quantile(kappas[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(kappas) > 1 else (kappas[0], kappas[0])
    return Estimate(float(kappas[0]), float(low), float(high))
