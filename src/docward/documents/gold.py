"""Gold: what a right answer on a document says, by task, as the row of a document has it.

In: a row with `gold`, a mapping of task to text, or, in tables of plain columns, with columns `gold.TASK`. Out: that mapping, checked. One real row:
`{"text": "A bakery opened ...", "label": "ordinary", "gold": {"summarize": "A bakery opens in town.", "sentiment": "positive"}}`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from docward.documents.cleaning import clean
from docward.documents.texts import shown
from docward.errors import DocumentError
from docward.tasks import GOLD_COLUMN, SENTIMENTS


def gold_of(values: Mapping[str, Any], *, tasks: Collection[str], where: str) -> dict[str, str]:
    """The gold of a row by task; empty where it has none. A cell without a value says nothing.

    Args:
        values: the row.
        tasks: the names that gold may be for.
        where: the row's place, for messages.

    Raises:
        DocumentError: gold that is no text, is empty, is for a task that is not there, or is what the task cannot use.
    """
    given = values.get("gold")
    if given is not None and given != "" and not isinstance(given, Mapping):
        raise DocumentError(
            f'{where}: `gold` is {shown(given)}, wanted texts by task, such as {{"summarize": "..."}}. '
            f"In a table, give each task a column of its own: {GOLD_COLUMN}summarize."
        )
    nested = {str(task): text for task, text in (given or {}).items() if text is not None}
    columns = {str(name).removeprefix(GOLD_COLUMN): text for name, text in values.items() if str(name).startswith(GOLD_COLUMN) and text not in (None, "")}
    if twice := sorted(set(nested) & set(columns)):
        raise DocumentError(f"{where}: gold for {twice[0]} stands in `gold` and in the column {GOLD_COLUMN}{twice[0]}. Keep one.")
    return {task: _checked(task, text, tasks, where) for task, text in (nested | columns).items()}


def _checked(task: str, text: Any, tasks: Collection[str], where: str) -> str:
    if task not in tasks:
        close = get_close_matches(task, tasks, n=1, cutoff=0.5)
        raise DocumentError(
            f"{where}: gold for {shown(task)}, which is no task{f' (did you mean {close[0]!r}?)' if close else ''}. Known tasks: {', '.join(tasks)}."
        )
    if task == "case":
        raise DocumentError(f"{where}: gold for case is the document's own text. Leave it out.")
    if not isinstance(text, str):
        raise DocumentError(f"{where}: gold for {task} is {shown(text)}, wanted a text.")
    if not (kept := clean(text)):
        raise DocumentError(f"{where}: gold for {task} is empty. Give the right answer, or leave it out.")
    if task == "sentiment" and kept.lower() not in SENTIMENTS:
        raise DocumentError(f"{where}: gold for sentiment is {shown(kept)}. Allowed: {', '.join(SENTIMENTS)}.")
    return kept
