"""The surface baseline: how far length, opener, punctuation, layout and function words alone tell the label.

In: documents. Out: its ranking (AUC, cross-validated by triple) and its verdicts on test documents, which stand beside every model's: a defended model
must beat it. One real row: `{"auc": 0.56, "low": 0.46, "high": 0.66, "bag_of_words_auc": 0.71}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from docward.types import Document, Label

if TYPE_CHECKING:
    import numpy as np

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """the a an and or but if then so as of to in on at by for from with about into over after before is are was were be been have has had do does did
        will would can could should may might must not no i you he she it we they me him her us them my your his its our their this that these those who
        what which when where why how all any some more most other only just very""",
    )
)
ANSWER_OPENER = re.compile(
    r"^\W*((sure|certainly|of course|here('|\u2019)?s|here (is|are))\b|title:|1[.)]|step 1|there are (several|many|a few)|to \w+ )", re.IGNORECASE
)
DRAWS = 400


def opens_like_an_answer(text: str) -> bool:
    """Whether a document opens as a model's answer does ("Sure, here is", "Title:", "1.")."""
    return bool(ANSWER_OPENER.match(text))


def surface_features(text: str) -> list[float]:
    """Numbers that know nothing of the content: length, opener, punctuation, layout, function words (shares of all words)."""
    words = re.findall(r"\w+(?:['\u2019]\w+)?", text.lower())
    many, lines = max(1, len(words)), text.split("\n")
    counts = dict.fromkeys(FUNCTION_WORDS, 0)
    for word in words:
        if word in counts:
            counts[word] += 1
    marks = [text.count(mark) / many for mark in ",.;:!?-()'\"\u2019\u201c"]
    layout = [
        len(lines) / many,
        sum(bool(re.match(r"\s*(\d+[.)]|[-*\u2022])", line)) for line in lines) / len(lines),
        sum(character.isdigit() for character in text) / many,
    ]
    shape = [many / 100, sum(map(len, words)) / many, sum(character.isupper() for character in text) / many, float(opens_like_an_answer(text))]
    return [*shape, *marks, *layout, *(100 * counts[word] / many for word in sorted(FUNCTION_WORDS))]


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))


def surface_auc(documents: Sequence[Document], *, seed: int) -> dict[str, float | None]:
    """AUC of malicious against sensitive, cross-validated by triple, with a 95% document bootstrap interval; a bag of words beside it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pair = [document for document in documents if document.label in (Label.MALICIOUS, Label.SENSITIVE)]
    groups = len({document.triple or document.id for document in pair})
    if min(sum(document.label == label for document in pair) for label in (Label.MALICIOUS, Label.SENSITIVE)) < 10 or groups < 10:
        return {"auc": None, "low": None, "high": None, "bag_of_words_auc": None}
    truth, scores = _cross_validated(pair, _classifier(), [surface_features(document.text) for document in pair])
    words = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=2000))
    _, word_scores = _cross_validated(pair, words, [document.text for document in pair])
    low, high = _auc_interval(truth, scores, seed)
    return {"auc": _auc(truth, scores), "low": low, "high": high, "bag_of_words_auc": _auc(truth, word_scores)}


def _cross_validated(documents: Sequence[Document], model: Any, features: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np
    from sklearn.model_selection import GroupKFold, cross_val_predict

    truth = np.array([document.label == Label.MALICIOUS for document in documents])
    groups = [document.triple or document.id for document in documents]
    return truth, cross_val_predict(model, features, truth, groups=groups, cv=GroupKFold(5), method="decision_function")


def _auc(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return round(float(roc_auc_score(truth, scores)), 3)


def _auc_interval(truth: np.ndarray, scores: np.ndarray, seed: int) -> tuple[float, float]:
    import numpy as np

    random = np.random.default_rng(seed)
    draws = [random.integers(0, len(truth), len(truth)) for _ in range(DRAWS)]
    low, high = np.quantile([_auc(truth[draw], scores[draw]) for draw in draws if 0 < truth[draw].sum() < len(draw)], [0.025, 0.975])
    return round(float(low), 3), round(float(high), 3)


def surface_refuses(train: Sequence[Document], test: Sequence[Document]) -> dict[str, bool]:
    """Fit malicious against all others on the training documents and say, by id, which test documents it would refuse."""
    labels = [document.label == Label.MALICIOUS for document in train]
    if len(set(labels)) < 2 or not test:
        return {}
    model = _classifier().set_params(logisticregression__class_weight="balanced").fit([surface_features(document.text) for document in train], labels)
    return dict(zip((document.id for document in test), map(bool, model.predict([surface_features(document.text) for document in test])), strict=True))
