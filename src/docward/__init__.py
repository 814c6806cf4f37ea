"""Docward: teach a language model to decline malicious documents, keep it useful on every other document, and prove both.

documents --> defense dataset --> tuning --> evaluation --> report --> the defended model, shipped
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from docward.errors import DocwardError
from docward.types import Document, Example, Label, Outcome, Rate, Reply, Task, Verdict

if TYPE_CHECKING:
    from docward.evaluation.judges import judge_text
    from docward.loop import run_loop
    from docward.models import load
    from docward.recipe import Recipe, load_recipe
    from docward.rendering import render

# Imported when first asked for: `import docward` stays fast and silent.
_LAZY = {
    "judge_text": "docward.evaluation.judges",
    "load": "docward.models",
    "load_recipe": "docward.recipe",
    "Recipe": "docward.recipe",
    "render": "docward.rendering",
    "run_loop": "docward.loop",
}

__all__ = [
    "Document", "DocwardError", "Example", "Label", "Outcome", "Rate", "Recipe", "Reply", "Task", "Verdict",
    "judge_text", "load", "load_recipe", "render", "run_loop",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'docward' has no attribute {name!r}")
