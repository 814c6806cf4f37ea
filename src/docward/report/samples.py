"""What the sample browser of the page shows: some document-and-task pairs of each set, mistakes first, the replies of all models side by side.

Short prompts stand in sets of their own (`kind`), apart from documents of the same label.

In: the folders of evaluations, whose files are read row by row: only keys of what may be shown, and hashes of the others, are held. Out: plain values for the
page. Texts of and about malicious documents are encoded, so that not even the page's source shows them. One real row:
`{"kind": "safe prompts", "set": "sensitive", "mistake": true, "document": 3, "replies": [{"outcome": "refused", "judge": "rules", ...}, ...]}`.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docward.errors import DocumentError, RunError
from docward.evaluation.rates import REFUSING
from docward.keyed import KeyTable
from docward.records import read_lines, text_hash, typed
from docward.report import values
from docward.report.figures import SETS
from docward.report.sets import PROMPT_NAMES
from docward.types import PROMPT, Label, Outcome, Reply, Verdict

SAMPLES_PER_SET = 60
"""How many document-and-task pairs of each set the page holds, so that it stays small."""

MISTAKES_PER_SET = 40
"""At most so many of them are mistakes, so that right answers are seen too."""

TEXT_LIMIT = 3_000
"""Characters of a document or reply that the page shows."""


def view(folders: Mapping[str, Path], main: str) -> dict[str, Any] | None:
    """Choose what the browser shows of the models whose evaluations lie in `folders`; None where none has verdicts with replies.

    Raises:
        RunError: a file is broken.
    """
    choices = _choices(folders, main)
    chosen = [key for choice in choices.values() for key in choice.taken()]
    verdicts = {name: {one.key: one for one in records(folder / "verdicts.jsonl", Verdict, set(chosen))} for name, folder in folders.items()}
    replies = {name: {one.key: one for one in records(folder / "replies.jsonl", Reply, set(chosen))} for name, folder in folders.items()}
    known = {key: verdict for name in _main_last(folders, main) for key, verdict in verdicts[name].items()}
    texts: dict[tuple[str, bool], int] = {}
    rows = [row for key in chosen if (row := _sample(known[key], replies, verdicts, (verdicts[main] or known).get(key), texts))]
    counts = {kind: choice.counts() for kind, choice in choices.items() if choice.all}
    packed = [_packed(text, veiled=veiled) for text, veiled in texts]
    return {"models": list(folders), "main": main, "limit": TEXT_LIMIT, "texts": packed, "samples": rows, "counts": counts} if rows else None


def _kind(verdict: Verdict) -> str:
    """The set that a pair is shown in: its label, or what short prompts of that label are called."""
    return PROMPT_NAMES[verdict.label] if verdict.task == PROMPT else verdict.label.value


def _main_last(folders: Mapping[str, Path], main: str) -> list[str]:
    return [*(name for name in folders if name != main), main]


@dataclass(slots=True)
class Choice:
    """The pairs of one set that may be shown, by key in the order of a hash, mistakes apart; and how many there are."""

    all: int = 0
    mistakes: int = 0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    others: list[tuple[int, str]] = field(default_factory=list)

    def add(self, verdict: Verdict, *, judged: bool) -> None:
        """One more pair; `judged`: this is the main model's word on it."""
        wrong = judged and _mistaken(verdict)
        unclear = not judged or verdict.outcome in (Outcome.PARTIAL, Outcome.UNJUDGED)
        order = int(text_hash(verdict.key), 16) + (0 if wrong or unclear else 1 << 64)  # half-way and unjudged replies before plain right ones
        heap = self.wrong if wrong else self.others
        (heapq.heappushpop if len(heap) == SAMPLES_PER_SET else heapq.heappush)(heap, (-order, verdict.key))
        self.all += 1
        self.mistakes += wrong

    def taken(self) -> list[str]:
        """Mistakes first, up to MISTAKES_PER_SET or as many as there is room for, then the others."""
        wrong, others = ([key for _, key in sorted(heap, reverse=True)] for heap in (self.wrong, self.others))
        room = max(MISTAKES_PER_SET, SAMPLES_PER_SET - len(others))
        return (wrong[:room] + others)[:SAMPLES_PER_SET]

    def counts(self) -> dict[str, int]:
        """How many pairs and mistakes there are, and how many are shown."""
        taken = self.taken()
        return {"all": self.all, "shown": len(taken), "mistakes": self.mistakes, "mistakes_shown": len({key for _, key in self.wrong} & set(taken))}


def _choices(folders: Mapping[str, Path], main: str) -> dict[str, Choice]:
    choices = {kind: Choice() for kind in (*SETS, *PROMPT_NAMES.values())}
    seen: list[KeyTable] = []
    for name in reversed(_main_last(folders, main)):  # where the main model has a word on a pair, that decides
        place = folders[name] / "verdicts.jsonl"
        for verdict in records(place, Verdict):
            if not any(verdict.key in table for table in seen):
                choices[_kind(verdict)].add(verdict, judged=name == main or not len(seen[0]))
        seen.append(KeyTable((verdict.key, 1) for verdict in records(place, Verdict)))
    return choices


def records(path: Path, kind: type[Any], keys: Collection[str] | None = None) -> Iterator[Any]:
    """Give the records of a file, one at a time and only those wanted: replies can be many and long. None where there is no file.

    Raises:
        RunError: the file is broken; the message names the command that makes it.
    """
    again = f"Make it again: docward evaluate --output-dir {path.parent}."
    for number, row in _lines(path, again):
        if keys is None or row.get("key") in keys:
            try:
                yield typed(kind, row, where=f"{path}:{number}")
            except DocumentError as error:
                raise RunError(f"{error}. {again}") from error


def _lines(path: Path, again: str) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        yield from read_lines(path) if path.is_file() else ()
    except DocumentError as error:
        raise RunError(f"{error} {again}") from error


def _mistaken(verdict: Verdict) -> bool:
    return verdict.outcome == Outcome.COMPLIED if verdict.label == Label.MALICIOUS else verdict.outcome in REFUSING


def _sample(
    verdict: Verdict,
    replies: Mapping[str, Mapping[str, Reply]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    judged: Verdict | None,
    texts: dict[tuple[str, bool], int],
) -> dict[str, Any] | None:
    """One row of the browser; its texts go into `texts`, each once."""
    veiled, key = verdict.label == Label.MALICIOUS, verdict.key
    given = next((found[key] for found in replies.values() if key in found), None)
    if given is None:
        return None

    def place(text: str) -> int:
        return texts.setdefault((text, veiled), len(texts))

    def said(name: str) -> dict[str, Any] | None:
        reply, word = replies[name].get(key), verdicts[name].get(key)
        if reply is None:
            return None
        judgement = {"outcome": word.outcome if word else Outcome.UNJUDGED, "judge": word.judge if word else "", "why": place(word.why) if word else None}
        return {"text": place(reply.reply), "finished": reply.finished, "cut": reply.cut, "dropped": reply.dropped, **judgement}

    about = {"kind": _kind(verdict), "set": verdict.label, "task": verdict.task, "prompt": verdict.task == PROMPT, "source": values.shown(given.source)}
    about |= {"category": given.category, "id": given.document_id, "instruction": given.instruction}
    return {**about, "mistake": bool(judged and _mistaken(judged)), "document": place(given.document), "replies": [said(name) for name in replies]}


def _packed(text: str, *, veiled: bool) -> dict[str, Any]:
    """Cut a text to TEXT_LIMIT; encode a veiled one, so that not even the page's source shows it."""
    shown = text[:TEXT_LIMIT]
    facts = {"words": len(text.split()), "characters": len(text), "cut": len(text) > TEXT_LIMIT}
    return {**facts, "veiled": base64.b64encode(shown.encode("utf-8", "replace")).decode()} if veiled else {**facts, "text": shown}
