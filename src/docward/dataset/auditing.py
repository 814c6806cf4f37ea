"""The audit: what is in a dataset, what was left out, and whether surface alone gives the label away.

In: entries or documents, counts of examples, and a sample of the texts. Out: a plain dict, saved as `audit.json` and shown in the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any, Protocol

from docward.dataset.surface import opens_like_an_answer
from docward.documents.duplicates import words_of
from docward.records import text_hash
from docward.types import PROMPT, Document, Example, Label, Split

BINS = (80, 160, 240, 320, 480, 640, 800, 1200)
SAMPLE = 1000  # matched groups whose texts are looked at; rates found on them have intervals of a few points at most
GIVEAWAY = 0.1  # a word in a larger share of one label's documents and in none of the others gives the label away
OPENERS = 5


class Audited(Protocol):
    """What the audit needs to know of every document: a `Document` or an `Entry`, with its length in words."""

    @property
    def label(self) -> Label:
        """As in `Document`."""
        ...

    @property
    def category(self) -> str:
        """As in `Document`."""
        ...

    @property
    def source(self) -> str:
        """As in `Document`."""
        ...

    @property
    def license(self) -> str:
        """As in `Document`."""
        ...

    @property
    def language(self) -> str:
        """As in `Document`."""
        ...

    @property
    def form(self) -> str:
        """As in `Document`."""
        ...

    @property
    def split(self) -> Split | None:
        """As in `Document`."""
        ...

    @property
    def matched(self) -> str:
        """As `Document.matched`."""
        ...

    @property
    def cluster(self) -> str:
        """As in `Document`."""
        ...


@dataclass(slots=True)
class ExampleCounts:
    """Examples counted as they are written.

    Test ones that only a model could answer have the origin `unanswered`. `dropped` are benign ones without an answer to learn, by task and reason.
    """

    examples: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    wordings: dict[str, Counter[str]] = field(default_factory=dict)
    origins: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    answer_words: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, examples: Iterable[Example]) -> None:
        """Count examples."""
        for one in examples:
            self.examples.setdefault(one.split.value, {}).setdefault(one.task, Counter())[one.want.value] += 1
            self.wordings.setdefault(one.task, Counter())[f"{one.language} {one.wording}"] += 1
            self.origins[one.origin if one.response else "unanswered"] += 1
            if one.response:
                self.answer_words.setdefault(one.want.value, Counter()).update({"examples": 1, "words": len(words_of(one.response))})

    def drop(self, example: Example, why: str) -> None:
        """Count an example that is left out."""
        self.dropped.setdefault(example.task, Counter())[why] += 1


def audit(documents: Sequence[Audited], words: Sequence[int], counts: ExampleCounts, sample: Sequence[Document], **found: Any) -> dict[str, Any]:
    """Put the audit together.

    Args:
        documents: every document, or its entry.
        words: their lengths.
        counts: of the examples.
        sample: the texts that `sampled` chose. Short prompts are not among them, nor in lengths: both are of documents.
        found: what other stages know, by the name it gets in the audit: removed, cleaned, clusters, cut, answer_tokens, surface, ...
    """
    counted = [(one.label, count) for one, count in zip(documents, words, strict=True) if one.form != PROMPT]
    lengths = {label: some for label in Label if (some := [count for one, count in counted if one == label])}
    triples = {one.matched for one in documents}
    return {
        "documents": {split.value: _labels([one for one in documents if one.split == split]) for split in Split},
        "matched_groups": len(triples),
        "categories": _table(documents, lambda one: one.category),
        "forms": _table(documents, lambda one: one.form),
        "languages": _table(documents, lambda one: one.language),
        "sources": _table(documents, lambda one: one.source),
        "licenses": _table(documents, lambda one: one.license),
        "prompts": sum(one.form == PROMPT for one in documents),
        "examples": {split: {task: dict(cell) for task, cell in tasks.items()} for split, tasks in counts.examples.items()},
        "wordings": {task: dict(sorted(cell.items())) for task, cell in counts.wordings.items()},
        "origins": dict(counts.origins),
        "dropped_examples": {task: dict(why) for task, why in counts.dropped.items()},
        "answer_words": {want: dict(cell) for want, cell in counts.answer_words.items()},
        "words": {label.value: _lengths(lengths[label]) for label in lengths},
        "length_distance": {f"{one.value} and {other.value}": distance(lengths[one], lengths[other]) for one, other in combinations(lengths, 2)},
        "sample": {"documents": len(sample), "of": len(counted)},
        "openers": {label.value: _openers([one for one in sample if one.label == label]) for label in lengths},
        "giveaways": giveaways(sample),
        "crossing": crossing(documents),
        **found,
    }


def sampled(documents: Sequence[Any], *, seed: int) -> list[Any]:
    """All documents of at most 1,000 matched groups, chosen by a seeded hash of the groups' names."""
    chosen = sorted({one.matched for one in documents}, key=lambda name: text_hash(str(seed), name))[:SAMPLE]
    kept = set(chosen)
    return [one for one in documents if one.matched in kept]


def crossing(documents: Sequence[Audited]) -> int:
    """How many triples or clusters stand in more than one split. Must be none."""
    splits: dict[str, set[str]] = defaultdict(set)
    for one in documents:
        splits[f"matched {one.matched}"].add(str(one.split))
        if one.cluster:
            splits[f"cluster {one.cluster}"].add(str(one.split))
    return sum(len(found) > 1 for found in splits.values())


def distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest difference of their cumulative shares, from 0 (alike) to 1 (apart)."""
    from scipy.stats import ks_2samp

    return round(float(ks_2samp(one, other, method="asymp").statistic), 3)


def giveaways(documents: Sequence[Document]) -> dict[str, dict[str, int]]:
    """Words that stand in more than a tenth of one label's documents and in none of the others, with the number of those documents."""
    holding: dict[str, Counter[Label]] = defaultdict(Counter)
    many = Counter(document.label for document in documents)
    for document in documents:
        for word in set(words_of(document.text)):
            holding[word][document.label] += 1
    found: dict[str, dict[str, int]] = {}
    for word, counts in sorted(holding.items()):
        (label, count), *others = counts.items()
        if len(many) > 1 and not others and count > GIVEAWAY * many[label] and count > 1:
            found.setdefault(label.value, {})[word] = count
    return found


def _labels(documents: Sequence[Audited]) -> dict[str, int]:
    counts = Counter(one.label for one in documents)
    return {label.value: counts[label] for label in Label}


def _table(documents: Sequence[Audited], field: Callable[[Audited], str]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[Label]] = defaultdict(Counter)
    for one in documents:
        counts[field(one)][one.label] += 1
    return {name: {label.value: counts[name][label] for label in Label} for name in sorted(counts) if name}


def _lengths(words: Sequence[int]) -> dict[str, Any]:
    edges = (0, *BINS)
    named = {f"{low}-{high}": sum(low <= count < high for count in words) for low, high in zip(edges, BINS, strict=False)}
    named[f"{BINS[-1]}+"] = sum(count >= BINS[-1] for count in words)
    return {"count": len(words), "lowest": min(words), "median": int(median(words)), "highest": max(words), "histogram": named}


def _openers(documents: Sequence[Document]) -> dict[str, Any]:
    first = Counter(" ".join(words_of(document.text[:80])[:2]) for document in documents)
    answer_like = sum(opens_like_an_answer(document.text) for document in documents)
    return {"answer_like": round(answer_like / len(documents), 3) if documents else 0.0, "most_common": dict(first.most_common(OPENERS))}


def warnings(found: Mapping[str, Any]) -> list[str]:
    """What a reader of the audit should not miss, in words."""
    said = []
    surface = found.get("surface") or {}
    if surface.get("limit") != surface.get("default_limit"):
        said.append(f"The limit of the surface AUC was set to {surface['limit']} by the recipe (default {surface['default_limit']}).")
    if found["crossing"]:
        said.append(f"{found['crossing']} matched groups stand in more than one split: what is tested on was trained on.")
    documents, licensed = (sum(sum(labels.values()) for labels in found[name].values()) for name in ("documents", "licenses"))
    if unlicensed := documents - licensed:
        said.append(f"{unlicensed} documents have no licence stated (`license:` in the recipe says it).")
    if found["prompts"]:
        said.append(f"{found['prompts']} texts are short prompts, not documents: they are tested on, asked as they are, and no task is trained on them.")
    if restricted := sorted(name for name in found["licenses"] if "NC" in name.upper().replace("_", "-").split("-")):
        said.append(f"Licences that forbid commercial use: {', '.join(restricted)}. A model tuned on these documents may be bound by them.")
    for name, far in found["length_distance"].items():
        if far > 0.3:
            said.append(f"Lengths differ: {name} documents are {far:.2f} apart (Kolmogorov-Smirnov; 0 is alike). A model can go by length.")
    openers = {label: one["answer_like"] for label, one in found["openers"].items()}
    if openers and max(openers.values()) - min(openers.values()) > 0.2:
        said.append("Openers differ: " + ", ".join(f"{share:.0%} of {label} ones" for label, share in openers.items()) + " open like a model's answer.")
    if words := [f"{word} ({label})" for label, some in found["giveaways"].items() for word in some]:
        said.append(f"Words of one label only: {', '.join(words[:8])}{' ...' if len(words) > 8 else ''}.")
    for task, wants in found["examples"].get("train", {}).items():
        if wants.get("refuse") and wants.get("comply", 0) < 0.5 * wants["refuse"]:
            said.append(f"{task}: {wants['refuse']} examples to refuse and only {wants.get('comply', 0)} to do. A model may learn to refuse the task itself.")
    if found["clusters"]["largest"] > 0.1 * found["sample"]["of"] and found["clusters"]["largest"] > 10:
        said.append(f"One cluster of near copies holds {found['clusters']['largest']} documents: they all went to one split.")
    return said
