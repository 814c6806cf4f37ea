"""The tuning stage: a model, its training examples, a recipe section -> an adapter folder.

In: records and a loaded model. Out: `adapter/` (LoRA weights, config, tokenizer; `model/` where all weights are trained), written whole, `training.jsonl` where
it makes steps, and `probes.jsonl` where the run probes itself. Stop it anywhere and start it again, with any number of processes: it goes on from the last
whole checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docward import processes
from docward.errors import DocwardError, ModelError, RecipeError, StorageError, TuningError
from docward.models import Loaded, attention, attention_of
from docward.recipe import TuningSection
from docward.records import text_hash, whole_folder
from docward.rendering import END_OF_TURN, Rendered, render
from docward.types import Example, Want

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from docward.tuning.packing import Compute, Group
    from docward.tuning.probing import ProbePlan

Progress = Callable[[str, int, int], None]
ADAPTER, MODEL = "adapter", "model"
# How the work is divided and what is reported: these settings may change in the middle of a run.
FREE = ("compute", "max_batch_tokens", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps", "report_to")


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning gives: the folder of the adapter or model, what was cut to fit `max_length`, and why documents were not shared (empty: they were)."""

    adapter: Path
    cut_examples: int
    cut_tokens: int
    not_shared: str = ""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run's hold on its checkpoints: what Trainer is told, how many examples the first start made a step of, and the checkpoint to go on from, if any."""

    args: Any
    examples_per_step: int
    start: Path | None


def tuned_folder(run: Path) -> Path:
    """Where a run has (or will have) what it learned."""
    return run / MODEL if (run / MODEL / "config.json").is_file() else run / ADAPTER


def render_examples(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], limit: int) -> list[Rendered]:
    """Render examples with their answers, in at most `limit` tokens; only documents are cut, and one document is cut alike for all its tasks."""

    def one(example: Example, most: int) -> Rendered:
        asked: dict[str, Any] = {"document": example.document, "instruction": example.instruction, "answer": example.response, "system": example.system}
        return render(tokenizer, **asked, position=example.position, limit=most)

    rendered = [one(example, limit) for example in examples]
    frames = [len(row.ids) - len(row.document) for row in rendered]
    widest: dict[str, int] = {}
    for example, frame in zip(examples, frames, strict=True):
        widest[example.document_id] = max(widest.get(example.document_id, 0), frame)
    return [
        one(example, limit - widest[example.document_id] + frame) if row.dropped or len(row.document) > limit - widest[example.document_id] else row
        for example, row, frame in zip(examples, rendered, frames, strict=True)
    ]


def in_one_token(token: int, rendered: Sequence[Rendered], examples: Sequence[Example]) -> list[Rendered]:
    """Let the answers that refuse be one token and the end of the turn."""
    return [
        replace(row, ids=[*row.ids[: row.answer_start], token, row.ids[-1]]) if example.want == Want.REFUSE else row
        for row, example in zip(rendered, examples, strict=True)
    ]


def tune(
    loaded: Loaded,
    examples: Sequence[Example],
    section: TuningSection,
    *,
    run: Path,
    seed: int,
    groups: Mapping[str, str] | None = None,
    task_weights: Mapping[str, float] | None = None,
    document_weights: Mapping[str, float] | None = None,
    probe: ProbePlan | None = None,
    progress: Progress = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Tune into `run/adapter` (`run/model` without PEFT); checkpoints lie in `run/checkpoints` until it is done.

    Args:
        loaded: the untuned model; it is changed in place.
        examples: training examples, general ones included.
        section: the recipe's tuning section.
        run: the run folder.
        seed: for the adapter's start, dropout and the order of steps.
        groups: document id -> name of its matched group; those land in one step where they fit.
        task_weights: of each trained task; default: what the section says, or equal.
        document_weights: by id, multiply the coefficients of a document's examples; default: 1.
        probe: what to probe the model on while tuning; the best adapter is kept then, else the last.
        progress: told examples done and in all.
        clock: seconds, for the log.

    Raises:
        RecipeError: nothing to learn on one side, settings that do not go together, a batch bound below one row.
        TuningError: the loss, a gradient or what was fitted is NaN, or the loss explodes; checkpoints of another run, or damaged.
        ModelError: the model has no modules with the wanted names or no such refusal token, or its tokenizer no end token.
        StorageError: no disk space for a checkpoint or the adapter.
    """
    import torch
    from transformers import set_seed

    from docward.tuning import sharing
    from docward.tuning.adapters import prepare, reading_head, save_tuned
    from docward.tuning.checkpoints import clear
    from docward.tuning.frozen import frozen_below
    from docward.tuning.fused import fused
    from docward.tuning.refusal_row import begin_from_a_fit

    data, rendered = training_groups(loaded, examples, section, groups=groups, task_weights=task_weights, document_weights=document_weights)
    if processes.on_main(lambda: loaded.fingerprint) != loaded.fingerprint:
        raise TuningError(
            f"Process {processes.rank()} holds other weights than process 0, or in another precision ({loaded.model.dtype} here). "
            f"All machines must load the same {loaded.name}."
        )
    set_seed(seed)
    model = prepare(loaded, section)
    claimed = _claimed(loaded, data, section, run / "checkpoints", seed) if section.num_train_epochs else None
    with ExitStack() as stack:
        stack.callback(sharing._mask.cache_clear)  # which would stay on the device
        plain = attention_of(model)
        compute, why = processes.on_main(lambda: choose_compute(loaded, model, data, section))
        if why:
            progress(f"documents are not shared between tasks: {why}", 0, 0)
        if compute == "shared":
            stack.enter_context(sharing.shared_layout(model))
        stack.enter_context(fused(model))
        first = 0 if processes.spread() else reading_head(loaded, section)[0]  # no process has all the weights on its accelerator
        frozen = stack.enter_context(frozen_below(loaded, data, first, compute, progress))
        wanted = section.refusal_token is not None and not processes.spread() and not (claimed and claimed.start)  # a checkpoint holds what was fitted
        fitted = wanted and begin_from_a_fit(loaded, model, data, section, compute, progress)
        if fitted:
            with frozen.whole():
                _check_fit(loaded, model)
        if not section.num_train_epochs and not fitted:
            why_not = "weights are spread over processes" if processes.spread() else f"{loaded.name} has no token to spare, or logits of another kind"
            raise RecipeError(f"tuning.num_train_epochs is 0, and nothing was fitted: {why_not}. Set more epochs.")

        @contextmanager
        def whole() -> Iterator[None]:
            with frozen.whole(), attention(model, plain):
                yield

        if claimed:
            with torch.enable_grad():
                how: dict[str, Any] = {"compute": compute, "whole": whole, "probe": probe, "progress": progress, "clock": clock}
                _train(loaded, model, data, section, claimed, run=run, seed=seed, **how)
        else:
            processes.on_main(lambda: save_tuned(loaded, model, run / ADAPTER))
    if processes.rank() == 0:
        clear(run / "checkpoints")
    return Tuned(tuned_folder(run), sum(one.dropped > 0 for one in rendered), sum(one.dropped for one in rendered), why)


def training_groups(
    loaded: Loaded,
    examples: Sequence[Example],
    section: TuningSection,
    *,
    groups: Mapping[str, str] | None = None,
    task_weights: Mapping[str, float] | None = None,
    document_weights: Mapping[str, float] | None = None,
) -> tuple[list[Group], list[Rendered]]:
    """Examples as groups of rows that begin alike, each row with its factor: its coefficient in the loss times the number of rows.

    Raises:
        RecipeError: there are no malicious examples or no benign ones, or a row is longer than `max_batch_tokens`.
        ModelError: the tokenizer has no token to end an answer with.
    """
    from docward.tuning.losses import coefficients, term_of
    from docward.tuning.packing import Row, group_of, too_long
    from docward.tuning.refusal_token import refusal_token_id

    _both_sides(examples, section)
    _can_end(loaded)
    if task_weights is None and isinstance(section.task_weights, dict):
        task_weights = section.task_weights
    weights = coefficients(examples, benign_weight=section.benign_weight, general_weight=section.general_weight, task_weights=task_weights)
    if document_weights:
        weights = [weight * document_weights.get(one.document_id, 1.0) for one, weight in zip(examples, weights, strict=True)]
    if not section.anchor_weight:  # an example without weight teaches nothing
        examples = [one for one, weight in zip(examples, weights, strict=True) if weight]
        weights = [weight for weight in weights if weight]
    limit = min(section.max_length, loaded.context)
    token = refusal_token_id(loaded, section.refusal_token)
    rendered = render_examples(loaded.tokenizer, examples, limit)
    if token is not None:
        rendered = in_one_token(token, rendered, examples)
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, one in enumerate(examples):
        alike[one.document_id, one.document, one.position, one.system].append(place)
    found = []
    for (document, *_), places in alike.items():
        rows = [Row(rendered[place], weights[place] * len(examples), term_of(examples[place]), examples[place].task) for place in places]
        found.append(group_of(rows, document=document, matched=(groups or {}).get(document, document)))
    widest = max(found, key=lambda group: group.width)
    if widest.width > section.max_batch_tokens:
        raise too_long(widest, section.max_batch_tokens)
    return found, rendered


def _both_sides(examples: Sequence[Example], section: TuningSection) -> None:
    from docward.tuning.losses import BENIGN, DEFENSE, term_of

    there = {term_of(one) for one in examples}
    if DEFENSE not in there:
        raise RecipeError("There are no malicious training examples, so there is nothing to decline. Add malicious documents, or lower dataset.test_share.")
    if BENIGN not in there and section.benign_weight:
        raise RecipeError(
            "There are no benign training examples: a model tuned on refusals alone declines everything. Add sensitive or ordinary documents, "
            "or set tuning.benign_weight to 0 if that is what you want."
        )


def _can_end(loaded: Loaded) -> None:
    tokenizer = loaded.tokenizer
    if tokenizer.eos_token is None and (tokenizer.pad_token is None or not END_OF_TURN & tokenizer.get_added_vocab().keys()):
        raise ModelError(f"The tokenizer of {loaded.name} has no end token, so a model tuned with it would never stop. Set eos_token in tokenizer_config.json.")


def choose_compute(loaded: Loaded, model: Any, groups: Sequence[Group], section: TuningSection) -> tuple[Compute, str]:
    """How rows go through the model, and why not shared where that was wanted and cannot be."""
    from docward.tuning.losses import example_nll
    from docward.tuning.sharing import why_not_shared

    if section.compute == "rows":
        return "rows", ""
    why = why_not_shared(model, groups, lambda one, batch: example_nll(one, batch)[0], pad=loaded.tokenizer.pad_token_id)
    return ("rows", why) if why else ("shared", "")


def _check_fit(loaded: Loaded, model: Any) -> None:
    import torch

    from docward.tuning.trainer import broken_weight

    if not (name := broken_weight(model)):
        return
    own = ((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad and weight.dtype.itemsize > 1)
    bad = next((name for name, weight in own if not bool(torch.isfinite(weight).all())), "")
    for inserted in ("base_model.model.", "token_adapter.", "base_layer."):  # by PEFT
        bad = bad.replace(inserted, "")
    why = f"its weight {bad} holds some, too. Get its files anew, or" if bad else f"it computes some on the training documents, in {loaded.model.dtype}. So"
    raise TuningError(
        f"What was fitted for tuning.refusal_token on {loaded.name} holds values that are no numbers ({name}), so nothing was saved: {why} "
        "choose another model."
    )


def _claimed(loaded: Loaded, groups: Sequence[Group], section: TuningSection, checkpoints: Path, seed: int) -> Claimed:
    """Look at the checkpoints before hours of work are done beside them."""
    from docward.tuning.arguments import trainer_arguments
    from docward.tuning.checkpoints import claim, last_checkpoint

    args = trainer_arguments(section, checkpoints, seed, loaded)
    mine = run_identity(loaded, groups, section, seed) | {"_examples_per_step": examples_per_step(section, args.world_size)}
    first = processes.on_main(lambda: claim(checkpoints, mine))
    return Claimed(args, first["_examples_per_step"], processes.on_main(lambda: last_checkpoint(checkpoints)))


def _train(
    loaded: Loaded,
    model: Any,
    groups: list[Group],
    section: TuningSection,
    claimed: Claimed,
    *,
    run: Path,
    seed: int,
    compute: Compute,
    whole: Any,
    probe: ProbePlan | None,
    progress: Progress,
    clock: Callable[[], float],
) -> None:
    from transformers import PrinterCallback

    from docward.tuning.arguments import settings_fit
    from docward.tuning.planning import plan_steps
    from docward.tuning.probing import Probe
    from docward.tuning.trainer import DefenseTrainer, Log, Steps

    args, start = claimed.args, claimed.start
    objective = _objective(loaded, model, groups, section, claimed.examples_per_step)
    plan = plan_steps(groups, examples_per_step=objective.examples_per_step, epochs=section.num_train_epochs, seed=seed)
    args.max_steps = len(plan)
    steps = Steps(groups, plan, compute=compute, max_batch_tokens=section.max_batch_tokens, pad=loaded.tokenizer.pad_token_id, loss_on=section.loss_on)
    with settings_fit():
        trainer = DefenseTrainer(model=model, args=args, steps=steps, objective=objective)
    trainer.remove_callback(PrinterCallback)  # the library never prints
    trainer.add_callback(Log(run / "training.jsonl", trainer, clock, progress))
    probing = None
    if probe is not None:
        how = {"save": lambda folder: _keep(loaded, model, trainer, folder), "whole": whole, "clock": clock, "progress": progress}
        probing = Probe(loaded, probe, trainer, path=run / "probes.jsonl", **how)
        trainer.add_callback(probing)
    trainer.resumed_from = start
    if not (probing and start and probing.over_at(int(start.name.split("-")[1]))):
        _run_trainer(trainer, start, run / "checkpoints")
    _save(loaded, model, trainer, probing, run / (ADAPTER if section.use_peft else MODEL))


def _run_trainer(trainer: Any, start: Path | None, checkpoints: Path) -> None:
    from docward.tuning.checkpoints import cannot_write

    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except DocwardError:
        raise
    except Exception as error:  # DeepSpeed's are of no kind but their own
        if start is not None and not trainer.begun:
            raise TuningError(
                f"Cannot go on from {start}: {str(error).rstrip('.')}. Launch as this run was launched before, or delete {checkpoints} to start tuning afresh."
            ) from error
        if cannot_write(error):
            raise StorageError(f"Cannot write a checkpoint under {checkpoints}: {error}. Free some space and run the same command again.") from error
        raise


def _save(loaded: Loaded, model: Any, trainer: Any, probing: Any, folder: Path) -> None:
    """Write what was learned: the best probed state, else the last one."""
    best = probing.best() if probing else None
    if best is None:
        _keep(loaded, model, trainer, folder)
    elif processes.rank() == 0:
        whole_folder(folder, lambda draft: shutil.copytree(best, draft, dirs_exist_ok=True))
    trainer.accelerator.wait_for_everyone()


def _keep(loaded: Loaded, model: Any, trainer: Any, folder: Path) -> None:
    """Write the state of the model in tuning; all processes must call it, since each may hold a part, and process 0 writes."""
    from docward.tuning.adapters import gathered, save_tuned

    trainer.check_weights()
    weights = gathered(trainer.model_wrapped, deepspeed=trainer.is_deepspeed_enabled) if trainer.sharded else None
    if processes.rank() == 0:
        save_tuned(loaded, model, folder, weights=weights)


def examples_per_step(section: TuningSection, world_size: int) -> int:
    """Examples that one optimizer step holds, over all processes and accumulation, as Trainer counts them."""
    return section.per_device_train_batch_size * section.gradient_accumulation_steps * world_size


def run_identity(loaded: Loaded, groups: Sequence[Group], section: TuningSection, seed: int) -> dict[str, Any]:
    """What a run's checkpoints depend on: all settings but those that are FREE."""
    settings = section.model_dump(mode="json", exclude=set(FREE))
    rows = (f"{row.factor:.9e} {row.rendered.ids}" for group in groups for row in group.rows)
    return {"model": loaded.name, "weights": loaded.fingerprint, "data": text_hash(*rows), "seed": seed} | settings


def _objective(loaded: Loaded, model: Any, groups: Sequence[Group], section: TuningSection, per_step: int) -> Any:
    from docward.tuning.losses import BENIGN
    from docward.tuning.refusal_token import refusal_token_id
    from docward.tuning.trainer import Objective

    objective = Objective(per_step, section.decision_weight, 0.0, section.loss_on, refusal_token=refusal_token_id(loaded, section.refusal_token))
    rows = [row for group in groups for row in group.rows]
    tokens = sum(len(row.rendered.ids) - row.rendered.answer_start for row in rows if row.term == BENIGN)
    if not section.anchor_weight or not tokens:
        return objective
    return replace(objective, anchor_factor=section.anchor_weight * len(rows) / tokens, untuned=model.disable_adapter)
