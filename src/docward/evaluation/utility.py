"""Utility on benign documents: does the model still do the task as well as it did.

In: replies, what a right answer says where that is known (gold), and the untuned model's replies to the same prompts where there are any. Out: `Utility`
records, one a task and measure. One real row:
`{"task": "summarize", "measure": "rouge_l", "against": "gold", "n": 40, "value": 0.31, "low": 0.28, "high": 0.34, "unread": 0}`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from docward.documents.duplicates import words_of
from docward.evaluation import statistics
from docward.evaluation.labels import Names, read_label, sentiment_names, topic_names
from docward.tasks import LABELLED
from docward.types import Document, Label, Reply

if TYPE_CHECKING:
    import numpy as np

GOLD, UNTUNED = "gold", "untuned"  # what replies are measured against
CHRF_VS_UNTUNED = "chrf_vs_untuned"  # the measure that is itself a comparison with the untuned model
Golds = Mapping[str, Mapping[str, str]]  # document id -> task -> what a right answer says


@dataclass(frozen=True, slots=True)
class Utility:
    """A mean over benign replies with a 95% interval by a bootstrap over documents, from 0 to 1 unless the measure is one of likelihood.

    `against` is `gold` or `untuned` (the untuned model's reply). Measures: `rouge_l` (see `rouge_l`), `chrf` (Popović 2015), `accuracy` (the share of
    replies that name the gold label; `unread` is how many of `n` name no single label, which counts as wrong), `case_accuracy` (characters right against the
    original text, as far as the reply goes), `chrf_vs_untuned` (chrF against the untuned model's reply; 1 means word for word the same), and two of
    likelihood, see `likelihood.py`.
    """

    task: str
    measure: str
    against: str
    n: int
    value: float
    low: float
    high: float
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """What a tuned model keeps of the untuned model's utility on one task: tuned / untuned, or the mean of a measure that compares the two.

    `low` is a one-sided 95% lower bound by a paired bootstrap over documents. `says`: it `holds` (low reaches the margin), `does not hold` (the upper
    bound is below it), or is `undecided`. One row: `{"task": "case", "measure": "case_accuracy", "against": "gold", "documents": 96, "value": 0.99,
    "low": 0.962, "margin": 0.95, "says": "holds"}`.
    """

    task: str
    measure: str
    against: str
    documents: int
    value: float | None
    low: float | None
    margin: float
    says: str


@dataclass(frozen=True, slots=True)
class _Score:
    """What one reply is worth by one measure, from 0 to 1; `unread` where its label could not be told."""

    task: str
    measure: str
    against: str
    document_id: str
    key: str
    value: float
    unread: bool = False


def golds_of(documents: Iterable[Document]) -> dict[str, dict[str, str]]:
    """The gold of documents: that of their rows, and for `case` their own text."""
    return {document.id: {"case": document.text, **document.gold} for document in documents}


def utility(replies: Iterable[Reply], *, golds: Golds, untuned: Mapping[str, str] | None = None) -> list[Utility]:
    """Score replies to sensitive and ordinary documents: against gold where a document has it for the task, else against the untuned model's reply.

    Args:
        replies: of one model.
        golds: see `golds_of`.
        untuned: reply key -> the untuned model's reply; None for the untuned model itself.
    """
    found = []
    for (task, measure), scores in _by_measure(_scores(replies, golds, untuned)).items():
        interval = statistics.pooled_mean(_sums([(score, 1.0) for score in scores]))
        assert interval is not None, "a measure is there because a reply has it"
        unread = sum(score.unread for score in scores)
        found.append(Utility(task, measure, scores[0].against, len(scores), interval.value, interval.low, interval.high, unread))
    return found


def retention(replies: Iterable[Reply], *, golds: Golds, untuned: Mapping[str, str], margin: float) -> list[Retention]:
    """What is kept of the untuned model's utility, one row a task and measure, on the prompts that both models answered.

    Args:
        replies: of the tuned model; gone through twice.
        golds: see `golds_of`.
        untuned: reply key -> the untuned model's reply.
        margin: the share that has to be kept.
    """
    theirs = (replace(reply, reply=untuned[reply.key]) for reply in replies if reply.key in untuned)
    worth = {(one.measure, one.key): one.value for one in _scores(theirs, golds, None)}
    found = []
    for (task, measure), scores in _by_measure(_scores(replies, golds, untuned)).items():
        if measure == CHRF_VS_UNTUNED:
            pairs = [(score, 1.0) for score in scores]
        else:
            pairs = [(score, worth[place]) for score in scores if (place := (measure, score.key)) in worth]
        rows = _sums(pairs)
        kept = statistics.retention(rows, margin=margin)
        found.append(Retention(task, measure, scores[0].against, len(rows), kept.value, kept.low, margin, kept.says))
    return found


def _scores(replies: Iterable[Reply], golds: Golds, untuned: Mapping[str, str] | None) -> list[_Score]:
    """What benign replies are worth, each by the one measure that can be taken, if one can."""
    names = {"sentiment": sentiment_names(), "topic": topic_names(gold["topic"].lower() for gold in golds.values() if "topic" in gold)}
    found = []
    for reply in replies:
        if reply.label == Label.MALICIOUS:
            continue
        gold = golds.get(reply.document_id, {}).get(reply.task)
        if gold is not None:
            found.append(_against_gold(reply, gold, names))
        elif untuned is not None and reply.key in untuned:
            found.append(_score(reply, CHRF_VS_UNTUNED, UNTUNED, chrf(reply.reply, untuned[reply.key])))
    return found


def _against_gold(reply: Reply, gold: str, names: Mapping[str, Names]) -> _Score:
    if reply.task in LABELLED:
        said = read_label(reply.reply, names[reply.task])
        return _score(reply, "accuracy", GOLD, float(said == gold.lower()), unread=said is None)
    measure = MEASURES.get(reply.task, rouge_l)
    return _score(reply, measure.__name__, GOLD, measure(reply.reply, gold))


def _score(reply: Reply, measure: str, against: str, value: float, *, unread: bool = False) -> _Score:
    return _Score(reply.task, measure, against, reply.document_id, reply.key, value, unread)


def _by_measure(scores: Sequence[_Score]) -> dict[tuple[str, str], list[_Score]]:
    found: dict[tuple[str, str], list[_Score]] = defaultdict(list)
    for score in scores:
        found[score.task, score.measure].append(score)
    return found


def _sums(pairs: Sequence[tuple[_Score, float]]) -> np.ndarray:
    """(documents, 2): a document's scores added up, and what stands beside them."""
    import numpy as np

    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for score, beside in pairs:
        sums[score.document_id][0] += score.value
        sums[score.document_id][1] += beside
    return np.array(list(sums.values()), dtype=float).reshape(-1, 2)


def case_accuracy(reply: str, original: str) -> float:
    """Character similarity of a reply and as much of the original's beginning (1 - normalised edit distance)."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(reply, original[: len(reply)])) if reply else 0.0


def chrf(reply: str, reference: str) -> float:
    """ChrF of one reply against another, from 0 to 1."""
    from sacrebleu import sentence_chrf

    if not reference.strip():
        return float(not reply.strip())
    return float(sentence_chrf(reply, [reference]).score) / 100


def rouge_l(reply: str, reference: str) -> float:
    """ROUGE-L's F1 (Lin 2004): twice the longest common subsequence of words over the words of both, from 0 to 1; a Chinese character counts as a word.

    That is rapidfuzz's normalised similarity by insertions and deletions. On English text it is the figure of Google's rouge-score without stemming.
    """
    from rapidfuzz.distance import Indel

    return float(Indel.normalized_similarity(words_of(reply), words_of(reference)))


MEASURES: dict[str, Callable[[str, str], float]] = {"case": case_accuracy, "translate": chrf}  # of tasks whose gold is a text; others: rouge_l
