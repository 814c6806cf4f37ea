"""The paper's own test files (arXiv 2405.15202), in and out: `{"instructions": [prompt, ...], "inputs": [...]}`.

In: such a file or its content, or documents with their instructions. Out: documents, or such a content. A prompt there is the document with the instruction
straight after it; `inputs` is empty, or holds the documents apart from their instructions, as Alpaca files do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docward.errors import DocumentError
from docward.rendering import compose
from docward.tasks import TASKS

# As its files have them where they differ from what the paper prints.
VARIANTS = ("Summarize the above article briefly in 3 sentences.", "Translate the above article from English to Chinese:")
FILE_NAMES = {"next_sentence": "cloze"}  # a task's name in the paper's file names
SUFFIXES = {"malicious": "", "sensitive": "_useful", "ordinary": "_cnn"}  # a set's name there
NAME = re.compile(r"test_([a-z_]+?)(_useful|_cnn)?\.json")


def is_paper_file(content: Any) -> bool:
    """Whether a JSON value has the form of the paper's test files."""
    return isinstance(content, dict) and isinstance(content.get("instructions"), list) and isinstance(content.get("inputs", []), list)


def paper_documents(content: dict[str, list[Any]], *, where: str) -> list[str]:
    """The documents of a test file, without the instruction after them.

    Raises:
        DocumentError: a prompt is no string, or `inputs` are fewer or more than `instructions`.
    """
    prompts, inputs = content["instructions"], content.get("inputs") or []
    if not all(isinstance(text, str) for text in prompts):
        raise DocumentError(f"{where}: `instructions` holds something that is not a string.")
    apart = [text for text in inputs if isinstance(text, str) and text.strip()]
    if apart and len(inputs) != len(prompts):
        raise DocumentError(f"{where}: {len(prompts)} `instructions` and {len(inputs)} `inputs`. Wanted as many of both, or no inputs.")
    if not apart:
        return [without_instruction(prompt) for prompt in prompts]
    return [text if isinstance(text, str) and text.strip() else without_instruction(prompt) for prompt, text in zip(prompts, inputs, strict=True)]


def without_instruction(prompt: str) -> str:
    """A prompt without the wording of a task at its end; as it is if no known wording stands there."""
    text = prompt.rstrip()
    found = max((wording for wording in _wordings() if text.endswith(wording)), key=len, default="")
    return text.removesuffix(found).rstrip()


def _wordings() -> set[str]:
    asked = [part for task in TASKS.values() for both in ((task.wordings, task.unseen), *task.translations.values()) for part in both]
    return {wording.strip() for part in asked for wording in part} | set(VARIANTS)


def paper_content(prompts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Documents and their instructions as a test file has them."""
    written = [compose(document, instruction) for document, instruction in prompts]
    return {"instructions": written, "inputs": [""] * len(written)}


def paper_file_name(task: str, label: str) -> str:
    """`test_cloze_useful.json`: what the paper calls the file of a task and a set."""
    return f"test_{FILE_NAMES.get(task, task)}{SUFFIXES[label]}.json"


def paper_files(place: Path) -> list[Path]:
    """The test files in a folder, or the one at `place`; those of `case` last, since Docward writes their documents in lower case.

    Raises:
        DocumentError: the folder holds none.
    """
    if not place.is_dir():
        return [place]
    found = sorted((path for path in place.iterdir() if NAME.fullmatch(path.name)), key=lambda path: (path.name.startswith("test_case"), path.name))
    if not found:
        raise DocumentError(
            f"The folder {place} holds none of the paper's test files, such as test_summarize.json. Its repository has them in data/evaluation."
        )
    return found


def paper_label(file_name: str) -> str:
    """What the documents of a test file are, by its name: `sensitive` for `test_cloze_useful.json`.

    Raises:
        DocumentError: the file is not called as the paper calls one.
    """
    named = NAME.fullmatch(file_name)
    tasks = {FILE_NAMES.get(task, task) for task in TASKS}
    if not named or named[1] not in tasks:
        names = ", ".join(f"test_TASK{suffix}.json ({label})" for label, suffix in SUFFIXES.items())
        raise DocumentError(
            f"{file_name}: the paper's test files are known by their names, {names}, with TASK one of {', '.join(sorted(tasks))}. "
            "Give a file of another name with its label, as any file of documents."
        )
    return next(label for label, suffix in SUFFIXES.items() if suffix == (named[2] or ""))
