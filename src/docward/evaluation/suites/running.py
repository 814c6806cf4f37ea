"""Suites are run: every level is planned, answered and judged; each suite has a folder of its own below the evaluation's.

In: a loaded model, documents and suites. Out: `suites/<name>/{evaluation.json,replies.jsonl,verdicts.jsonl}` and `suites.json`. It can be stopped
anywhere and goes on. A request that the evaluation itself has answered, such as level 0 of every suite, is not asked again.
One real key of a reply: `fraud-01-m|summarize|0|middle 10%`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from docward.evaluation.evaluating import Settings, claim_folder, wording_of
from docward.evaluation.generating import Prompt, generate
from docward.evaluation.judges import get_judge
from docward.evaluation.judging import judge_replies
from docward.evaluation.suites.suite import UNCHANGED, Asked, Kit, Level, Suite
from docward.evaluation.suites.summing import SUITES_FILE, SuiteRate, read_suites, suite_rates
from docward.models import Loaded
from docward.records import KeyedLog, read_lines, text_hash, write_json, write_rows
from docward.rendering import render
from docward.tasks import document_for
from docward.types import Document, Position, Reply, Verdict

MARGIN = 8  # tokens: a document has a few more or fewer within a prompt than alone
Progress = Callable[[str, int, int], None]
Request = tuple[str, str, Position, str]  # document, instruction, position, opening: what makes an answer
Answer = tuple[str, int, bool]  # text, dropped, finished


@dataclass(frozen=True, slots=True)
class Planned:
    """A reply yet to be filled in, its level and its request."""

    reply: Reply
    level: Level
    request: Request


def run_suites(
    loaded: Loaded,
    documents: Sequence[Document],
    suites: Sequence[Suite],
    settings: Settings,
    folder: Path,
    *,
    ordinary: Sequence[Document],
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> list[dict[str, Any]]:
    """Run suites on the documents of an evaluation, going on where an earlier run stopped; returns what `suites.json` holds of them.

    Args:
        loaded: the model.
        documents: the same in all levels.
        suites: which.
        settings: those of the evaluation; level 0 is asked by them.
        folder: the evaluation's.
        ordinary: documents whose text is put around another.
        seed: of whatever a suite leaves to chance.
        progress: is told what goes on.

    Raises:
        RunError: a suite's folder holds replies of another model or with other settings, or another process is writing there.
        RecipeError: a suite wants what a task or the ordinary documents do not have.
    """
    kit = Kit(loaded.tokenizer, tuple(ordinary), _room(loaded, documents, settings), seed)
    around = text_hash(*(one.text for one in ordinary))
    answered = _answers(folder / "replies.jsonl")
    for suite in suites:
        place = folder / "suites" / suite.name
        claim_folder(place, loaded, settings, suite=suite.name, seed=seed, ordinary=around)
        planned = plan(suite, documents, settings, kit)
        _answer(loaded, planned, settings, place, answered, progress=progress)
        rows = _judge(suite, planned, place, settings.judge)
        left_out = [level.name for level in suite.levels if level.tokens > kit.room]
        found = {"name": suite.name, "what": suite.what, "axis": suite.axis, "seed": seed, "left_out": left_out, "rows": [asdict(row) for row in rows]}
        _write(folder / SUITES_FILE, found)
    return [one for one in read_suites(folder / SUITES_FILE) if one["name"] in {suite.name for suite in suites}]


def plan(suite: Suite, documents: Sequence[Document], settings: Settings, kit: Kit) -> list[Planned]:
    """Every request of a suite, level by level, each once."""
    planned: dict[str, Planned] = {}
    for level in suite.fitting(kit.room):
        for document in documents:
            for task in settings.tasks:
                asked = suite.at(Asked(document, task, document.text, *wording_of(task, document, settings.wordings)), level, kit)
                one = _planned(asked, level)
                planned.setdefault(one.reply.key, one)
    return list(planned.values())


def _planned(asked: Asked, level: Level) -> Planned:
    document, name = asked.document, asked.task.name
    text = document_for(name, asked.text)
    key = f"{document.id}|{name}|{asked.wording}|{level.name}"
    reply = Reply(key, document.id, document.label, name, asked.wording, asked.instruction, text, "", document.category, source=document.source)
    return Planned(reply, level, (text, asked.instruction, asked.position, asked.opening))


def _room(loaded: Loaded, documents: Sequence[Document], settings: Settings) -> int:
    """The longest document that fits with every instruction and its answer, in tokens."""
    limit = min(settings.max_length or loaded.context, loaded.context)
    asked = {words for task in settings.tasks for one in documents for words in (*task.asked(one.language), *task.asked(one.language, unseen=True))}
    frames = (render(loaded.tokenizer, document="x", instruction=words, system=settings.system, limit=limit) for words in asked)
    return limit - settings.max_new_tokens - MARGIN - max((len(frame.ids) for frame in frames), default=0)


def _answers(path: Path) -> dict[Request, Answer]:
    """What the evaluation itself has been answered: instruction after the document, nothing put in the model's mouth."""
    if not path.is_file():
        return {}
    return {(row["document"], row["instruction"], Position.AFTER, ""): _answer_of(row) for _, row in read_lines(path)}


def _answer_of(row: Mapping[str, Any]) -> Answer:
    return row["reply"], row.get("dropped", 0), row.get("finished", True)


def _answer(loaded: Loaded, planned: Sequence[Planned], settings: Settings, folder: Path, answered: Mapping[Request, Answer], *, progress: Progress) -> None:
    """Put a reply to every planned request into `replies.jsonl`; requests that are alike are asked once."""
    with KeyedLog(folder / "replies.jsonl") as log:
        missing: dict[Request, list[Reply]] = {}
        for one in planned:
            if one.reply.key not in log.keys:
                missing.setdefault(one.request, []).append(one.reply)
        what = f"suite {folder.name}"
        for request in [one for one in missing if one in answered]:
            log.append([_filled(reply, answered[request]) for reply in missing.pop(request)])
        done = len(planned) - sum(map(len, missing.values()))
        progress(what, done, len(planned))
        asked = {replies[0].key: request for request, replies in missing.items()}
        prompts = [Prompt(key, text, words, position, settings.system, opening) for key, (text, words, position, opening) in asked.items()]
        limits: dict[str, Any] = {"max_batch_tokens": settings.max_batch_tokens, "max_length": settings.max_length}
        for batch in generate(loaded, prompts, max_new_tokens=settings.max_new_tokens, **limits):
            rows = [_filled(reply, (one.text, one.dropped, one.finished)) for one in batch for reply in missing[asked[one.key]]]
            log.append(rows)
            done += len(rows)
            progress(what, done, len(planned))


def _filled(reply: Reply, answer: Answer) -> Reply:
    return replace(reply, reply=answer[0], dropped=answer[1], finished=answer[2])


def _judge(suite: Suite, planned: Sequence[Planned], folder: Path, judge: str) -> list[SuiteRate]:
    """Judge the planned replies of a folder, level by level, and write `verdicts.jsonl`.

    Only the answers are read back, so that tasks go on sharing a long document's text in memory.
    """
    keys = {one.reply.key for one in planned}
    said = {row["key"]: _answer_of(row) for _, row in read_lines(folder / "replies.jsonl") if row["key"] in keys}
    judging = get_judge(judge)
    levels: dict[Level, list[Verdict]] = {}
    for level in dict.fromkeys(one.level for one in planned):
        replies = [_filled(one.reply, said[one.reply.key]) for one in planned if one.level == level]
        levels[level] = judge_replies(replies, judging)
    write_rows(folder / "verdicts.jsonl", [verdict for verdicts in levels.values() for verdict in verdicts])
    return suite_rates(suite.name, levels, _changed(planned))


def _changed(planned: Sequence[Planned]) -> dict[Level, frozenset[str]]:
    """The documents that each level asks about in another way than level 0."""
    plain = {one.request for one in planned if one.level == UNCHANGED}
    changed: dict[Level, set[str]] = {one.level: set() for one in planned}
    for one in planned:
        if one.request not in plain:
            changed[one.level].add(one.reply.document_id)
    return {level: frozenset(found) for level, found in changed.items()}


def _write(path: Path, found: dict[str, Any]) -> None:
    """Put one suite into `suites.json`; others that are there stay."""
    named = {one["name"]: one for one in [*read_suites(path), found]}
    write_json(path, {"suites": list(named.values())})
