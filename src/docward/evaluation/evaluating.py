"""The evaluation stage: documents x tasks -> replies -> verdicts -> metrics.

In: a loaded model, or one behind a server, and documents. Out: a folder with `replies.jsonl` (appended as they come, put in order at the end),
`likelihoods.jsonl` (likewise, of a loaded model), `verdicts.jsonl` and `metrics.json`. Generating and judging are separate steps, so a judge can be changed
without generating again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from docward import processes
from docward.errors import RunError
from docward.evaluation.attempts import attempts
from docward.evaluation.collecting import AT_A_TIME, LIKELIHOODS, REPLIES, held, own_file, put_in_order, share, take_in
from docward.evaluation.generating import Generated, Prompt, generate
from docward.evaluation.judges import Judge, get_judge
from docward.evaluation.judging import judge_replies
from docward.evaluation.likelihood import (
    NEXT_SENTENCE,
    GeneralAnswer,
    Likelihood,
    Measured,
    general_texts,
    likelihood_retention,
    likelihood_utility,
    log_likelihoods,
    next_sentences,
    perplexity_ratio,
)
from docward.evaluation.rates import advice, balance, differences, paired, pooled, rates
from docward.evaluation.utility import Golds, golds_of, retention, utility
from docward.models import Loaded
from docward.records import KeyedLog, Rows, read_rows, write_json, write_rows
from docward.rendering import compose
from docward.servers import Failure, Question, Server
from docward.tasks import document_for
from docward.types import Document, Label, Reply, Task, Verdict

Progress = Callable[[str, int, int], None]  # what is going on, how much is done, of how much


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of a model under evaluation; `general` are answers whose perplexity is measured."""

    tasks: tuple[Task, ...]
    system: str = ""
    wordings: str = "seen"
    judge: str = "rules"
    max_new_tokens: int = 32
    max_batch_tokens: int = 16384
    max_length: int | None = None
    general: tuple[GeneralAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Untuned:
    """What the untuned model did on the same prompts: its replies by key, its verdicts, and how likely it finds the texts."""

    replies: Mapping[str, str]
    verdicts: Sequence[Verdict]
    likelihoods: Sequence[Likelihood]
    margin: float  # the share of its utility that has to be kept


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


def planned_texts(documents: Sequence[Document], settings: Settings) -> Iterator[Measured]:
    """Every text whose likelihood an evaluation measures: next sentences where that is one of the tasks, and general answers."""
    for task in settings.tasks:
        if task.name == NEXT_SENTENCE:
            yield from next_sentences(documents, {document.id: wording_of(task, document, settings.wordings) for document in documents})
    yield from general_texts(settings.general)


def evaluate(
    model: Loaded | Server, documents: Sequence[Document], settings: Settings, folder: Path, *, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Evaluate a model into a folder, going on where an earlier run stopped; returns what `metrics.json` holds.

    Where a launcher started several processes, all of them must call it; documents are dealt out to them. Replies that a server did not give are none:
    `missing` in the metrics counts them and says why, and the next run asks for those alone.

    Raises:
        RunError: the folder holds replies of another model or with other settings, or another process is writing there, or a server gave no reply at all.
        ModelError: a server has no such model, or lets nobody in with this key.
    """
    planned = {reply.key: reply for reply in planned_replies(documents, settings)}
    texts = {text.key: text for text in planned_texts(documents, settings)} if isinstance(model, Loaded) else {}  # a server gives no likelihoods
    processes.wait()
    with ExitStack() as stack:
        waiting, unmeasured, fingerprint = processes.on_main(lambda: _begin(stack, model, settings, folder, planned, texts))
        if fingerprint != model.fingerprint:
            raise RunError(
                f"Process {processes.rank()} holds other weights than process 0, or in another precision. Processes must stand on like machines: "
                "CPUs that differ in their speed in bfloat16 load a model in different precisions."
            )
        mine = _collect(model, documents, [planned[key] for key in waiting], settings, folder, progress)
        if isinstance(model, Loaded):
            _measure(model, [texts[key] for key in unmeasured], settings, folder, progress)
        why = sum(processes.gathered(mine), Counter[str]())
        return processes.on_main(lambda: _finish(documents, settings, folder, list(planned), list(texts), why))


def _begin(
    stack: ExitStack, model: Loaded | Server, settings: Settings, folder: Path, planned: Iterable[str], texts: Mapping[str, Measured]
) -> tuple[list[str], list[str], str]:
    """Hold the folder and claim it; which replies and which likelihoods are not there yet, and the model's fingerprint."""
    stack.enter_context(held(folder))
    claim_folder(folder, model, settings)
    there = take_in(folder, REPLIES, Reply)
    measured = take_in(folder, LIKELIHOODS, Likelihood) if texts else set()
    return [key for key in planned if key not in there], [key for key in texts if key not in measured], model.fingerprint


def _collect(
    model: Loaded | Server, documents: Sequence[Document], waiting: Sequence[Reply], settings: Settings, folder: Path, progress: Progress
) -> Counter[str]:
    """Get this process's share of the waiting replies, each on disk as it comes; why some did not come."""
    left = {reply.document_id for reply in waiting}
    own = share([document for document in documents if document.id in left])
    missing = {reply.key: reply for reply in waiting if reply.document_id in own}
    total = len(documents) * len(settings.tasks) if processes.count() == 1 else len(missing)
    done = total - len(missing)
    what = "replies" if processes.count() == 1 else "replies, this process's share"
    why: Counter[str] = Counter()
    progress(what, done, total)
    with KeyedLog(own_file(folder, REPLIES)) as log:
        for batch in _replies(model, list(missing.values()), settings):
            answers = [one for one in batch if isinstance(one, Generated)]
            log.append([_filled(missing[one.key], one.text, one.dropped, one.finished) for one in answers])
            why.update(one.why for one in batch if isinstance(one, Failure))
            done += len(answers)
            progress(what, done, total)
    return why


def _measure(loaded: Loaded, texts: Sequence[Measured], settings: Settings, folder: Path, progress: Progress) -> None:
    """Measure this process's share of the texts, each on disk as it comes."""
    if not texts:
        return
    longest_first = sorted(texts, key=lambda text: -len(text.document) - len(text.text))
    own = longest_first[processes.rank() :: processes.count()]
    limit = min(settings.max_length or loaded.context, loaded.context)
    with KeyedLog(own_file(folder, LIKELIHOODS)) as log:
        for done, one in enumerate(log_likelihoods(loaded, own, system=settings.system, limit=limit), 1):
            log.append([one])
            progress("likelihoods", done, len(own))


def _replies(model: Loaded | Server, asked: Sequence[Reply], settings: Settings) -> Iterator[Sequence[Generated | Failure]]:
    """Replies in batches, as they come; a server is asked for all tasks of a document one after another, so that it reads a document once."""
    if isinstance(model, Server):
        questions = (Question(reply.key, compose(reply.document, reply.instruction), settings.system) for reply in asked)
        for batch in model.ask(questions, max_new_tokens=settings.max_new_tokens):
            yield [one if isinstance(one, Failure) else Generated(one.key, one.text, 0, one.finished) for one in batch]
        return
    prompts = [Prompt(reply.key, reply.document, reply.instruction, system=settings.system) for reply in asked]
    limits: dict[str, Any] = {"max_batch_tokens": settings.max_batch_tokens, "max_length": settings.max_length}
    yield from generate(model, prompts, max_new_tokens=settings.max_new_tokens, **limits)


def _finish(documents: Sequence[Document], settings: Settings, folder: Path, keys: Sequence[str], texts: Sequence[str], why: Counter[str]) -> dict[str, Any]:
    there = take_in(folder, REPLIES, Reply)
    if texts:
        take_in(folder, LIKELIHOODS, Likelihood)
    missing = sum(key not in there for key in keys)
    if missing == len(keys):
        reasons = "; ".join(f"{one} ({times})" for one, times in why.most_common(3))
        raise RunError(f"Not one of {missing} replies came: {reasons}. Run the same command again once the server answers.")
    return judge_folder(folder, golds_of(documents), judge=settings.judge, keys=keys, texts=texts, missing={"replies": missing, "why": dict(why)})


def _filled(reply: Reply, text: str, dropped: int, finished: bool) -> Reply:
    return Reply(**{**asdict(reply), "label": reply.label, "reply": text, "dropped": dropped, "finished": finished})


def claim_folder(folder: Path, model: Loaded | Server, settings: Settings, **more: str | int) -> None:
    """Write down what this folder holds, or refuse if it holds something else; without a reply it holds nothing yet. `more` is part of what it holds.

    Raises:
        RunError: it holds the replies of another evaluation.
    """
    mine: dict[str, Any] = {"model": model.name, "adapter": model.adapter and str(model.adapter), "fingerprint": model.fingerprint}
    mine |= {"base_url": model.base_url} if isinstance(model, Server) else {}
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


def judge_folder(
    folder: Path, golds: Golds, *, judge: str, keys: Sequence[str] | None = None, texts: Sequence[str] = (), missing: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Judge the replies in a folder and write `verdicts.jsonl` and `metrics.json`; `keys` keeps only those replies and `texts` those likelihoods, in order.

    Replies are read from the file as they are needed: what grows in memory is their keys and the counts by document, not the texts.
    """
    first = None if keys is None else put_in_order(folder / "replies.jsonl", keys)
    replies = Rows(folder / "replies.jsonl", Reply, first=first)
    write_rows(folder / "verdicts.jsonl", _judged(replies, get_judge(judge)))
    place = folder / "likelihoods.jsonl"
    likelihoods = Rows(place, Likelihood, first=put_in_order(place, texts)) if texts else ()
    metrics = model_metrics(replies, Rows(folder / "verdicts.jsonl", Verdict), golds=golds, likelihoods=likelihoods)
    metrics["missing"] = dict(missing or {"replies": 0, "why": {}})
    write_json(folder / "metrics.json", metrics)
    return metrics


def _judged(replies: Iterable[Reply], judge: Judge) -> Iterator[Verdict]:
    rest = iter(replies)
    while some := list(islice(rest, AT_A_TIME)):
        yield from judge_replies(some, judge)


def model_metrics(
    replies: Iterable[Reply], verdicts: Iterable[Verdict], *, golds: Golds, likelihoods: Iterable[Likelihood] = (), untuned: Untuned | None = None
) -> dict[str, Any]:
    """What `metrics.json` says of one model; `untuned` is what it is set against. All are read more than once."""
    theirs = untuned.replies if untuned else None
    against = untuned.verdicts if untuned else ()
    kept = []
    if untuned:
        kept = retention(replies, golds=golds, untuned=untuned.replies, margin=untuned.margin)
        kept += likelihood_retention(likelihoods, untuned.likelihoods, margin=untuned.margin)
    return {
        "rates": [asdict(rate) for rate in rates(verdicts)],
        "pooled": {name: asdict(rate) for name, rate in pooled(verdicts).items()},
        "balance": (found := balance(verdicts)) and asdict(found),
        "attempts": [asdict(one) for one in attempts(replies, verdicts)],
        **_extent(replies),
        "utility": [asdict(one) for one in [*utility(replies, golds=golds, untuned=theirs), *likelihood_utility(likelihoods)]],
        "retention": [asdict(one) for one in kept],
        "perplexity": perplexity_ratio(likelihoods, untuned.likelihoods) if untuned else None,
        "differences": [asdict(one) for one in differences(verdicts, against)],
        "advice": advice(verdicts, against),
    }


def _extent(replies: Iterable[Reply]) -> dict[str, dict[str, int]]:
    """How many documents of each label there are, and what was cut of them."""
    labels: dict[str, Label] = {}
    cut = tokens = 0
    for reply in replies:
        labels[reply.document_id] = reply.label
        cut, tokens = cut + (reply.dropped > 0), tokens + reply.dropped
    found = Counter(labels.values())
    return {"documents": {label.value: found[label] for label in Label}, "dropped": {"replies": cut, "tokens": tokens}}


def compare(first: Path, second: Path, golds: Golds, *, margin: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Set a model's folder against the untuned model's: its metrics with what it keeps of the untuned one's utility, and the paired tests."""
    replies = [read_rows(folder / "replies.jsonl", Reply) for folder in (first, second)]
    verdicts = [read_rows(folder / "verdicts.jsonl", Verdict) for folder in (first, second)]
    likelihoods = [read_rows(place, Likelihood) if (place := folder / "likelihoods.jsonl").is_file() else [] for folder in (first, second)]
    judged = {verdict.key for verdict in verdicts[0]}
    untuned = Untuned({reply.key: reply.reply for reply in replies[1]}, verdicts[1], likelihoods[1], margin)
    mine = [reply for reply in replies[0] if reply.key in judged]
    metrics = model_metrics(mine, verdicts[0], golds=golds, likelihoods=likelihoods[0], untuned=untuned)
    write_json(first / "metrics.json", metrics)
    return metrics, [asdict(one) for one in paired(*verdicts)]
