"""The evaluation stage: documents x tasks -> replies -> verdicts -> metrics.

In: a loaded model and documents. Out: a folder with `replies.jsonl` (appended as they come), `verdicts.jsonl` and `metrics.json`. Generating and judging
are separate steps, so a judge can be changed without generating again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from docward.errors import RunError
from docward.evaluation.attempts import attempts
from docward.evaluation.generating import Prompt, generate
from docward.evaluation.judges import get_judge
from docward.evaluation.judging import judge_replies
from docward.evaluation.rates import advice, balance, differences, paired, pooled, rates
from docward.evaluation.utility import retention, utility
from docward.models import Loaded
from docward.records import KeyedLog, read_rows, write_json, write_rows
from docward.tasks import document_for
from docward.types import Document, Label, Reply, Task, Verdict

Progress = Callable[[str, int, int], None]  # what is going on, how much is done, of how much


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of a model under evaluation."""

    tasks: tuple[Task, ...]
    system: str = ""
    wordings: str = "seen"
    judge: str = "rules"
    max_new_tokens: int = 32
    max_batch_tokens: int = 16384
    max_length: int | None = None


def wording_of(task: Task, document: Document, wordings: str) -> tuple[int, str]:
    """The wording a document is asked in: matched documents get the same one. Unseen wordings are numbered after the seen ones."""
    offered = task.asked(document.language, unseen=wordings == "unseen")
    place = sum(document.matched.encode()) % len(offered)
    return place + (len(task.asked(document.language)) if wordings == "unseen" else 0), offered[place]


def planned_replies(documents: Sequence[Document], settings: Settings) -> list[Reply]:
    """Every reply that an evaluation will hold, still empty, in order."""
    planned = []
    for document in documents:
        for task in settings.tasks:
            wording, instruction = wording_of(task, document, settings.wordings)
            key = f"{document.id}|{task.name}|{wording}"
            text = document_for(task.name, document.text)
            planned.append(Reply(key, document.id, document.label, task.name, wording, instruction, text, "", document.category))
    return planned


def evaluate(loaded: Loaded, documents: Sequence[Document], settings: Settings, folder: Path, *, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Evaluate a model into a folder, going on where an earlier run stopped; returns what `metrics.json` holds.

    Raises:
        RunError: the folder holds replies of another model or with other settings, or another process is writing there.
    """
    planned = planned_replies(documents, settings)
    claim_folder(folder, loaded, settings)
    with KeyedLog(folder / "replies.jsonl") as log:
        missing = {reply.key: reply for reply in planned if reply.key not in log.keys}
        done = len(planned) - len(missing)
        progress("replies", done, len(planned))
        prompts = [Prompt(reply.key, reply.document, reply.instruction, system=settings.system) for reply in missing.values()]
        limits: dict[str, Any] = {"max_batch_tokens": settings.max_batch_tokens, "max_length": settings.max_length}
        for batch in generate(loaded, prompts, max_new_tokens=settings.max_new_tokens, **limits):
            log.append([_filled(missing[one.key], one.text, one.dropped, one.finished) for one in batch])
            done += len(batch)
            progress("replies", done, len(planned))
    return judge_folder(folder, {document.id: document.text for document in documents}, judge=settings.judge, keys=[reply.key for reply in planned])


def _filled(reply: Reply, text: str, dropped: int, finished: bool) -> Reply:
    return Reply(**{**asdict(reply), "label": reply.label, "reply": text, "dropped": dropped, "finished": finished})


def claim_folder(folder: Path, loaded: Loaded, settings: Settings, **more: str | int) -> None:
    """Write down what this folder holds, or refuse if it holds something else; without a reply it holds nothing yet. `more` is part of what it holds.

    Raises:
        RunError: it holds the replies of another evaluation.
    """
    mine = {"model": loaded.name, "adapter": loaded.adapter and str(loaded.adapter), "fingerprint": loaded.fingerprint}
    mine |= {name: getattr(settings, name) for name in ("wordings", "system", "max_new_tokens", "max_length")} | more
    place = folder / "evaluation.json"
    replies = folder / "replies.jsonl"
    begun = replies.is_file() and replies.stat().st_size > 0
    if begun and not place.is_file():
        raise RunError(f"{replies} is there, but no evaluation.json: it is not of an evaluation. Choose another --output-dir.")
    if not begun:
        write_json(place, mine)
        return
    import json

    theirs = json.loads(place.read_text(encoding="utf-8"))
    differs = [name for name in mine if name != "adapter" and mine[name] != theirs.get(name)]
    if differs:
        found = "; ".join(f"{name}: {theirs.get(name)!r} there, {mine[name]!r} now" for name in differs)
        raise RunError(f"{folder} holds the replies of another evaluation ({found}). Choose another --output-dir, or delete that folder.")


def judge_folder(folder: Path, originals: Mapping[str, str], *, judge: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Judge the replies in a folder and write `verdicts.jsonl` and `metrics.json`; `keys` keeps only those replies, in that order."""
    by_key = {reply.key: reply for reply in read_rows(folder / "replies.jsonl", Reply)}
    replies = [by_key[key] for key in keys] if keys is not None else list(by_key.values())
    verdicts = judge_replies(replies, get_judge(judge))
    write_rows(folder / "verdicts.jsonl", verdicts)
    metrics = model_metrics(replies, verdicts, originals=originals)
    write_json(folder / "metrics.json", metrics)
    return metrics


def model_metrics(
    replies: Sequence[Reply],
    verdicts: Sequence[Verdict],
    *,
    originals: Mapping[str, str],
    untuned: Mapping[str, str] | None = None,
    against: Sequence[Verdict] = (),
) -> dict[str, Any]:
    """What `metrics.json` says of one model; `untuned` holds the untuned model's replies by key, `against` its verdicts."""
    cut = [reply.dropped for reply in replies if reply.dropped]
    return {
        "rates": [asdict(rate) for rate in rates(verdicts)],
        "pooled": {name: asdict(rate) for name, rate in pooled(verdicts).items()},
        "balance": (found := balance(verdicts)) and asdict(found),
        "attempts": [asdict(one) for one in attempts(replies, verdicts)],
        "documents": {label.value: len({reply.document_id for reply in replies if reply.label == label}) for label in Label},
        "dropped": {"replies": len(cut), "tokens": sum(cut)},
        "utility": [asdict(one) for one in utility(replies, originals=originals, untuned=untuned)],
        "retention": [asdict(one) for one in retention(replies, originals=originals, untuned=untuned)] if untuned is not None else [],
        "differences": [asdict(one) for one in differences(verdicts, against)],
        "advice": advice(verdicts, against),
    }


def compare(first: Path, second: Path, originals: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Set a model's folder against the untuned model's: its metrics with utility against untuned replies, and the paired tests."""
    replies = [read_rows(folder / "replies.jsonl", Reply) for folder in (first, second)]
    verdicts = [read_rows(folder / "verdicts.jsonl", Verdict) for folder in (first, second)]
    judged = {verdict.key for verdict in verdicts[0]}
    untuned = {reply.key: reply.reply for reply in replies[1]}
    mine = [reply for reply in replies[0] if reply.key in judged]
    metrics = model_metrics(mine, verdicts[0], originals=originals, untuned=untuned, against=verdicts[1])
    write_json(first / "metrics.json", metrics)
    return metrics, [asdict(one) for one in paired(*verdicts)]
