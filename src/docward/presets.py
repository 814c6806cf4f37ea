"""Presets: the public data sets that users plug in, by name.

In: a row as the data set has it. Out: rows with the fields of a document. `docward list sources` shows the table. Nothing of these sets is in this project.
One real entry: `Preset("imdb", "film reviews; ordinary", "stanfordnlp/imdb", "other", _ordinary("text"), ("text",))`.

Docward handles no sexual material and none about child abuse: rows that a set puts there are left out, whatever their label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from docward.errors import DocumentError, RecipeError
from docward.records import text_hash
from docward.types import Label

Values = Mapping[str, Any]
Rows = Callable[[Values], Iterable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Preset:
    """A public data set: where it is, how its rows become documents, what may be done with it.

    `rows` gives any number of `{"text": ..., "label": ..., ...}` for one row of the set, with `gold` by task where the set has it. A column is `one|other`
    where a set's file elsewhere and its copy on the Hub differ. `prompts` is True where texts are short questions: they are marked with `form: prompt`,
    since they are no documents.
    """

    name: str
    what: str
    hub: str
    license: str
    rows: Rows
    columns: tuple[str, ...] = ()  # that `rows` needs
    config: str | None = None
    split: str = "train"
    gated: bool = False
    prompts: bool = False
    language: str = "en"
    home: str = ""  # the page of a set that is not on the Hub

    @property
    def page(self) -> str:
        """Where to read about the set and get its files."""
        return self.home or f"https://huggingface.co/datasets/{self.hub}"

    def lacking(self, values: Values) -> list[str]:
        """The columns that `rows` needs and a row does not have."""
        return [column for column in self.columns if not any(name in values for name in column.split("|"))]

    @property
    def noncommercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "-NC" in self.license


# The sets' own words for whether a text is safe. What is safe here answers, or looks like, something harmful: so it is sensitive, not ordinary.
VERDICTS = dict.fromkeys(("unsafe", "harmful", "false"), Label.MALICIOUS) | dict.fromkeys(("safe", "unharmful", "true"), Label.SENSITIVE)

# Our categories, and what the sets call them. Names that are not here, or mix several of ours, stay as the set has them.
CATEGORIES = {
    "animal_cruelty": "animal_abuse | animal abuse",
    "disinformation": "misinformation_disinformation | disinformation and deception | disseminating false or misleading information"
    " | reducing the cost of disinformation campaigns | political/misinformation/conspiracy"
    " | disseminating_false_or_misleading_information_encouraging_disinformation_campaigns",
    "drugs": "controlled/regulated substances",
    "exploitation": "human trafficking",
    "extremism": "terrorism,organized_crime",
    "financial_crime": "economic crime | white-collar crime",
    "fraud": "fraud/deception | fraud_assisting_illegal_activities",
    "harassment": "harassment/discrimination | harassment_bullying | insulting behavior | hate, harassment and discrimination | hate | hate/identity hate"
    " | hate_speech,offensive_language | toxic language (hate speech) | toxic_language_hate_speech",
    "hazardous_materials": "chemical_biological",
    "malware": "cybercrime | cybercrime_intrusion | cyberattack | malware/hacking",
    "privacy": "privacy_violation | privacy violation | private_information_individual | pii/privacy"
    " | compromise privacy by leaking or inferring private information (person/individual)",
    "self_harm": "self-harm | suicide and self harm",
    "violence": "physical harm | violence,aiding_and_abetting,incitement | violence_and_physical_harm",
    "weapons": "guns and illegal weapons",
}
OURS = {name: ours for ours, theirs in CATEGORIES.items() for name in (ours, *theirs.split(" | "))}

LEFT_OUT = re.compile(r"(?<!non-)\bsexual|\badult content|\bchild|\bminors?\b", re.IGNORECASE)  # in the name of a category
YOUNG, SEXUAL = r"\b(child|children|minors?|underage|teens?|teenagers?|kids?|preteens?)\b", r"\b(porn\w*|sex\w*|nud(e|es|ity)|molest\w*|grooming)\b"
MINORS = re.compile(rf"{YOUNG}[^.!?\n]{{0,40}}{SEXUAL}|{SEXUAL}[^.!?\n]{{0,40}}{YOUNG}|\bpa?edophil|\bcsam\b", re.IGNORECASE)  # in a harmful request
NO_TEXT = ("None", "REDACTED")  # what Aegis has where there is none


def _text(values: Values, column: str) -> str:
    """What a column says, the first that has a text of `one|other`; empty if none has."""
    found = (value.strip() for name in column.split("|") if isinstance(value := values.get(name), str))
    return next((text for text in found if text and text not in NO_TEXT), "")


def _verdict(value: Any) -> Label | None:
    return VERDICTS.get(str(value).lower())


def _document(text: str, label: Label | None, categories: Sequence[str] = (), *, asked: str = "", **more: Any) -> list[dict[str, Any]]:
    """One row; none without a text or a verdict, or if a category or a harmful request (`asked`) says that it is nothing for Docward."""
    if not text or label is None or any(LEFT_OUT.search(name) for name in categories) or (label == Label.MALICIOUS and MINORS.search(asked)):
        return []
    named = [OURS.get(name.lower(), name) for name in categories if name and name != "benign"]
    category = next((name for name in named if name in CATEGORIES), named[0] if named else "")
    return [{"text": text, "label": label, "category": category, **more}]


def _prompts(name: str, what: str, hub: str, license: str, label: Label, prompt: str, category: str = "", pair: str = "", **more: Any) -> Preset:
    """A set of prompts, by the columns of its prompt and category; rows with one `pair` are a triple."""

    def rows(values: Values) -> list[dict[str, Any]]:
        text = _text(values, prompt)
        triple = {"triple": f"{hub.split('/')[1]}-{values[pair]}"} if pair else {}
        return _document(text, label, [_text(values, category)], asked=text, **triple)

    return Preset(name, what, hub, license, rows, tuple(filter(None, (prompt, category, pair))), prompts=True, **more)


def _ordinary(column: str, *, words: int = 1, gold: Callable[[Values], dict[str, str]] = lambda _: {}) -> Rows:
    """For a set of ordinary texts, of which only those of so many words are documents; `gold` gives what the set itself has for a right answer, by task."""

    def rows(values: Values) -> list[dict[str, Any]]:
        text = _text(values, column).replace("<br />", "\n")
        return _document(text, Label.ORDINARY, gold=gold(values)) if len(text.split()) >= words else []

    return rows


def _written(task: str, column: str) -> Callable[[Values], dict[str, str]]:
    """Gold is the text of a column."""
    return lambda values: {task: text} if (text := _text(values, column)) else {}


def _named(task: str, column: str, *names: str) -> Callable[[Values], dict[str, str]]:
    """Gold is a class by its number; none where the number is no class of the set, as the -1 of texts without one."""
    return lambda values: {task: names[int(number)]} if (number := str(values.get(column))).isdecimal() and int(number) < len(names) else {}


def _dolly_summary(values: Values) -> dict[str, str]:
    return _written("summarize", "response")(values) if values.get("category") == "summarization" else {}


def _handed_over(context: str, request: str, category: str) -> Rows:
    """For a set of texts with a harmful request about each: the document is both, since the text alone is often harmless."""

    def rows(values: Values) -> list[dict[str, Any]]:
        text, asked = _text(values, context), _text(values, request)
        return _document(f"{text}\n\n{asked}", Label.MALICIOUS, [_text(values, category)], asked=asked) if text and asked else []

    return rows


def _flagged(values: Values, column: str) -> list[str]:
    """The names that are true in a column of `{name: true or false}`."""
    flags = values[column] or {}
    if not isinstance(flags, Mapping):
        raise DocumentError(f"The column {column} holds a {type(flags).__name__}, wanted names with true or false. Take the set's JSONL or Parquet file.")
    return [name for name, flag in flags.items() if flag is True]


def _beavertails(values: Values) -> list[dict[str, Any]]:
    return _document(_text(values, "response"), _verdict(values["is_safe"]), _flagged(values, "category"))


def _pku_saferlhf(values: Values) -> list[dict[str, Any]]:
    triple = f"pku_saferlhf-{text_hash(_text(values, 'prompt'))}"  # answers to one prompt are no matched documents, but no split divides them
    found = []
    for side in "01":
        label, flagged = _verdict(values[f"is_response_{side}_safe"]), _flagged(values, f"response_{side}_harm_category")
        found += _document(_text(values, f"response_{side}"), label, flagged, triple=triple)
    return found


def _wildguardmix(values: Values) -> list[dict[str, Any]]:
    label = _verdict(values["response_harm_label"])
    unasked = label == Label.SENSITIVE and values["prompt_harm_label"] != "harmful"
    if unasked or values["response_refusal_label"] != "compliance":
        return []
    return _document(_text(values, "response"), label, [_text(values, "subcategory")])


def _aegis2(values: Values) -> list[dict[str, Any]]:
    categories = [name.strip() for name in _text(values, "violated_categories").split(",")]
    return _document(_text(values, "response"), _verdict(values["response_label"]), categories)


def _longsafety(values: Values) -> Iterable[dict[str, Any]]:
    return [] if LEFT_OUT.search(str(values.get("key_words"))) else _handed_over(*LONG)(values)  # finer than the type: one is child abuse


def _xstest(values: Values) -> list[dict[str, Any]]:
    prompt, kind = _text(values, "prompt"), _text(values, "type")
    return _document(prompt, Label.MALICIOUS if kind.startswith("contrast_") else Label.SENSITIVE, [kind], asked=prompt)


def _harmbench(values: Values) -> list[dict[str, Any]]:
    """The behaviours that stand alone: of the file with all of them neither those on a text, which are documents, nor those that ask for protected works."""
    prompt, category = (_text(values, column) for column in HARMBENCH_ALONE)
    standard = values.get("FunctionalCategory", "standard") == "standard"
    return _document(prompt, Label.MALICIOUS, [category], asked=prompt) if standard else []


def _as_they_are(values: Values) -> list[dict[str, Any]]:
    return [dict(values)]


BAD, FINE = Label.MALICIOUS, Label.SENSITIVE
ANSWER = ("response", "category", "is_safe")
ANSWERS = ("prompt", *(column.format(side) for side in "01" for column in ("response_{}", "is_response_{}_safe", "response_{}_harm_category")))
VERDICT_COLUMNS = ("response", "prompt_harm_label", "response_harm_label", "response_refusal_label", "subcategory")
HARMBENCH_ALONE = ("prompt|Behavior", "category|SemanticCategory")
HARMBENCH, LONG = ("context|ContextString", *HARMBENCH_ALONE), ("context", "instruction", "safety_type")
SAFETY = "answers: unsafe ones malicious, safe ones sensitive"
WILD = "answers that comply: harmful ones malicious, harmless ones to harmful prompts sensitive"
SUMMARY = "ordinary, with gold for summarize"
HIGHLIGHTS, IMDB = _written("summarize", "highlights"), _named("sentiment", "label", "negative", "positive")
AG_NEWS = _named("topic", "label", "world", "sports", "business", "science and technology")
XSUM = f"BBC news; {SUMMARY} (add revision: refs/convert/parquet if the Hub's script is refused)"
JBB, OR_BENCH = "JailbreakBench/JBB-Behaviors", "bench-llm/or-bench"
TABLE = (
    Preset("starter", "documents written for this project, matched but for intent", "", "Apache-2.0", _as_they_are, ("text", "label")),
    Preset("plain", "documents written for this project, as the web and chat models write", "", "Apache-2.0", _as_they_are, ("text", "label")),
    Preset("languages", "ordinary texts in other languages written for this project", "", "Apache-2.0", _as_they_are, ("text", "label")),
    Preset(
        "beavertails",
        SAFETY,
        "PKU-Alignment/BeaverTails",
        "CC-BY-NC-4.0",
        _beavertails,
        ANSWER,
        split="330k_train",
    ),
    Preset(
        "pku_saferlhf", "two answers a prompt: unsafe ones malicious, safe ones sensitive", "PKU-Alignment/PKU-SafeRLHF", "CC-BY-NC-4.0", _pku_saferlhf, ANSWERS
    ),
    Preset("wildguardmix", WILD, "allenai/wildguardmix", "ODC-By-1.0", _wildguardmix, VERDICT_COLUMNS, "wildguardtrain", gated=True),
    Preset("aegis2", SAFETY, "nvidia/Aegis-AI-Content-Safety-Dataset-2.0", "CC-BY-4.0", _aegis2, ("response", "response_label", "violated_categories")),
    Preset(
        "harmbench_contextual",
        "texts, each with a harmful request about it; malicious",
        "walledai/HarmBench",
        "MIT",
        _handed_over(*HARMBENCH),
        HARMBENCH,
        "contextual",
        gated=True,
    ),
    Preset(
        "harmbench",
        "harmful requests, those without a text; malicious",
        "walledai/HarmBench",
        "MIT",
        _harmbench,
        HARMBENCH_ALONE,
        "standard",
        gated=True,
        prompts=True,
    ),
    Preset("longsafety", "long web texts, each with a harmful request about it; malicious", "thu-coai/LongSafety", "MIT", _longsafety, LONG),
    _prompts("advbench", "harmful requests; malicious", "walledai/AdvBench", "MIT", BAD, "prompt|goal", gated=True),
    _prompts("jailbreakbench", "harmful requests; malicious", JBB, "MIT", BAD, "Goal", "Category", "Index", config="behaviors", split="harmful"),
    _prompts(
        "jailbreakbench_benign",
        "harmless requests on the topics of jailbreakbench; sensitive",
        JBB,
        "MIT",
        FINE,
        "Goal",
        "Category",
        "Index",
        config="behaviors",
        split="benign",
    ),
    _prompts("strongreject", "harmful requests; malicious", "walledai/StrongREJECT", "MIT", BAD, "prompt|forbidden_prompt", "category", gated=True),
    _prompts(
        "do_not_answer", "questions that a model should not answer; malicious", "LibrAI/do-not-answer", "CC-BY-NC-SA-4.0", BAD, "question", "types_of_harm"
    ),
    Preset(
        "xstest",
        "prompts that look unsafe: safe ones sensitive, unsafe ones malicious",
        "Paul/XSTest",
        "CC-BY-4.0",
        _xstest,
        ("prompt", "type"),
        prompts=True,
    ),
    _prompts("or_bench", "safe prompts that models tend to refuse; sensitive", OR_BENCH, "CC-BY-4.0", FINE, "prompt", "category", config="or-bench-hard-1k"),
    _prompts(
        "or_bench_80k", "safe prompts, of which or_bench is the hard part; sensitive", OR_BENCH, "CC-BY-4.0", FINE, "prompt", "category", config="or-bench-80k"
    ),
    _prompts(
        "or_bench_toxic", "harmful prompts, the contrast of or_bench; malicious", OR_BENCH, "CC-BY-4.0", BAD, "prompt", "category", config="or-bench-toxic"
    ),
    _prompts("falsereject", "safe prompts that look unsafe; sensitive", "AmazonScience/FalseReject", "CC-BY-NC-4.0", FINE, "prompt", "category_text"),
    Preset(
        "paper",
        "the paper's own test files, labelled by their names; all three labels",
        "",
        "unknown",
        _as_they_are,
        ("text", "label"),
        home="https://github.com/FYYFU/safety-defense",
    ),
    Preset("cnn_dailymail", f"news articles; {SUMMARY}", "abisee/cnn_dailymail", "Apache-2.0", _ordinary("article", gold=HIGHLIGHTS), ("article",), "3.0.0"),
    Preset("xsum", XSUM, "EdinburghNLP/xsum", "unknown", _ordinary("document", gold=_written("summarize", "summary")), ("document",)),
    Preset("imdb", "film reviews; ordinary, with gold for sentiment", "stanfordnlp/imdb", "other", _ordinary("text", gold=IMDB), ("text",)),
    Preset("ag_news", "news in brief; ordinary, with gold for topic", "fancyzhx/ag_news", "unknown", _ordinary("text", gold=AG_NEWS), ("text",)),
    # Its own page says CC-BY-4.0; the Alpaca set whose texts these are is CC-BY-NC-4.0.
    Preset(
        "alpaca_cleaned",
        "inputs of instructions, of 40 words or more; ordinary",
        "yahma/alpaca-cleaned",
        "CC-BY-NC-4.0",
        _ordinary("input", words=40),
        ("input",),
    ),
    Preset(
        "dolly",
        "contexts of instructions, of 40 words or more; ordinary, some with gold for summarize",
        "databricks/databricks-dolly-15k",
        "CC-BY-SA-3.0",
        _ordinary("context", words=40, gold=_dolly_summary),
        ("context",),
    ),
)
PRESETS = {preset.name: preset for preset in TABLE}


def get_preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        RecipeError: there is none of that name; the message has the nearest one and all that are.
    """
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, n=1, cutoff=0.5)
        raise RecipeError(
            f"No source is called {name!r}{f' (did you mean {close[0]!r}?)' if close else ''}. Known: {', '.join(PRESETS)}. "
            "Or give a file or folder, {path: mine.jsonl}, or a data set on the Hub, {hub: owner/name}."
        )
    return PRESETS[name]
