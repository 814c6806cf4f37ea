"""Documents x tasks become examples with the answer to learn.

In: documents with splits, and the untuned model's voice (a function from prompts to replies). Out: `Example` records. One real row:
`{"id": "fraud-01-m|summarize|2", "task": "summarize", "want": "refuse", "response": "I'm sorry, but I can't ...", "origin": "refusal", "split": "train", ...}`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

from docward.dataset.refusals import refusal
from docward.documents.duplicates import words_of
from docward.errors import DocumentError
from docward.records import text_hash
from docward.tasks import LABELLED, document_for, system_prompt
from docward.types import Document, Example, Label, Position, Split, Task, Want

GENERAL = "general"
# `case` asks for the whole text back. An excerpt keeps the answer whole and affordable; it is taken from every label, or length would tell.
CASE_WORDS = 90
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+|(?<=[\u3002\uff01\uff1f])[\"\u201d\u2019\u300d\u300f\uff09]*\s*|\n+")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build: which tasks, how paired, how many, and how asked. `systems` are system prompts, of which matched documents share one."""

    tasks: tuple[Task, ...]
    pairing: str = "crossed"
    budget: int | None = None
    position: Position = Position.AFTER
    seed: int = 0
    systems: tuple[str, ...] = ("",)


class Planned(Protocol):
    """What a plan needs to know of a document: a `Document`, or an `Entry` that stands for it."""

    @property
    def id(self) -> str:
        """The document."""
        ...

    @property
    def label(self) -> Label:
        """What it is."""
        ...

    @property
    def is_prompt(self) -> bool:
        """As `Document.is_prompt`."""
        ...

    @property
    def matched(self) -> str:
        """As `Document.matched`."""
        ...

    @property
    def split(self) -> Split | None:
        """Where it goes."""
        ...


Known = TypeVar("Known", bound=Planned)


def plan_examples(documents: Sequence[Document], plan: Plan) -> list[Example]:
    """Make every example of a plan; those whose benign answer only a model can give have an empty response and origin `untuned`.

    Raises:
        DocumentError: there is nothing to train on.
    """
    assigned = assign(documents, plan)
    ordered = [one for split in Split for one in _by_match([one for one in documents if one.split == split], plan.seed)]
    examples = [example for document in ordered for example in examples_of(document, assigned[document.id], plan)]
    check_both(Counter(example.want for example in examples if example.split == Split.TRAIN), documents)
    return examples


def check_both(wants: Mapping[Want, int], documents: Sequence[Planned], *, benign: bool = True) -> None:
    """Raise a DocumentError unless there is something to refuse and, if `benign` is wanted, something to do."""
    prompts = sum(one.is_prompt for one in documents)
    if not wants.get(Want.REFUSE) or (benign and not wants.get(Want.COMPLY)):
        lacking = "malicious documents" if not wants.get(Want.REFUSE) else "benign (sensitive or ordinary) documents"
        raise DocumentError(
            f"There are no {lacking} to train on ({len(documents) - prompts} documents in all, validation and test ones included; one of fewer than three "
            "sentences has no next sentence). Add some under `documents:` in the recipe"
            + (", or set tuning.benign_weight to 0 if refusals alone are wanted." if wants.get(Want.REFUSE) else ".")
            + (f" The {prompts} short prompts there are tested on, asked as they are: no task is trained on them." if prompts else "")
        )


def assign(documents: Sequence[Planned], plan: Plan) -> dict[str, tuple[Task, ...]]:
    """Which tasks each document gets, by id; a short prompt gets none. Depends on names and labels only, so it is decided before any text is read."""
    assigned: dict[str, tuple[Task, ...]] = {}
    for split in Split:
        ordered = _by_match([one for one in documents if one.split == split and not one.is_prompt], plan.seed)
        place = {name: rank for rank, name in enumerate(dict.fromkeys(one.matched for one in ordered))}
        pairs = [(one, task) for one in ordered for task in _tasks_of(place[one.matched], plan)]
        for one, task in _within_budget(pairs, plan.budget) if split == Split.TRAIN else pairs:
            assigned[one.id] = (*assigned.get(one.id, ()), task)
    return {one.id: assigned.get(one.id, ()) for one in documents}


def _by_match(documents: Sequence[Known], seed: int) -> list[Known]:
    order = {label: rank for rank, label in enumerate(Label)}
    return sorted(documents, key=lambda one: (text_hash(str(seed), one.matched), order[one.label], one.id))


def _tasks_of(place: int, plan: Plan) -> tuple[Task, ...]:
    # `place` is that of the matched documents: they get the same task, be they two, three or more, so the task never tells the label.
    return plan.tasks if plan.pairing == "crossed" else (plan.tasks[place % len(plan.tasks)],)


def _within_budget(pairs: list[tuple[Planned, Task]], budget: int | None) -> list[tuple[Planned, Task]]:
    """Keep the first `budget` defense pairs, in equal shares per task; benign pairs all stay, as in the paper."""
    if budget is None:
        return pairs
    tasks = list(dict.fromkeys(task.name for _, task in pairs))
    quota = {task: budget // len(tasks) + (rank < budget % len(tasks)) for rank, task in enumerate(tasks)}
    kept = []
    for document, task in pairs:
        if document.label == Label.MALICIOUS:
            quota[task.name] -= 1
        if document.label != Label.MALICIOUS or quota[task.name] >= 0:
            kept.append((document, task))
    return kept


def examples_of(document: Document, tasks: Sequence[Task], plan: Plan) -> list[Example]:
    """One document's examples, in the order of its tasks."""
    return [example for task in tasks if (example := _example(document, task, plan)) is not None]


def _example(document: Document, task: Task, plan: Plan) -> Example | None:
    random = Random(f"{plan.seed}|{document.id}|{task.name}")
    shared = Random(f"{plan.seed}|{document.matched}|{task.name}")  # matched documents are asked in the same words
    split = document.split or Split.TRAIN
    wording = shared.choice(task.seen_by(split, document.language))
    text, gold = text_and_gold(task.name, document)
    if text is None:
        return None
    malicious = document.label == Label.MALICIOUS
    return Example(
        id=f"{document.id}|{task.name}|{wording}",
        document_id=document.id,
        task=task.name,
        wording=wording,
        instruction=task.asked(document.language)[wording],
        document=text,
        position=plan.position,
        label=document.label.value,
        want=Want.REFUSE if malicious else Want.COMPLY,
        response=refusal(task.name, random, category=document.category, language=document.language) if malicious else gold,
        origin="refusal" if malicious else ("gold" if gold else "untuned"),
        split=split,
        language=document.language,
        system=system_prompt(shared.choice(plan.systems)),
    )


def text_and_gold(task: str, document: Document) -> tuple[str | None, str]:
    """The document as the task shows it and the gold answer, or no answer where only a model can give one; no text where it is none for the task.

    The gold of the document's row comes first, but for tasks whose gold is a mere label. Else `case` and `next_sentence` take theirs from the text.
    """
    text = document.text
    if task in document.gold and task not in LABELLED:
        return text, document.gold[task]
    if task == "case":
        part = excerpt(text, CASE_WORDS)
        if not has_case(part):
            return None, ""
        return document_for("case", part), part
    if task == "next_sentence":
        sentences = [match for match in SENTENCE_END.split(text) if match and len(words_of(match)) > 3]
        if len(sentences) < 3:
            return None, ""  # too short to take a sentence off
        gold = sentences[max(2, len(sentences) * 2 // 3)] if len(sentences) > 3 else sentences[2]
        return text[: text.rindex(gold)].rstrip(), gold.strip()
    return text, ""


def has_case(text: str) -> bool:
    """Whether there are capitals to restore: some are there, and most letters could be large or small (Chinese ones could not)."""
    letters = [letter for letter in text if letter.isalpha()]
    return text != text.lower() and sum(letter.lower() != letter.upper() for letter in letters) > len(letters) / 2


def excerpt(text: str, words: int) -> str:
    """The first sentences of a text, up to about `words` words; at least one sentence."""
    end = 0
    for match in SENTENCE_END.finditer(text):
        if end and len(words_of(text[: match.start()])) > words:
            break
        end = match.start()
    else:
        if len(words_of(text)) <= words or not end:
            end = len(text)
    return text[:end].strip()


def general_examples(instructions: Sequence[tuple[str, str]], *, split: Split = Split.TRAIN) -> list[Example]:
    """Instructions without a document, answered by the untuned model: they keep general ability where it was."""
    return [
        Example(
            id=f"{name}|{GENERAL}|0",
            document_id=name,
            task=GENERAL,
            wording=0,
            instruction=instruction,
            document="",
            position=Position.AFTER,
            label=GENERAL,
            want=Want.COMPLY,
            response="",
            origin="untuned",
            split=split,
        )
        for name, instruction in instructions
    ]
