"""The command line: one console command, verbs as subcommands. Nothing heavy is imported before a command runs.

In: argv. Out: exit code 0 fine, 1 failed, 2 wrong use; results on stdout, progress and errors on stderr.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from docward import processes
from docward.errors import DocwardError, RecipeError, UsageError
from docward.evaluation.gate import MAX_UNJUDGED

app = typer.Typer(
    name="docward",
    help="Teach a language model to decline malicious documents, keep it useful on every other document, and prove both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's boxes cost --help 0.2 s of CPU, which is half of what it may take
)

RecipeFile = Annotated[Path, typer.Argument(help="A YAML recipe, such as recipes/quickstart.yaml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key of the recipe: --set tuning.learning_rate=1e-4. Repeatable.", show_default=False)
]
RunFolder = Annotated[Path | None, typer.Option("--output-dir", help="The run folder. Default: runs/<name of the recipe>.", show_default=False)]
ShowDocuments = Annotated[bool, typer.Option("--show-documents", help="Do not veil malicious text.")]


@app.command()
def run(recipe: RecipeFile, set_: Overrides = None, output_dir: RunFolder = None, show_documents: ShowDocuments = False) -> None:
    """The whole loop: dataset, tuning, evaluation, report. Picks up where it stopped."""
    from docward.cli.showing import bars, show_run
    from docward.loop import run_loop
    from docward.recipe import load_recipe

    folder = _folder(recipe, output_dir)
    if processes.count() > 1:
        raise UsageError(
            f"docward run was started as {processes.count()} processes, and only tuning can be divided among them. Launch `docward tune {recipe} --output-dir "
            f"{folder}` instead, then run `docward run {recipe} --output-dir {folder}` without a launcher: it goes on from there."
        )
    loaded = load_recipe(recipe, overrides=set_ or [])
    already = (folder / "report.html").is_file() and (folder / "metrics.json").is_file()
    with bars() as progress:
        metrics = run_loop(loaded, folder, progress=progress)
    show_run(folder, metrics, show_documents=show_documents, already=already)


@app.command()
def build(recipe: RecipeFile, set_: Overrides = None, output_dir: RunFolder = None) -> None:
    """Documents to a defense dataset, with a card and an audit."""
    _stages(recipe, set_, output_dir, "build")


@app.command()
def tune(recipe: RecipeFile, set_: Overrides = None, output_dir: RunFolder = None) -> None:
    """Dataset to a LoRA adapter. Also on many devices: accelerate launch --config_file FILE -m docward tune RECIPE."""
    _stages(recipe, set_, output_dir, "tune")


def _stages(recipe: Path, overrides: list[str] | None, output_dir: Path | None, last: str) -> None:
    from docward import loop
    from docward.cli.showing import bars, show_audit
    from docward.recipe import load_recipe

    folder = _folder(recipe, output_dir)
    loaded = load_recipe(recipe, overrides=overrides or [])
    with bars() as progress, loop.open_run(loaded, folder, progress) as run:
        audit = loop.build(run) if not processes.rank() else {}
        processes.wait()
        if last == "tune":
            loop.tune(run)
    if processes.rank():
        return
    if last == "build":
        show_audit(folder, audit)
    else:
        from docward.tuning.tuning import tuned_folder

        typer.echo(str(tuned_folder(folder)))


def _folder(recipe: Path, given: Path | None) -> Path:
    return given or Path("runs") / recipe.stem


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Option(help="Alias, Hub id, folder of a model or adapter, or .gguf file; with --base-url the server's name for it.", show_default=False)
    ],
    output_dir: Annotated[Path, typer.Option(help="Where replies, verdicts, metrics and the report go.", show_default=False)],
    adapter: Annotated[Path | None, typer.Option(help="A LoRA adapter for that model.", show_default=False)] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=FILE, LABEL one of malicious, sensitive, ordinary; or a public set (docward list sources), NAME or NAME=FILE. Repeatable. "
            "Default: starter, its held-out documents.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[str, typer.Option(help="Task names with commas between them.")] = "summarize,translate,sentiment,case,next_sentence",
    wordings: Annotated[str, typer.Option(help="seen (those of tuning) or unseen.")] = "seen",
    judge: Annotated[str, typer.Option(help="Who gives the verdicts.")] = "rules",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a reply.")] = 32,
    verdict_only: Annotated[
        bool,
        typer.Option("--verdict-only", help="Stop a reply where the verdict of the judge rules is settled; utility is then not measured."),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents a set and label.", show_default=False)] = None,
    correct_with: Annotated[
        Path | None,
        typer.Option(help="A FILE.validation.json of `docward judge`: adds rates corrected for judge error.", show_default=False),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="The folder of another evaluation of the same prompts, such as the untuned model's: paired tests, and what is kept of its utility.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="A robustness suite (docward list suites), or all. Repeatable; default: none.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what suites leave to chance.")] = 0,
    general: Annotated[
        Path | None,
        typer.Option(help="A table with `instruction` and `response`: adds the perplexity of these answers.", show_default=False),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="A server of the OpenAI protocol, such as http://localhost:8000/v1; the key comes from OPENAI_API_KEY.", show_default=False),
    ] = None,
    system_prompt: Annotated[str, typer.Option(help="By name (none, helpful, careful, terse) or in full; none: the chat template's own.")] = "none",
    max_batch_tokens: Annotated[
        int, typer.Option(min=16, help="Most tokens in memory at once, over all rows of a batch, of a model that is loaded here; may change from run to run.")
    ] = 16384,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests on their way to a server at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a reply of a server may take.")] = 120,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="The tokenizer of a server's model (a folder, an alias, a Hub id), for suites that count tokens.", show_default=False),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest prompt and reply together, in tokens: a longer document is cut in its middle. Default: the model's context, or a server's own.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Replies, verdicts and rates of any model on any documents. Also on many devices: accelerate launch -m docward evaluate ..."""
    from docward.cli.evaluating import evaluate_files
    from docward.evaluation.evaluating import Settings
    from docward.evaluation.likelihood import read_general
    from docward.models import load, only_tokenizer
    from docward.servers import Server
    from docward.tasks import get_tasks
    from docward.tasks import system_prompt as system_prompt_of

    if wordings not in ("seen", "unseen"):
        raise RecipeError(f"--wordings {wordings}: allowed are seen and unseen.")
    named = get_tasks([name.strip() for name in tasks.split(",") if name.strip()])
    if base_url and general:
        raise UsageError("Perplexity needs the model's own probabilities, which a server does not give: leave out --general, or --base-url.")
    if verdict_only and (base_url or judge != "rules"):
        raise UsageError("--verdict-only goes with the judge rules and a model that is loaded here: leave it out, or --judge and --base-url.")
    answers = read_general(general) if general else ()
    lengths: Any = {"max_new_tokens": max_new_tokens, "max_batch_tokens": max_batch_tokens, "max_length": max_length, "verdict_only": verdict_only}
    settings = Settings(tuple(named), system_prompt_of(system_prompt), wordings=wordings, judge=judge, general=answers, **lengths)
    if base_url and adapter:
        raise UsageError("--adapter goes with a model that is loaded here. Behind --base-url, name the adapter as the server does: --model NAME.")
    if tokenizer and not base_url:
        raise UsageError("--tokenizer goes with --base-url: a model that is loaded here has its own.")
    how: Any = {"concurrency": concurrency, "timeout": timeout, "tokenizer": only_tokenizer(tokenizer) if tokenizer else None}
    opened: Any = partial(Server, base_url, model, **how) if base_url else partial(load, model, adapter=adapter)
    beside: Any = {"correct_with": correct_with, "against": against, "suites": suite or [], "seed": seed}
    evaluate_files(model, opened, documents or [], settings, limit, output_dir, **beside)


@app.command()
def judge(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSONL rows with `reply`, and `document`, `prompt`, `task`, `label` where there are any; or the folder of an evaluation or a run.",
            show_default=False,
        ),
    ],
    validate: Annotated[bool, typer.Option("--validate", help="Rows have a `label` (refused, partial, complied): report the judges' own accuracy.")] = False,
    judge: Annotated[
        list[str] | None, typer.Option(help="Who gives the verdicts (docward list judges); repeat it for several side by side. Default: rules.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Keep the verdicts that are there and ask only about what is unjudged.")] = False,
) -> None:
    """Verdicts for replies in a file, to FILE.verdicts.jsonl (a judge's own accuracy to FILE.validation.json), or in a folder and its suites, as they are."""
    from docward.cli.judging import judge_place

    judge_place(place, judge or ["rules"], validate=validate, again=again)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder, or the folder of an evaluation.", show_default=False)]) -> None:
    """One self-contained HTML page: trade-off, rates, audit, samples."""
    from docward.report.page import write_report

    typer.echo(str(write_report(run)))


@app.command()
def gate(
    run: Annotated[Path, typer.Argument(help="A run folder, or the folder of an evaluation.", show_default=False)],
    min_block_rate: Annotated[float | None, typer.Option(help="Least share of malicious documents declined, from 0 to 1.", show_default=False)] = None,
    max_over_refusal: Annotated[float | None, typer.Option(help="Greatest share of sensitive documents declined.", show_default=False)] = None,
    max_false_refusal: Annotated[float | None, typer.Option(help="Greatest share of ordinary documents declined.", show_default=False)] = None,
    max_unjudged: Annotated[float, typer.Option(help="Greatest share of a held rate's replies that may be unjudged.")] = MAX_UNJUDGED,
    model: Annotated[str | None, typer.Option(help="Which model of a run folder. Default: defended.", show_default=False)] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the result as JUnit XML.", show_default=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the result as a Markdown table.", show_default=False)] = None,
) -> None:
    """Thresholds for CI, held against the safe end of the 95% interval. Exit 0: all met, 1: one not met, 2: wrong use."""
    from docward.cli.gating import run_gate
    from docward.types import Label

    given = {Label.MALICIOUS: min_block_rate, Label.SENSITIVE: max_over_refusal, Label.ORDINARY: max_false_refusal}
    thresholds = {label: threshold for label, threshold in given.items() if threshold is not None}
    if not run_gate(run, thresholds, max_unjudged=max_unjudged, model=model, junit_file=junit, markdown_file=markdown):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    to: Annotated[Path, typer.Option(help="An empty or new folder.", show_default=False)],
    format_: Annotated[
        str, typer.Option("--format", help="model (merged weights), or the dataset as trl, messages, alpaca, sharegpt, or as the paper's test files: paper.")
    ] = "model",
) -> None:
    """The defended model with a model card, or the dataset in another trainer's form."""
    from docward.dataset.formats import FORMATS, PAPER, export_dataset
    from docward.serving.exporting import export as export_run

    if format_ not in ("model", *FORMATS, PAPER):
        raise RecipeError(f"--format {format_}: allowed are model, {', '.join(FORMATS)} and {PAPER}.")
    typer.echo(str(export_run(run, to) if format_ == "model" else export_dataset(run / "dataset", to, format_)))


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="tasks, sources, judges, suites or models.", show_default=False)]) -> None:
    """What there is: tasks, sources, judges, suites, models."""
    from docward.cli.listing import show_list

    show_list(what)


@app.command()
def doctor() -> None:
    """What this machine can do, what is missing and how to get it."""
    from docward.cli.listing import show_doctor

    raise typer.Exit(show_doctor())


def main() -> None:
    """Run the command line; a `DocwardError` becomes one message and its exit code, said by one process where a launcher started several."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)  # peft asks by the old name
    try:
        app()
    except DocwardError as error:
        processes.give_way()
        typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except Exception:  # such as: process 0 has gone, and this one was talking to it
        processes.give_way()
        raise
