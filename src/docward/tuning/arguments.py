"""What `transformers.Trainer` is told: the recipe's settings under Trainer's own names, and what the promises of a run need.

In: the recipe's tuning section. Out: `TrainingArguments`, or an error that names the setting and what is allowed. `check_settings` can be called before any
work is done: a wrong optimizer should not be found out after an hour of building.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from docward import processes
from docward.devices import best_device, default_dtype
from docward.errors import RecipeError
from docward.models import Loaded
from docward.recipe import TuningSection

SAME = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "logging_steps", "save_steps", "report_to")
FIXED: dict[str, Any] = {
    "per_device_train_batch_size": 1,  # of Trainer's batches, which are whole steps
    "save_strategy": "steps",
    "save_total_limit": 2,
    "logging_strategy": "steps",
    "logging_nan_inf_filter": False,  # a NaN must be seen, not averaged away
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}
OURS = {*FIXED, "output_dir", "seed", "data_seed", "use_cpu", "bf16", "max_steps"}
# Options that would do nothing here, or break a run, since its loss, its passes, its order of steps, its checkpoints and its probes are Docward's.
STRAY = {"label_smoothing_factor", "auto_find_batch_size", "ignore_data_skip", "save_only_model", "resume_from_checkpoint", "push_to_hub"}
STRAY |= {"do_train", "do_eval", "do_predict", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "prediction_loss_only"}
STRAY |= {"per_device_eval_batch_size", "bf16_full_eval", "fp16_full_eval", "include_for_metrics", "batch_eval_metrics", "label_names"}
STRAY |= {"use_liger_kernel", "liger_kernel_config", "include_num_input_tokens_seen", "average_tokens_across_devices", "torch_empty_cache_steps"}
STRAY |= {"train_sampling_strategy", "length_column_name"}
STRAY_KINDS = ("eval_", "dataloader_", "hub_")  # what their names begin with
INSTEAD = {"eval": "to probe while tuning: tuning.eval_steps", "best": "to keep the best: tuning.eval_steps", "hub": "to upload it: docward export"}


def trainer_arguments(section: TuningSection, checkpoints: Path, seed: int, loaded: Loaded) -> TrainingArguments:
    """Everything that Trainer is told but the number of steps.

    Raises:
        RecipeError: as `check_settings`, or a value that Trainer refuses.
    """
    check_settings(section)
    ours = FIXED | {
        "output_dir": str(checkpoints),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": loaded.model.device.type == "cpu" and not processes.spread(),
        # a model in bfloat16 with an adapter needs no autocast; all weights in float32 do, where it is the faster one
        "bf16": processes.autocast() or (not section.use_peft and processes.on_main(lambda: str(default_dtype(best_device()))) == "torch.bfloat16"),
        **{name: getattr(section, name) for name in SAME},
        **_checkpointing(section),
    }
    with settings_fit():
        return TrainingArguments(**section.training_arguments, **ours)


def _checkpointing(section: TuningSection) -> dict[str, Any]:
    """Trainer's switch for recomputing activations, by the name that the installed version calls it by."""
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in TrainingArguments.__dataclass_fields__)
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if section.gradient_checkpointing else {}


@contextmanager
def settings_fit() -> Iterator[None]:
    """What transformers or the optimizer has against the settings, as an error about the recipe."""
    try:
        yield
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"The settings under `tuning` do not work with this installation of transformers: {said}") from error


def check_settings(section: TuningSection) -> None:
    """Look at the settings that only the installed transformers can tell right from wrong.

    Raises:
        RecipeError: there is no such optimizer, tracker or option, or the option is not the recipe's to set.
    """
    from transformers.integrations import integration_utils
    from transformers.training_args import OptimizerNames

    trackers: Any = integration_utils
    _one_of("optim", section.optim, [name.value for name in OptimizerNames])
    for name in section.report_to if section.report_to not in (["all"], ["none"]) else []:
        _one_of("report_to", name, list(trackers.INTEGRATION_TO_CALLBACK))
        if name not in trackers.get_available_reporting_integrations() and name != "flyte":  # which transformers never lists
            raise RecipeError(f"tuning.report_to: {name} is not installed here. Install it, or leave it out.")
    options = {field.name for field in fields(TrainingArguments) if field.init}
    stray = STRAY | {name for name in options if name.startswith(STRAY_KINDS)}
    for name in section.training_arguments:
        if name in TuningSection.model_fields:
            raise RecipeError(f"tuning.training_arguments.{name}: it has a key of its own. Set tuning.{name}.")
        if name in OURS:
            raise RecipeError(f"tuning.training_arguments.{name}: Docward sets it itself. Leave it out.")
        if name in stray:
            instead = next((f" ({said})" for part, said in INSTEAD.items() if part in name), "")
            raise RecipeError(f"tuning.training_arguments.{name}: it would not do here what it says. Leave it out{instead}.")
        _one_of("training_arguments", name, options - OURS - stray - set(TuningSection.model_fields), show=False)


def _one_of(key: str, value: str, allowed: Collection[str], *, show: bool = True) -> None:
    if value not in allowed:
        close = [name for name in allowed if name.startswith(value)] or get_close_matches(value, sorted(allowed), n=1, cutoff=0.6)
        there = f"Allowed: {', '.join(allowed)}." if show else "Allowed: the fields of transformers.TrainingArguments."
        raise RecipeError(f"tuning.{key}: there is no {value!r}{f'; did you mean {close[0]!r}?' if close else '.'} {there}")
