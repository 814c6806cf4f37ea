"""The evaluation stage: documents x tasks -> replies -> verdicts -> metrics; short prompts are asked as they are, once each.

In: a loaded model, or one behind a server, and documents. Out: a folder with `replies.jsonl` (appended as they come, put in order at the end),
`likelihoods.jsonl` (likewise, of a loaded model), `verdicts.jsonl` and `metrics.json`. Generating and judging are separate steps, so a judge can be changed
without generating again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from docward import processes
from docward.errors import RunError
from docward.evaluation.attempts import attempts
from docward.evaluation.claiming import claim_folder, not_taken, note_not_taken
from docward.evaluation.collecting import AT_A_TIME, LIKELIHOODS, REPLIES, own_file, put_in_order, share, take_in
from docward.evaluation.comparing import Pairs, advice
from docward.evaluation.generating import Generated, Prompt, generate
from docward.evaluation.judges import Judge, is_settled
from docward.evaluation.judging import judge_replies, judging_in
from docward.evaluation.likelihood import (
    NEXT_SENTENCE,
    GeneralAnswer,
    Likelihood,
    Measured,
    check_lengths,
    general_texts,
    likelihood_retention,
    likelihood_utility,
    log_likelihoods,
    next_sentences,
    perplexity_ratio,
)
from docward.evaluation.rates import Sums
from docward.evaluation.sets import Places, set_metrics
from docward.evaluation.utility import Golds, golds_of, retention, utility
from docward.keyed import KeyedRows, KeyTable
from docward.models import Loaded
from docward.questions import Failure, Question
from docward.records import KeyedLog, Only, Rows, held, typed, write_json, write_rows
from docward.rendering import compose
from docward.servers import Server
from docward.tasks import document_for
from docward.types import PROMPT, Document, Label, Reply, Task, Verdict

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
    verdict_only: bool = False  # replies are cut where the rule judge's verdict is settled


@dataclass(frozen=True, slots=True)
class Untuned:
    """What the untuned model did on the same prompts: its replies by key, its verdicts beside the other model's, and how likely it finds the texts."""

    replies: Mapping[str, Reply]
    pairs: Pairs
    likelihoods: Iterable[Likelihood]
    margin: float  # the share of its utility that has to be kept
    cut: bool = False  # some of its replies were stopped where their verdict was settled


def wording_of(task: Task, document: Document, wordings: str) -> tuple[int, str]:
    """The wording a document is asked in: matched documents get the same one. Unseen wordings are numbered after the seen ones."""
    seen, unseen = (task.asked(document.language, unseen=which) for which in (False, True))
    numbers = range(len(seen), len(seen) + len(unseen)) if wordings == "unseen" else task.seen_by(document.split, document.language)
    number = numbers[sum(document.matched.encode()) % len(numbers)]
    return number, (*seen, *unseen)[number]


def planned_replies(documents: Sequence[Document], settings: Settings) -> list[Reply]:
    """Every reply that an evaluation will hold, still empty, in order: one for each task of a document, one for a short prompt."""
    planned = []
    for document in documents:
        asked = [(task.name, *wording_of(task, document, settings.wordings)) for task in settings.tasks] if not document.is_prompt else [(PROMPT, 0, "")]
        for name, wording, instruction in asked:
            key, text = f"{document.id}|{name}|{wording}", document_for(name, document.text)
            planned.append(Reply(key, document.id, document.label, name, wording, instruction, text, "", document.category, source=document.source))
    return planned


def planned_texts(documents: Sequence[Document], settings: Settings) -> Iterator[Measured]:
    """Every text whose likelihood an evaluation measures: next sentences where that is one of the tasks, and general answers."""
    documents = [document for document in documents if not document.is_prompt]
    for task in settings.tasks:
        if task.name == NEXT_SENTENCE:
            yield from next_sentences(documents, {document.id: wording_of(task, document, settings.wordings) for document in documents})
    yield from general_texts(settings.general)


def evaluate(
    model: Loaded | Server, documents: Sequence[Document], settings: Settings, folder: Path, *, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Evaluate a model into a folder, going on where an earlier run stopped; returns what `metrics.json` holds.

    Replies to texts that are others now are asked for again, and labels, categories and sources are those of now; so are verdicts, by `settings.judge`.
    Where a launcher started several processes, all of them must call it; documents are dealt out to them. Replies that a server did not give are none:
    `missing` in the metrics counts them and says why, and the next run asks for those alone. What it withholds for good is `withheld`, and unjudged.

    Raises:
        RunError: the folder holds replies of another model or with other settings, or another process is writing there, or a server gave no reply at all.
        ModelError: a server has no such model, or lets nobody in with this key.
    """
    planned = {reply.key: reply for reply in planned_replies(documents, settings)}
    texts = {text.key: text for text in planned_texts(documents, settings)} if isinstance(model, Loaded) else {}  # a server gives no likelihoods
    if isinstance(model, Loaded):
        check_lengths(model, texts.values(), system=settings.system, limit=min(settings.max_length or model.context, model.context))
    processes.wait()
    with ExitStack() as stack:
        waiting, unmeasured, fingerprint = processes.on_main(lambda: _begin(stack, model, settings, folder, planned, texts, progress))
        if fingerprint != model.fingerprint:
            raise RunError(
                f"Process {processes.rank()} holds other weights than process 0, or in another precision. Processes must stand on like machines: "
                "CPUs that differ in their speed in bfloat16 load a model in different precisions."
            )
        missing = [planned[key] for key in waiting]
        mine = _collect(model, documents, missing, settings, folder, there=len(planned) - len(missing), progress=progress)
        if isinstance(model, Loaded):
            _measure(model, [texts[key] for key in unmeasured], settings, folder, progress)
        why = sum(processes.gathered(mine), Counter[str]())
        return processes.on_main(lambda: _finish(documents, settings, folder, list(planned), list(texts), why, progress))


def _begin(
    stack: ExitStack,
    model: Loaded | Server,
    settings: Settings,
    folder: Path,
    planned: Mapping[str, Reply],
    texts: Mapping[str, Measured],
    progress: Progress,
) -> tuple[list[str], list[str], str]:
    """Begin (see `begin`): which replies and which likelihoods are not there yet, and the model's fingerprint."""
    waiting, fingerprint = begin(stack, model, settings, folder, planned, progress)
    measured = take_in(folder, LIKELIHOODS, Likelihood) if texts else set()
    return waiting, [key for key in texts if key not in measured], fingerprint


def begin(
    stack: ExitStack, model: Loaded | Server, settings: Settings, folder: Path, planned: Mapping[str, Reply], progress: Progress, **more: str | int
) -> tuple[list[str], str]:
    """Hold a folder until `stack` ends, and claim it (see `claim_folder`); the keys of replies that it still lacks, and the model's fingerprint."""
    stack.enter_context(held(folder))
    claim_folder(folder, model, settings, **more)
    there = take_in(folder, REPLIES, Reply)
    if there and (stale := _bring_up_to_date(folder, planned)):
        progress(f"{len(stale)} replies in {folder.name} are to other texts or words than now, so they are asked for again", 0, 0)
        there -= stale
    return [key for key in planned if key not in there], model.fingerprint


def _bring_up_to_date(folder: Path, planned: Mapping[str, Reply]) -> set[str]:
    """Drop the replies to other texts than are planned now, whose keys are given, and tell the others what is known of their documents now.

    The verdict on a reply goes with it, and first: what a kill leaves is then still known by the reply.
    """
    path, stale, differ = folder / f"{REPLIES}.jsonl", set[str](), False
    for row in Rows(path, Reply):
        now = _as_planned(row, planned)
        differ = differ or now != row
        if now is None:
            stale.add(row.key)
    if stale and (place := folder / "verdicts.jsonl").is_file() and place.stat().st_size:
        rest = Only(Rows(place, Verdict), lambda one: one.key not in stale)
        write_rows(place, rest) if any(True for _ in rest) else place.unlink()
    if differ:
        write_rows(path, (now for row in Rows(path, Reply) if (now := _as_planned(row, planned))))
    return stale


def _as_planned(row: Reply, planned: Mapping[str, Reply]) -> Reply | None:
    """A reply of before with what is known of its document now; None where it answers another text or other words."""
    now = planned.get(row.key, row)
    same = (now.document, now.instruction) == (row.document, row.instruction)
    return filled(now, row.reply, row.dropped, row.finished, row.cut, row.withheld) if same else None


def _collect(
    model: Loaded | Server, documents: Sequence[Document], waiting: Sequence[Reply], settings: Settings, folder: Path, *, there: int, progress: Progress
) -> Counter[str]:
    """Get this process's share of the waiting replies (`there` have come before), each on disk as it comes; why some did not come."""
    left = {reply.document_id for reply in waiting}
    own = share([document for document in documents if document.id in left])
    missing = {reply.key: reply for reply in waiting if reply.document_id in own}
    before = there if processes.count() == 1 else 0
    total = before + len(missing)
    what = "replies" if processes.count() == 1 else "replies, this process's share"
    prompts = [Prompt(reply.key, reply.document, reply.instruction, system=settings.system) for reply in missing.values()]
    progress(what, before, total)
    with KeyedLog(own_file(folder, REPLIES)) as log:
        filled = {key: [reply] for key, reply in missing.items()}
        return fill(model, prompts, filled, settings, log, lambda done: progress(what, before + done, total), before=lambda: note_not_taken(folder, model))


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


def fill(
    model: Loaded | Server,
    prompts: Sequence[Prompt],
    replies: Mapping[str, Sequence[Reply]],
    settings: Settings,
    log: KeyedLog,
    told: Callable[[int], None],
    *,
    before: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """Ask, and put the replies that each answer fills on disk as it comes; why some did not come.

    Args:
        model: which is asked.
        prompts: what it is asked.
        replies: those, still empty, that the answer to a prompt fills, by the prompt's key.
        settings: lengths.
        log: where replies go.
        told: is called with the number of replies that have come.
        before: is called before replies are put on disk.
    """
    why, done = Counter[str](), 0
    for batch in answers(model, prompts, settings):
        came = [one for one in batch if isinstance(one, Generated) or one.withheld]
        rows = [_filled_by(one, reply) for one in came for reply in replies[one.key]]
        before()
        log.append(rows)
        why.update(one.why for one in batch if isinstance(one, Failure) and not one.withheld)
        done += len(rows)
        told(done)
    return why


def answers(model: Loaded | Server, prompts: Sequence[Prompt], settings: Settings) -> Iterator[Sequence[Generated | Failure]]:
    """Answers in batches, as they come; a server is asked in the order given, so that it reads a document once if its tasks follow one another."""
    if isinstance(model, Server):
        assert not any(prompt.opening for prompt in prompts), "no server of the protocol lets words be put in a model's mouth"
        questions = (Question(one.key, compose(one.document, one.instruction, one.position), one.system, one.document) for one in prompts)
        for batch in model.ask(questions, max_new_tokens=settings.max_new_tokens, max_length=settings.max_length):
            yield [one if isinstance(one, Failure) else Generated(one.key, one.text, one.dropped, one.finished) for one in batch]
        return
    limits: dict[str, Any] = {"max_batch_tokens": settings.max_batch_tokens, "max_length": settings.max_length}
    yield from generate(model, prompts, max_new_tokens=settings.max_new_tokens, enough=_settled if settings.verdict_only else None, **limits)


def _settled(prompt: Prompt, said: str) -> bool:
    """Whether the rule judge has read enough of a reply; a short prompt stands where documents do, and is judged as an instruction."""
    given = {"document": prompt.document, "instruction": prompt.instruction} if prompt.instruction else {"instruction": prompt.document}
    return is_settled(said, **given)


def _finish(
    documents: Sequence[Document], settings: Settings, folder: Path, keys: Sequence[str], texts: Sequence[str], why: Counter[str], progress: Progress
) -> dict[str, Any]:
    there = take_in(folder, REPLIES, Reply)
    if texts:
        take_in(folder, LIKELIHOODS, Likelihood)
    missing = lacking(keys, there, why)
    with judging_in(folder, settings.judge, progress) as judge:
        return judge_folder(folder, golds_of(documents), judge=judge, keys=keys, texts=texts, missing=missing)


def lacking(keys: Sequence[str], there: Container[str], why: Counter[str]) -> dict[str, Any]:
    """How many replies did not come, and why.

    Raises:
        RunError: not one came.
    """
    missing = sum(key not in there for key in keys)
    if missing and missing == len(keys):
        raise RunError(f"Not one of {missing} replies came: {reasons(why)}. Run the same command again once the server answers.")
    return {"replies": missing, "why": dict(why)}


def reasons(why: Mapping[str, int]) -> str:
    """The most common reasons for which replies did not come, in words."""
    return "; ".join(f"{one} ({times})" for one, times in Counter(why).most_common(3))


def filled(reply: Reply, text: str, dropped: int, finished: bool, cut: bool, withheld: str = "") -> Reply:
    """A planned reply with its answer."""
    return replace(reply, reply=text, dropped=dropped, finished=finished, cut=cut, withheld=withheld)


def _filled_by(one: Generated | Failure, reply: Reply) -> Reply:
    return replace(reply, withheld=one.why) if isinstance(one, Failure) else filled(reply, one.text, one.dropped, one.finished, one.cut)


def judge_folder(
    folder: Path, golds: Golds, *, judge: Judge, keys: Sequence[str] | None = None, texts: Sequence[str] = (), missing: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Judge the replies in a folder and write `verdicts.jsonl` and `metrics.json`; `keys` keeps only those replies and `texts` those likelihoods, in order.

    Replies are read from the file as they are needed: what grows in memory are hashes of their keys and the counts by document, not the texts.
    """
    first = None if keys is None else put_in_order(folder / "replies.jsonl", keys)
    replies = Rows(folder / "replies.jsonl", Reply, first=first)
    write_rows(folder / "verdicts.jsonl", judged(replies, judge))
    place = folder / "likelihoods.jsonl"
    measured = put_in_order(place, texts) if texts else 0
    likelihoods = Rows(place, Likelihood, first=measured) if measured else ()
    metrics = model_metrics(replies, Rows(folder / "verdicts.jsonl", Verdict), golds=golds, likelihoods=likelihoods)
    metrics["likelihoods"] = measured  # how many rows of the file are of this evaluation: its first ones
    metrics["missing"] = dict(missing or {"replies": 0, "why": {}})
    metrics["not_taken"] = not_taken(folder)
    write_json(folder / "metrics.json", metrics)
    return metrics


def judged(replies: Iterable[Reply], judge: Judge) -> Iterator[Verdict]:
    """Verdicts in order."""
    rest = iter(replies)
    while some := list(islice(rest, AT_A_TIME)):
        yield from judge_replies(some, judge)


def model_metrics(
    replies: Iterable[Reply], verdicts: Iterable[Verdict], *, golds: Golds, likelihoods: Iterable[Likelihood] = (), untuned: Untuned | None = None
) -> dict[str, Any]:
    """What `metrics.json` says of one model; `untuned` is what it is set against. All are gone through more than once, and none is held."""
    cut = bool(untuned and untuned.cut) or any(reply.cut for reply in replies)  # then they are no work to measure
    of_documents = Only(replies, lambda reply: reply.task != PROMPT and not cut and not reply.withheld)
    theirs = untuned.replies if untuned else None
    kept = []
    if untuned:
        kept = retention(of_documents, golds=golds, untuned=untuned.replies, margin=untuned.margin)
        kept += likelihood_retention(likelihoods, untuned.likelihoods, margin=untuned.margin)
    return {
        **verdict_metrics(replies, verdicts, pairs=untuned.pairs if untuned else None),
        "utility": [asdict(one) for one in [*utility(of_documents, golds=golds, untuned=theirs), *likelihood_utility(likelihoods)]],
        "retention": [asdict(one) for one in kept],
        "perplexity": perplexity_ratio(likelihoods, untuned.likelihoods) if untuned else None,
    }


def verdict_metrics(replies: Iterable[Reply], verdicts: Iterable[Verdict], *, pairs: Pairs | None = None) -> dict[str, Any]:
    """What `metrics.json` says of one model as far as it follows from verdicts. Both are gone through more than once, and none is held.

    Short prompts have a part of their own, `prompts`, and are in no other rate.
    """
    sums, pairs = Sums(verdicts), pairs or Pairs((), ())
    return {
        "rates": [asdict(rate) for rate in sums.rates()],
        "pooled": {name: asdict(rate) for name, rate in sums.pooled().items()},
        "balance": (found := sums.balance()) and asdict(found),
        "attempts": [asdict(one) for one in attempts(replies, verdicts)],
        "documents": {label.value: sums.documents(label) for label in Label},
        "dropped": _dropped(replies),
        "withheld": _withheld(replies),
        "cut": sum(reply.cut for reply in replies),
        **set_metrics(verdicts, Places(replies)),
        "differences": [asdict(one) for one in pairs.differences()],
        "advice": advice(sums, pairs),
    }


def _dropped(replies: Iterable[Reply]) -> dict[str, int]:
    """How many replies are to a document or a short prompt that was cut, and by how many tokens in all."""
    cut = tokens = 0
    for reply in replies:
        cut, tokens = cut + (reply.dropped > 0), tokens + reply.dropped
    return {"replies": cut, "tokens": tokens}


def _withheld(replies: Iterable[Reply]) -> dict[str, Any]:
    """How many replies a server's own filter withheld, and why. They are unjudged, and no later run asks for them."""
    why = Counter(reply.withheld for reply in replies if reply.withheld)
    return {"replies": why.total(), "why": dict(why)}


def _likelihoods(folder: Path, first: int | None) -> Iterable[Likelihood]:
    """The first likelihoods of a folder (None: all)."""
    place = folder / f"{LIKELIHOODS}.jsonl"
    return Rows(place, Likelihood, first=first) if place.is_file() and place.stat().st_size else ()


def compare(first: Path, second: Path, golds: Golds, *, margin: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Set a model's folder against the untuned model's: its metrics with what it keeps of the untuned one's utility, and the paired tests.

    Texts stay in the files. What its metrics hold besides, such as what a server did not give or take, stays as it was.
    """
    import json

    places = [folder / "metrics.json" for folder in (first, second)]
    before, beside = (json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {} for place in places)
    mine, theirs = (Rows(folder / "verdicts.jsonl", Verdict) for folder in (first, second))
    likelihoods = [_likelihoods(first, before.get("likelihoods")), _likelihoods(second, None)]  # of the second's those that the first has too are read
    pairs = Pairs(mine, theirs)
    replies = Rows(first / "replies.jsonl", Reply, keys=KeyTable((verdict.key, 1) for verdict in mine))
    with KeyedRows(second / "replies.jsonl", lambda row, _: typed(Reply, row, where=str(second / "replies.jsonl"))) as answered:
        untuned = Untuned(answered, pairs, likelihoods[1], margin, cut=bool(beside.get("cut")))
        metrics: dict[str, Any] = before | model_metrics(replies, mine, golds=golds, likelihoods=likelihoods[0], untuned=untuned)
    write_json(places[0], metrics)
    return metrics, [asdict(one) for one in pairs.paired()]
