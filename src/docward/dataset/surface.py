"""The surface baseline: how far length, opener, punctuation, layout and function words alone tell the label.

In: documents. Out: its ranking (AUC, cross-validated by triple) and its verdicts on test documents, which stand beside every model's: a defended model
must beat it. One real row: `{"auc": 0.56, "low": 0.46, "high": 0.66, "bag_of_words_auc": 0.71}`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from docward.types import Document, Label

if TYPE_CHECKING:
    import numpy as np

# By language, so that German "die" and Spanish "con" are not taken for the English words of that spelling.
FUNCTION_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": """the a an and or but if then so as of to in on at by for from with about into over after before is are was were be been have has had do does
            did will would can could should may might must not no i you he she it we they me him her us them my your his its our their this that these those
            who what which when where why how all any some more most other only just very""",
        "de": """der die das den dem und oder aber wenn weil dass ist sind war waren wird werden kann soll muss hat nicht kein ich du er sie es wir ihr ein eine
            mit von zu auf man sich noch nur""",
        "es": """el la los las y o pero si porque que es son era fue hay ha puede debe no nunca yo usted ellos nosotros un una de del al con para por se su le
            lo m\u00e1s como""",
        "zh": """\u7684 \u4e86 \u662f \u6211 \u4f60 \u60a8 \u4ed6 \u5979 \u4eec \u4e0d \u6ca1 \u522b \u6709 \u5728 \u4f1a \u8981 \u53ef \u5c31 \u90fd \u4e5f
            \u8fd9 \u90a3""",
    }.items()
}
WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['\u2019]\w+)?")
MARKS = ",.;:!?-()'\"\u2019\u201c\uff0c\u3002\uff1a\uff01\uff1f"
FEATURES = (
    *("length", "word length", "capitals", "answer-like opener"),
    *(f"mark {mark}" for mark in MARKS),
    *("lines", "list lines", "digits"),
    *(f"word {word}" if language == "en" else f"word {word} ({language})" for language, words in FUNCTION_WORDS.items() for word in sorted(words)),
)
ANSWER_OPENER = re.compile(
    r"""^\W*(
    (sure|certainly|of\ course|here['\u2019]?s|here\ (is|are)|gerne?|nat\u00fcrlich|selbstverst\u00e4ndlich|hier\ (ist|sind)|claro
    |por\ supuesto|aqu\u00ed\ (tienes?|est\u00e1n?|van?))\b
    | title: | 1[.)\u3001\uff0e] | step\ 1 | there\ are\ (several|many|a\ few) | to\ \w+\  | \u5f53\u7136 | \u597d\u7684 | \u4ee5\u4e0b\u662f
    )""",
    re.IGNORECASE | re.VERBOSE,
)
DRAWS = 400
TELLS = 8


def opens_like_an_answer(text: str) -> bool:
    """Whether a document opens as a model's answer does ("Sure, here is", "Title:", "1.")."""
    return bool(ANSWER_OPENER.match(text))


def surface_features(document: Document) -> list[float]:
    """Numbers that know nothing of the content, named by `FEATURES`: length, opener, punctuation, layout, function words of its language (% of all words)."""
    text = document.text
    words = WORD.findall(text.lower())
    many, lines, counts = max(1, len(words)), text.split("\n"), Counter(words)
    shares = [100 * counts[word] / many if language == document.language else 0.0 for language, known in FUNCTION_WORDS.items() for word in sorted(known)]
    marks = [text.count(mark) / many for mark in MARKS]
    layout = [
        len(lines) / many,
        sum(bool(re.match(r"\s*(\d+[.)]|[-*\u2022])", line)) for line in lines) / len(lines),
        sum(character.isdigit() for character in text) / many,
    ]
    shape = [many / 100, sum(map(len, words)) / many, sum(character.isupper() for character in text) / many, float(opens_like_an_answer(text))]
    return [*shape, *marks, *layout, *shares]


def surface_weights(documents: Sequence[Document]) -> dict[str, float]:
    """Weights, by id, under which surface tells nothing of malicious and benign: what a model then learns to tell them apart by has to be something else.

    One over the probability of a document's side given its surface (inverse propensity weighting: Rosenbaum and Rubin 1983), from a cross-validated fit; the
    highest 3% are cut. The mean of each side is 1. With fewer than 10 documents or matched groups a side all are 1.
    """
    import numpy as np

    malicious = np.array([document.label == Label.MALICIOUS for document in documents])
    if min(malicious.sum(), (~malicious).sum(), len({document.matched for document in documents})) < 10:
        return {document.id: 1.0 for document in documents}
    model = _classifier().set_params(logisticregression__class_weight="balanced")
    _, odds = _cross_validated(documents, model, [surface_features(document) for document in documents])
    weights = 1 + np.exp(-np.where(malicious, odds, -odds).clip(-4, 4))
    weights = np.minimum(weights, np.quantile(weights, 0.97))
    for side in (malicious, ~malicious):
        weights[side] /= weights[side].mean()
    return {document.id: float(weight) for document, weight in zip(documents, weights, strict=True)}


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))


def surface_auc(documents: Sequence[Document], *, seed: int) -> dict[str, Any]:
    """AUC of malicious against sensitive, cross-validated by triple, with a 95% document bootstrap interval; a bag of words beside it.

    `tells` names the features that weigh most, towards malicious (positive) or sensitive (negative), in standard deviations.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pair = [document for document in documents if document.label in (Label.MALICIOUS, Label.SENSITIVE)]
    groups = len({document.matched for document in pair})
    if min(sum(document.label == label for document in pair) for label in (Label.MALICIOUS, Label.SENSITIVE)) < 10 or groups < 10:
        return {"auc": None, "low": None, "high": None, "bag_of_words_auc": None, "tells": {}}
    features = [surface_features(document) for document in pair]
    truth, scores = _cross_validated(pair, _classifier(), features)
    words = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=2000))
    _, word_scores = _cross_validated(pair, words, [document.text for document in pair])
    low, high = _auc_interval(truth, scores, seed)
    weights = _classifier().fit(features, truth)[-1].coef_[0]
    heaviest = sorted(zip(FEATURES, weights, strict=True), key=lambda one: -abs(one[1]))[:TELLS]
    tells = {name: round(float(weight), 3) for name, weight in heaviest}
    return {"auc": _auc(truth, scores), "low": low, "high": high, "bag_of_words_auc": _auc(truth, word_scores), "tells": tells}


def _cross_validated(documents: Sequence[Document], model: Any, features: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np
    from sklearn.model_selection import GroupKFold, cross_val_predict

    truth = np.array([document.label == Label.MALICIOUS for document in documents])
    groups = [document.matched for document in documents]
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
    model = _classifier().set_params(logisticregression__class_weight="balanced").fit([surface_features(document) for document in train], labels)
    return dict(zip((document.id for document in test), map(bool, model.predict([surface_features(document) for document in test])), strict=True))
