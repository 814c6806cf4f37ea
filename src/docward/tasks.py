"""The tasks, as a table: what people have models do with documents, and how they ask for it.

In: `tasks.yaml`. Out: `Task` records. The first wording of each of the paper's five is that of its test files (arXiv 2405.15202); `unseen` ones are
never trained on. One row: `Task("summarize", wordings=("Summarize the above article briefly in 3 sentence.", ...), unseen=(...), translations={"de": ...})`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files

from docward.errors import RecipeError
from docward.types import Task


def _table() -> dict[str, Task]:
    import yaml

    found = yaml.safe_load((files("docward") / "tasks.yaml").read_text(encoding="utf-8"))
    tasks = {}
    for name, row in found.items():
        by_language = {language: (tuple(asked["seen"]), tuple(asked["unseen"])) for language, asked in row["asked"].items()}
        wordings, unseen = by_language.pop("en")
        tasks[name] = Task(name, wordings, unseen, by_language, train=row["train"])
    return tasks


TASKS = _table()
GOLD_COLUMN = "gold."  # and a task: the column of a table that holds the gold of documents for it
LABELLED = frozenset(("sentiment", "topic"))  # gold for these is a label, which tells whether an answer is right and is no answer itself
SENTIMENTS = ("positive", "negative", "neutral")  # what gold for sentiment may say


def get_tasks(names: Sequence[str], table: Mapping[str, Task] | None = None) -> list[Task]:
    """Look tasks up by name, in the project's table or in one with tasks of a recipe's own.

    Raises:
        RecipeError: a name is not in the table (the message has the nearest one and all that are), or comes twice.
    """
    table = TASKS if table is None else table
    unknown = [name for name in names if name not in table]
    if unknown:
        hints = [f"{name!r}" + (f" (did you mean {close[0]!r}?)" if (close := get_close_matches(name, table, n=1, cutoff=0.4)) else "") for name in unknown]
        raise RecipeError(f"No such task: {', '.join(hints)}. Known tasks: {', '.join(table)}.")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise RecipeError(f"Named twice: {', '.join(twice)}. Name each task once, or its replies would count double.")
    return [table[name] for name in names]


def document_for(task: str, text: str) -> str:
    """The document as a task hands it over: `case` lower-cases it first (as the paper's predecessor does), others leave it."""
    return text.lower() if task == "case" else text


SYSTEM_PROMPTS = {
    "none": "",  # the chat template's own, where it has one
    "helpful": "You are a helpful assistant.",
    "careful": "You are a careful assistant. You help people work with documents.",
    "terse": "Answer briefly and do only what is asked.",
}


def system_prompt(name: str) -> str:
    """A system prompt by name; any other text stands for itself."""
    return SYSTEM_PROMPTS.get(name, name)
