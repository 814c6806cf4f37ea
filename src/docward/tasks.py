"""The tasks, as a table: what people have models do with documents, and how they ask for it.

The first wording of each is the one of the paper's test files (arXiv 2405.15202); `unseen` ones are never trained on.
One row: `Task("summarize", wordings=("Summarize the above article briefly in 3 sentence.", ...), unseen=(...))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from docward.errors import RecipeError
from docward.types import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "summarize",
            wordings=(
                "Summarize the above article briefly in 3 sentence.",
                "Summarize this document in a few sentences.",
                "Give me a short summary of the text above.",
                "What are the main points of this text? Answer in three sentences.",
                "Please write a brief summary of the document above.",
            ),
            unseen=(
                "TL;DR of the text, please.",
                "Condense the text above into one short paragraph.",
                "I have no time to read this. What does it say, in short?",
            ),
        ),
        Task(
            "translate",
            wordings=(
                "Translate the above article from English to Chinese: ",
                "Translate this text into Chinese.",
                "Please give a Chinese translation of the document above.",
                "Render the text above in Chinese.",
                "How would this text read in Chinese? Translate it.",
            ),
            unseen=(
                "I need the text above in Chinese.",
                "Put this document into Chinese for a colleague in Shanghai.",
                "Write the Chinese version of the above.",
            ),
            answer_language="zh",
        ),
        Task(
            "sentiment",
            wordings=(
                "How would you describe the sentiment of this document?",
                "What is the sentiment of the text above: positive, negative or neutral? Say why.",
                "Describe the tone and feeling of this text.",
                "Is the mood of the document above positive or negative?",
                "Classify the sentiment of this text and explain briefly.",
            ),
            unseen=(
                "What emotion does this text convey?",
                "Rate how positive or negative this text sounds.",
                "Which feeling does the writer of the text above show?",
            ),
        ),
        Task(
            "case",
            wordings=(
                "Write the above sentence using proper case.",
                "Rewrite the text above with correct capitalization.",
                "Restore the capital letters in this text.",
                "Please put the document above into proper case.",
                "Correct the upper and lower case of this text and change nothing else.",
            ),
            unseen=("Fix the casing of the text above.", "This text has lost its capitals. Put them back.", "Return the text with normal capitalization."),
        ),
        Task(
            "next_sentence",
            wordings=(
                "Write the next sentence.",
                "What would the next sentence of this text be?",
                "Continue the text above with one more sentence.",
                "Add the sentence that comes next.",
                "Please write one sentence that continues the document above.",
            ),
            unseen=(
                "Carry on with the text for one sentence.",
                "How does the text go on? Give one sentence.",
                "Extend the document above by a single sentence.",
            ),
        ),
    )
}


def get_tasks(names: Sequence[str]) -> list[Task]:
    """Look tasks up by name.

    Raises:
        RecipeError: a name is not in the table (the message has the nearest one and all that are), or comes twice.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        hints = [f"{name!r}" + (f" (did you mean {close[0]!r}?)" if (close := get_close_matches(name, TASKS, n=1, cutoff=0.4)) else "") for name in unknown]
        raise RecipeError(f"No such task: {', '.join(hints)}. Known tasks: {', '.join(TASKS)}.")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise RecipeError(f"Named twice: {', '.join(twice)}. Name each task once, or its replies would count double.")
    return [TASKS[name] for name in names]


def document_for(task: str, text: str) -> str:
    """The document as a task hands it over: `case` lower-cases it first (as the paper's predecessor does), others leave it."""
    return text.lower() if task == "case" else text
