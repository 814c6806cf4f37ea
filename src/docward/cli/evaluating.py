"""`docward evaluate`: files and public sets in, tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from docward import processes
from docward.cli.showing import bars, console, corrected_column, rates_table, show_advice, show_surface, suites_table, utility_table
from docward.documents.reading import OWN, fair_share, own_documents, read_documents, unique_documents
from docward.documents.sources import source_documents
from docward.errors import DocumentError, RunError, UsageError
from docward.evaluation.baseline import add_surface
from docward.evaluation.correcting import correct_folder, read_validation
from docward.evaluation.evaluating import Progress, Settings, evaluate, planned_replies, reasons
from docward.evaluation.judges import get_judge
from docward.evaluation.suites import EVERY, SUITES, get_suites
from docward.evaluation.suites.running import for_model, for_server, run_suites
from docward.models import Loaded
from docward.presets import PRESETS
from docward.recipe import Source
from docward.records import read_rows
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
    """Evaluate a model on files and sets (or the starter's held-out documents), then in robustness suites, and print its rates; one process speaks for all.

    The surface baseline stands beside it. With `correct_with` rates are also shown corrected for judge error.

    Raises:
        RunError: a server did not give all replies; what it gave is kept and shown.
        UsageError: a suite that a model behind a server cannot be asked, or one that wants its context, which is not known; or suites on short prompts alone.
    """
    judge = get_judge(settings.judge).name
    judge_error = read_validation(correct_with, judge=judge) if correct_with else None
    chosen = get_suites(suites)
    texts = gather(sources, limit)
    documents = [one for one in texts if not one.is_prompt]
    if chosen and not documents:
        raise UsageError("Suites change documents, and there are only short prompts here: leave out --suite, or add --documents.")
    said: AbstractContextManager[Progress] = nullcontext(lambda *_: None) if processes.rank() else bars()
    with said as progress:
        progress(f"loading {name}", 0, 0)
        model = opened()
        run = for_model(chosen, model, settings)
        if len(run) < len(chosen) and EVERY not in suites:
            wanting = "; ".join(f"{one.name} wants {one.wants}" for one in chosen if one not in run)
            raise UsageError(
                f"A server cannot be asked every suite ({wanting}). Leave those out, or --base-url; `--suite {EVERY}` runs those that it can be asked: "
                f"{', '.join(one.name for one in for_server(list(SUITES.values()), tokens=model.tokenizer is not None))}."
            )
        metrics = evaluate(model, texts, settings, output_dir, progress=progress)
        ordinary = [one for one in own_documents() if one.split == Split.TEST and one.label == Label.ORDINARY]
        found = run_suites(model, documents, run, settings, output_dir, ordinary=ordinary, seed=seed, progress=progress)
    if processes.rank():
        return
    train, fitted_on = training_documents(name, model)
    metrics = add_surface(output_dir, metrics, train, documents, fitted_on=fitted_on)
    if judge_error:
        metrics = correct_folder(output_dir, metrics, judge_error)
    out = console()
    out.print(rates_table({"model": metrics, **corrected_column(metrics)}, metrics["surface"]))
    show_surface(out, metrics)
    if metrics["utility"]:
        out.print(utility_table({"model": metrics}))
    show_advice(out, metrics)
    if (cut := metrics["dropped"])["replies"]:
        out.print(f"{cut['replies']} prompts were longer than the model's context: {cut['tokens']} document tokens were cut from the middle.")
    if (withheld := metrics["withheld"])["replies"]:
        out.print(f"{withheld['replies']} replies were withheld by the server, not by the model, and are unjudged: {reasons(withheld['why'])}.", markup=False)
    if names := metrics["not_taken"]:
        drawn = " Its replies are drawn at its own temperature, not greedy: another run may give others." if "temperature" in names else ""
        out.print(f"The server takes no {' and no '.join(names)} for this model, so it was asked without.{drawn}")
    if metrics["cut"]:
        out.print(
            f"{metrics['cut']} replies were cut where their verdict was settled: what turns or loops behind the opening is not seen; utility is not measured."
        )
    if found:
        out.print(suites_table(found))
    for one in found:
        if one["left_out"]:
            out.print(f"Suite {one['name']}: longer than the model's context, so not asked: {', '.join(one['left_out'])}.")
    if len(run) < len(chosen):
        out.print(f"Not run, since a server cannot be asked them: {', '.join(f'{one.name} (wants {one.wants})' for one in chosen if one not in run)}.")
    out.print(f"Replies, verdicts, metrics: {output_dir}\nReport: {write_report(output_dir)}", soft_wrap=True)
    if lack := sum(one["missing"]["replies"] for one in (metrics, *found)):
        why = sum((Counter(one["missing"]["why"]) for one in (metrics, *found)), Counter[str]())
        whole = len(planned_replies(texts, settings)) + sum(row["judged"] + row["unjudged"] for one in found for row in one["rows"])
        whole += sum(one["missing"]["replies"] for one in found)
        raise RunError(
            f"{lack} of {whole} replies did not come and are in no rate above: {reasons(why)}. Run the same command again: only those are asked for."
        )


def gather(sources: list[str], limit: int | None) -> list[Document]:
    """Read `LABEL=FILE`, `NAME` and `NAME=FILE` sources, each a set by the name of its file or its own, at most `limit` documents a set and label.

    Raises:
        DocumentError: a source is none of these, or cannot be read.
    """
    given = [source.partition("=") for source in sources or ["starter"]]
    files = {path for name, _, path in given if name in list(Label)}
    found: list[Document] = []
    for name, equals, path in given:
        place, called = Path(path).expanduser(), name
        if name in list(Label) and path:
            read = read_documents(place, label=Label(name))
            called = path if any(other != path and Path(other).name == place.name for other in files) else place.name
        elif name in PRESETS and bool(equals) == bool(path):
            read = source_documents(Source(preset=name, path=str(place) if path else None))
        else:
            raise _no_source(name, f"{name}{equals}{path}")
        held_out = (one for one in read if name not in OWN or path or one.split == Split.TEST)
        found += [replace(one, source=called) for one in held_out]
    return fair_share(unique_documents(found), limit)


def _no_source(name: str, given: str) -> DocumentError:
    close = get_close_matches(name, [*(label.value for label in Label), *PRESETS], n=1, cutoff=0.5)
    return DocumentError(
        f"--documents {given}: wanted LABEL=FILE with LABEL one of {', '.join(Label)}, such as --documents malicious=bad.jsonl, or a public set, NAME or "
        f"NAME=FILE{f' (did you mean {close[0]!r}?)' if close else ''}. Sets: {', '.join(PRESETS)}."
    )


def training_documents(name: str, model: Loaded | Server) -> tuple[list[Document], str]:
    """What the surface baseline is fitted on, and where it is from: the training documents of the run that the model is of, else the starter's."""
    tuned = [Path(one) for one in (model.adapter, name) if one] if isinstance(model, Loaded) else []
    run = next((one.parent for one in tuned if one.is_dir() and (one.parent / "documents.jsonl").is_file()), None)
    documents = read_rows(run / "documents.jsonl", Document) if run else own_documents()
    return [one for one in documents if one.split == Split.TRAIN], f"the run {run.resolve().name}" if run else "the starter"
