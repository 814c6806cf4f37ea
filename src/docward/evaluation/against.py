"""One evaluation set against another on the same prompts, such as a defended model's against the untuned one's.

In: the folder of the other evaluation, and what is about to be asked. Out: what `metrics.json` holds under `against` and `paired`, beside what is kept of the
other model's utility. One real row of `paired`:
`{"set": "malicious", "task": "case", "pairs": 18, "only_first": 7, "only_second": 0, "difference": 0.39, "p": 0.016, "p_holm": 0.19, "decided": false, ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docward.errors import UsageError
from docward.evaluation.claiming import ASKED, claimed
from docward.evaluation.collecting import REPLIES
from docward.evaluation.evaluating import Settings, compare
from docward.evaluation.utility import CHRF_VS_UNTUNED, Golds
from docward.keyed import KeyTable
from docward.records import Rows, write_json
from docward.types import Reply, Verdict

SAME = "Give both the same documents and tasks."
AGAIN = "Run the command that made the folder again."
METRICS, VERDICTS = "metrics.json", "verdicts.jsonl"
WHOLE = ("evaluation.json", METRICS, f"{REPLIES}.jsonl", VERDICTS)  # what a finished evaluation leaves
COMPARED: dict[str, Any] = {"differences": [], "retention": [], "perplexity": None}  # of a model beside another, and what stands there without one


@dataclass(frozen=True, slots=True)
class Other:
    """Another evaluation: its folder, its model, its metrics; how many prompts it shares with this one, and how many each has alone."""

    folder: Path
    model: str
    metrics: dict[str, Any]
    shared: int
    only_here: int
    only_there: int


def read_other(folder: Path, own: Path, planned: Sequence[Reply], settings: Settings, *, judge: str) -> Other:
    """Read what an evaluation is to be set against, and see that the two compare.

    Args:
        folder: of the other evaluation.
        own: the folder that this evaluation goes to.
        planned: every reply that it will hold, see `planned_replies`.
        settings: its settings.
        judge: the name of the judge who gives its verdicts.

    Raises:
        UsageError: `folder` is `own` or holds no finished evaluation; or its replies are to other prompts, were asked for with other settings, or have
            verdicts of another judge.
        DocumentError: a file there is broken.
    """
    if folder.resolve() == own.resolve():
        raise UsageError(f"--against {folder} is the --output-dir itself. Name the folder of another evaluation.")
    metrics = _metrics(folder)
    claim = claimed(folder)
    if apart := [f"{name}: {claim.get(name)!r} there, {getattr(settings, name)!r} here" for name in ASKED if claim.get(name) != getattr(settings, name)]:
        raise UsageError(f"--against {folder} was asked with other settings ({'; '.join(apart)}). Evaluate both with the same ones.")
    judged = _judged(folder, judge)
    shared = sum(reply.key in judged for reply in planned)
    if not shared:
        raise UsageError(f"--against {folder} shares no prompt with this evaluation ({len(judged)} there, {len(planned)} here). {SAME}")
    _check_prompts(folder, planned)
    return Other(folder, str(claim.get("model")), metrics, shared, len(planned) - shared, len(judged) - shared)


def _metrics(folder: Path) -> dict[str, Any]:
    """The metrics of a finished evaluation, as far as they are of its model alone."""
    if lack := [name for name in WHOLE if not (folder / name).is_file()]:
        inner = ", ".join(str(one) for one in sorted(folder.glob("evaluation/*")) if one.is_dir())
        raise UsageError(
            f"--against {folder} holds no finished evaluation: {', '.join(lack)} {'is' if len(lack) == 1 else 'are'} missing. "
            f"Name {f'an evaluation of this run: {inner}' if inner else 'the --output-dir of a finished docward evaluate'}."
        )
    found = [_object(folder / name) for name in ("evaluation.json", METRICS)][-1]
    if not {"rates", "pooled", "balance"} <= found.keys():
        raise UsageError(f"{folder / METRICS} holds no rates of one model. {AGAIN}")
    return of_one(found)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}). {AGAIN}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a JSON {type(found).__name__}, wanted an object. {AGAIN}")
    return found


def _judged(folder: Path, judge: str) -> KeyTable:
    """The keys of the replies in a folder that have a verdict; all verdicts must be of the same judge."""
    verdicts = Rows(folder / VERDICTS, Verdict)
    if others := sorted({verdict.judge for verdict in verdicts} - {judge}):
        raise UsageError(
            f"The verdicts in --against {folder} are by {', '.join(others)}, those here will be by {judge}: judges would be compared, not models. "
            f"Judge it by the same: docward judge {folder} --judge {judge}"
        )
    return KeyTable((verdict.key, 1) for verdict in verdicts)


def _check_prompts(folder: Path, planned: Sequence[Reply]) -> None:
    """Refuse a folder with a reply to something else under the key of a planned one."""
    mine = {reply.key: reply for reply in planned}
    for reply in Rows(folder / f"{REPLIES}.jsonl", Reply, keys=mine):
        if differ := [name for name in ("document", "instruction", "label") if getattr(mine[reply.key], name) != getattr(reply, name)]:
            raise UsageError(f"--against {folder} was asked something else under {reply.key!r}: another {' and another '.join(differ)}. {SAME}")


def of_one(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without what they say of a model beside another one."""
    alone = {name: value for name, value in metrics.items() if name not in ("against", "paired")} | COMPARED
    return alone | {"utility": [row for row in metrics.get("utility") or () if row.get("measure") != CHRF_VS_UNTUNED]}


def set_against(folder: Path, other: Other, golds: Golds, *, margin: float) -> dict[str, Any]:
    """Compare an evaluation with the other one (see `compare`) and write its `metrics.json` with what came of it, which is returned.

    Args:
        folder: of this evaluation.
        other: the other one.
        golds: see `golds_of`.
        margin: the share of the other model's utility that has to be kept.
    """
    metrics, paired = compare(folder, other.folder, golds, margin=margin)
    about = {"folder": str(other.folder), "model": other.model, "shared": other.shared, "only_here": other.only_here, "only_there": other.only_there}
    both = metrics | {"paired": paired, "against": {**about, "metrics": other.metrics}}
    write_json(folder / METRICS, both)
    return both
