"""`docward evaluate`: files in, tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from docward import processes
from docward.cli.showing import bars, console, corrected_column, rates_table, show_advice, suites_table, utility_table
from docward.documents.reading import by_label, own_documents, read_documents, unique_documents
from docward.errors import DocumentError, RunError, UsageError
from docward.evaluation.correcting import correct_folder, read_validation
from docward.evaluation.evaluating import Progress, Settings, evaluate
from docward.evaluation.judges import get_judge
from docward.evaluation.suites import get_suites
from docward.evaluation.suites.running import run_suites
from docward.models import Loaded
from docward.report.page import write_report
from docward.servers import Server
from docward.types import Document, Label, Split


def evaluate_files(
    name: str,
    opened: Callable[[], Loaded | Server],
    sources: list[str],
    settings: Settings,
    limit: int | None,
    output_dir: Path,
    *,
    correct_with: Path | None = None,
    suites: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Evaluate a model on labelled files (or the starter's held-out documents), then in robustness suites, and print its rates; one process speaks for all.

    With `correct_with` they are also shown corrected for judge error.

    Raises:
        RunError: a server did not give all replies; what it gave is kept and shown.
        UsageError: suites for a model behind a server, or by several processes.
    """
    judge = get_judge(settings.judge).name
    judge_error = read_validation(correct_with, judge=judge) if correct_with else None
    chosen = get_suites(suites)
    if chosen and processes.count() > 1:
        raise UsageError("Suites are run by one process: leave out the launcher, or --suite.")
    documents = gather(sources, limit)
    said: AbstractContextManager[Progress] = nullcontext(lambda *_: None) if processes.rank() else bars()
    with said as progress:
        progress(f"loading {name}", 0, 0)
        model = opened()
        if chosen and isinstance(model, Server):
            raise UsageError("Suites need the model's own tokenizer, which a server does not give: leave out --suite, or --base-url.")
        metrics = evaluate(model, documents, settings, output_dir, progress=progress)
        if processes.rank():
            return
        ordinary = [one for one in own_documents() if one.split == Split.TEST and one.label == Label.ORDINARY]
        found = run_suites(model, documents, chosen, settings, output_dir, ordinary=ordinary, seed=seed, progress=progress) if isinstance(model, Loaded) else []
    if judge_error:
        metrics = correct_folder(output_dir, metrics, judge_error)
    out = console()
    out.print(rates_table({"model": metrics, **corrected_column(metrics)}))
    if metrics["utility"]:
        out.print(utility_table({"model": metrics}))
    show_advice(out, metrics)
    if (cut := metrics["dropped"])["replies"]:
        out.print(f"{cut['replies']} prompts were longer than the model's context: {cut['tokens']} document tokens were cut from the middle.")
    if found:
        out.print(suites_table(found))
    for one in found:
        if one["left_out"]:
            out.print(f"Suite {one['name']}: longer than the model's context, so not asked: {', '.join(one['left_out'])}.")
    out.print(f"Replies, verdicts, metrics: {output_dir}\nReport: {write_report(output_dir)}", soft_wrap=True)
    if (missing := metrics["missing"])["replies"]:
        reasons = "; ".join(f"{why} ({times})" for why, times in Counter(missing["why"]).most_common(3))
        raise RunError(
            f"{missing['replies']} of {len(documents) * len(settings.tasks)} replies did not come and are in no rate above: {reasons}. "
            "Run the same command again: only those are asked for."
        )


def gather(sources: list[str], limit: int | None) -> list[Document]:
    """Read `LABEL=FILE` sources, at most `limit` documents a label.

    Raises:
        DocumentError: a source is not LABEL=FILE, or its file cannot be used.
    """
    found: list[Document] = [] if sources else [one for one in own_documents() if one.split == Split.TEST]
    for source in sources:
        label, equals, path = source.partition("=")
        if not equals or label not in list(Label) or not path:
            raise DocumentError(f"--documents {source}: wanted LABEL=FILE with LABEL one of {', '.join(Label)}, such as --documents malicious=bad.jsonl.")
        found += read_documents(Path(path).expanduser(), label=Label(label))
    kept = unique_documents(found)
    return [one for label in Label for one in by_label(kept, label)[:limit]]
