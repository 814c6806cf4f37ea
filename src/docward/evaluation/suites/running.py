"""Suites are run: every level is planned, answered and judged; each suite has a folder of its own below the evaluation's.

In: a model, loaded here or behind a server, documents and suites. Out: `suites/<name>/{evaluation.json,replies.jsonl,verdicts.jsonl}` and `suites.json`. It
can be stopped anywhere and goes on, by other processes too. A request that the evaluation itself has answered, such as level 0 of every suite, is not asked
again. One real key of a reply: `fraud-01-m|summarize|0|middle 10%`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from docward import processes
from docward.errors import UsageError
from docward.evaluation.collecting import REPLIES, own_file, put_in_order, share, take_in
from docward.evaluation.evaluating import Settings, begin, fill, filled, judged, lacking, wording_of
from docward.evaluation.generating import Prompt
from docward.evaluation.judges import Judge
from docward.evaluation.judging import judging_in
from docward.evaluation.suites.drifting import WEIGHTS, drifting
from docward.evaluation.suites.suite import TOKENS, UNCHANGED, Asked, Kit, Level, Suite
from docward.evaluation.suites.summing import SUITES_FILE, SuiteRate, read_suites, suite_rates
from docward.models import Loaded
from docward.records import KeyedLog, read_lines, text_hash, write_json, write_rows
from docward.rendering import render
from docward.servers import Server
from docward.tasks import document_for
from docward.types import Document, Position, Reply, Verdict

MARGIN = 8  # tokens: a document has a few more or fewer within a prompt than alone
Progress = Callable[[str, int, int], None]
Request = tuple[str, str, Position, str, int]  # document, instruction, position, opening, steps of harmless tuning: what makes an answer
Answer = tuple[str, int, bool, bool, str]  # text, dropped, finished, cut, withheld


@dataclass(frozen=True, slots=True)
class Planned:
    """A reply yet to be filled in, its level and its request."""

    reply: Reply
    level: Level
    request: Request


def run_suites(
    model: Loaded | Server,
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

    Where a launcher started several processes, all of them must call it, after the evaluation; documents are dealt out to them. Replies that a server did not
    give are counted (`missing`) and asked for by the next run.

    Args:
        model: loaded here, or behind a server; see `for_model`.
        documents: the same in all levels.
        suites: which.
        settings: those of the evaluation; level 0 is asked by them.
        folder: the evaluation's.
        ordinary: documents whose text is put around another.
        seed: of whatever a suite leaves to chance.
        progress: is told what goes on.

    Raises:
        RunError: a suite's folder holds replies of another model or with other settings, or another process is writing there, or a server gave no reply at all.
        RecipeError: a suite wants what a task or the ordinary documents do not have.
    """
    if not suites:
        return []
    kit = Kit(model.tokenizer, tuple(ordinary), _room(model, documents, settings), seed)
    around = text_hash(*(one.text for one in ordinary))
    found = []
    for suite in suites:
        place, planned = folder / "suites" / suite.name, {one.reply.key: one for one in plan(suite, documents, settings, kit)}
        marks: dict[str, Any] = {"suite": suite.name, "seed": seed, "ordinary": around}
        with ExitStack() as stack:
            replies = {key: one.reply for key, one in planned.items()}
            waiting, _ = processes.on_main(partial(begin, stack, model, settings, place, replies, progress, **marks))
            answered = _answers(folder / "replies.jsonl", [planned[key].request for key in waiting])
            why = processes.gathered(_answer(model, documents, [planned[key] for key in waiting], settings, place, answered, seed, progress))
            found.append(processes.on_main(partial(_finish, suite, list(planned.values()), settings, place, kit, sum(why, Counter[str]()), progress)))
    return found


def for_server(suites: Sequence[Suite], *, tokens: bool = False) -> list[Suite]:
    """The suites that a model behind a server can be asked: those that put no words in its mouth and leave it as it is.

    Those that count its own tokens are among them where it is said that its tokenizer is at hand (`tokens`).
    """
    return [suite for suite in suites if not suite.wants or (tokens and suite.wants == TOKENS)]


def for_model(suites: Sequence[Suite], model: Loaded | Server, settings: Settings) -> list[Suite]:
    """The suites that a model can be asked.

    Raises:
        UsageError: some want to know how long a document may be, and neither the settings nor the server say so.
    """
    if not isinstance(model, Server):
        return list(suites)
    found = for_server(suites, tokens=model.tokenizer is not None)
    if (counting := [one.name for one in found if one.wants]) and not (settings.max_length or model.context):
        raise UsageError(
            f"Nobody says how long a document may be ({', '.join(counting)}): the server {model.base_url} does not state the context of {model.name!r}. "
            "Give it in tokens by --max-length, or leave those suites out."
        )
    return found


def _finish(suite: Suite, planned: Sequence[Planned], settings: Settings, place: Path, kit: Kit, why: Counter[str], progress: Progress) -> dict[str, Any]:
    """Put the replies in order, judge them, and write the suite into `suites.json`, which stands two folders up."""
    keys = [one.reply.key for one in planned]
    missing = lacking(keys, take_in(place, REPLIES, Reply), why)
    put_in_order(place / "replies.jsonl", keys)
    known = set(keys)  # of a reply its answer alone is read back, so that tasks go on sharing a long document's text in memory
    said = {row["key"]: _answer_of(row) for _, row in read_lines(place / "replies.jsonl") if row["key"] in known}
    with judging_in(place, settings.judge, progress) as judge:
        rows = _judge(suite, planned, said, place, judge)
    reasons = Counter(withheld for *_, withheld in said.values() if withheld)
    left_out = [level.name for level in suite.levels if level.tokens > kit.room]
    about = {"name": suite.name, "what": suite.what, "axis": suite.axis, "seed": kit.seed, "left_out": left_out, "missing": missing}
    found = about | {"withheld": {"replies": reasons.total(), "why": dict(reasons)}, "rows": [asdict(row) for row in rows]}
    _write(place.parent.parent / SUITES_FILE, found)
    return found


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
    return Planned(reply, level, (text, asked.instruction, asked.position, asked.opening, asked.steps))


def _room(model: Loaded | Server, documents: Sequence[Document], settings: Settings) -> int:
    """The longest document that fits with every instruction that it is asked in and its answer, in tokens; 0 where nobody counts tokens or knows the context.

    A level's tokens are the document's alone, not those of prompt and answer together: so it stays the same document under another task, wording, system prompt
    or number of new tokens. A level for which these leave no room is left out whole, and named; no shorter one goes by its name.
    """
    if model.tokenizer is None or not (limit := min((one for one in (settings.max_length, model.context) if one), default=0)):
        return 0
    asked = {wording_of(task, one, settings.wordings)[1] for task in settings.tasks for one in documents}
    frames = (render(model.tokenizer, document="x", instruction=words, system=settings.system, limit=limit) for words in asked)
    return limit - settings.max_new_tokens - MARGIN - max((len(frame.ids) for frame in frames), default=0)


def _answers(path: Path, wanted: Sequence[Request]) -> dict[Request, Answer]:
    """Those of these requests that the evaluation itself has been answered: instruction after the document, nothing put in the model's mouth."""
    found: dict[Request, Answer] = {}
    known = {one: one for one in wanted}  # what is read is not kept: these texts are in memory once, however many rows have them
    for _, row in read_lines(path) if known and path.is_file() else ():
        if mine := known.get((row["document"], row["instruction"], Position.AFTER, "", 0)):
            found[mine] = _answer_of(row)
    return found


def _answer_of(row: Mapping[str, Any]) -> Answer:
    return row["reply"], row.get("dropped", 0), row.get("finished", True), row.get("cut", False), row.get("withheld", "")


def _answer(
    model: Loaded | Server,
    documents: Sequence[Document],
    waiting: Sequence[Planned],
    settings: Settings,
    folder: Path,
    answered: Mapping[Request, Answer],
    seed: int,
    progress: Progress,
) -> Counter[str]:
    """Get this process's share of the waiting replies; requests that are alike are asked once. Why some did not come."""
    left = {one.reply.document_id for one in waiting}
    own = share([document for document in documents if document.id in left])
    missing: dict[Request, list[Reply]] = {}
    for one in waiting:
        if one.reply.document_id in own:
            missing.setdefault(one.request, []).append(one.reply)
    total, what = sum(map(len, missing.values())), f"suite {folder.name}"
    progress(what, 0, total)
    with KeyedLog(own_file(folder, REPLIES)) as log:
        for request in [one for one in missing if one in answered]:
            log.append([filled(reply, *answered[request]) for reply in missing.pop(request)])
        known = total - sum(map(len, missing.values()))
        progress(what, known, total)
        why = Counter[str]()
        for asked, steps in _models(model, sorted({request[-1] for request in missing}), seed):
            some = {request: replies for request, replies in missing.items() if request[-1] == steps}
            prompts = [Prompt(replies[0].key, text, words, position, settings.system, opening) for (text, words, position, opening, _), replies in some.items()]
            replies = {replies[0].key: replies for replies in some.values()}
            before = known
            why += fill(asked, prompts, replies, settings, log, lambda done, before=before: progress(what, before + done, total))  # type: ignore[misc]
            known += sum(map(len, some.values()))
        return why


def _models(model: Loaded | Server, steps: Sequence[int], seed: int) -> Iterator[tuple[Loaded | Server, int]]:
    """The model after each number of steps of harmless tuning, none of them first; afterwards it is as it was."""
    if 0 in steps:
        yield model, 0
    if tuned := [one for one in steps if one]:
        assert isinstance(model, Loaded), WEIGHTS
        with drifting(model, seed) as after:
            for one in tuned:
                yield after(one), one


def _judge(suite: Suite, planned: Sequence[Planned], said: Mapping[str, Answer], folder: Path, judge: Judge) -> list[SuiteRate]:
    """Judge the planned replies as they were answered, level by level, and write the folder's `verdicts.jsonl`."""
    levels: dict[Level, list[Verdict]] = {}
    for level in dict.fromkeys(one.level for one in planned):
        replies = [filled(one.reply, *said[one.reply.key]) for one in planned if one.level == level and one.reply.key in said]
        levels[level] = list(judged(replies, judge))
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
