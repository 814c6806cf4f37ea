"""`transformers.Trainer` with our loss, our order of steps, and checkpoints that survive a kill.

In: groups of rows, a plan of steps. Out: a tuned model and `training.jsonl`. What Trainer takes for one batch is one optimizer step's share of this process, as
a list of passes; so accumulation, padding and the number of processes change nothing about which examples a step holds. One real row of the log:
`{"step": 10, "epoch": 0.3, "loss": 2.9, "defense": 1.2, "benign": 1.5, "general": 1.1, "anchor": null, "learning_rate": 0.0002, "examples": 150,
"examples_per_second": 1.8, "seconds": 31.0}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from docward.errors import StorageError, TuningError
from docward.processes import gathered
from docward.tuning.arguments import settings_fit
from docward.tuning.checkpoints import WINDOW, cannot_write, mark_finished
from docward.tuning.losses import BENIGN, DEFENSE, GENERAL, anchor_kl, example_nll
from docward.tuning.packing import Compute, Group, LossOn, fit_passes, pass_of, size_of
from docward.tuning.planning import Step, share_out

# A mean loss above this many times that of guessing uniformly over the vocabulary is no learning any more.
EXPLODED = 3.0
TERMS = (DEFENSE, BENIGN, GENERAL)
SUMS = ("loss", "examples", "tokens", "anchor", "anchored", *(f"{term} {what}" for term in TERMS for what in ("nll", "rows")))


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a run. `anchor_factor` multiplies each benign answer token's KL; `examples_per_step` is the nominal step that losses are divided by."""

    examples_per_step: int
    decision_weight: float = 0.0
    anchor_factor: float = 0.0
    loss_on: LossOn = "answers"
    untuned: Callable[[], AbstractContextManager[Any]] = nullcontext
    refusal_token: int | None = None


class Steps(Dataset[list[dict[str, Any]]]):
    """A run's steps, as the passes that one of several processes takes.

    Every process makes as many passes in a step as the one with most; those that are short of one repeat the shortest document with weight 0, since
    processes that share gradients or weights must keep step.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        plan: Sequence[Step],
        *,
        compute: Compute,
        max_batch_tokens: int,
        pad: int,
        loss_on: LossOn,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Hold the data and the plan; `rank` is this process's number of `processes`."""
        self.groups, self.plan, self.compute, self.most = groups, plan, compute, max_batch_tokens
        self.pad, self.loss_on, self.rank, self.processes = pad, loss_on, rank, processes

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.plan)

    def __getitem__(self, place: int) -> list[dict[str, Any]]:
        """The passes of one step."""
        groups = [self.groups[number] for number in self.plan[place].groups]
        shares = share_out([size_of([group], self.compute) for group in groups], self.processes)
        passes = [fit_passes([groups[number] for number in share], self.most, self.compute) for share in shares]
        mine = [pass_of(one, compute=self.compute, pad=self.pad, loss_on=self.loss_on) for one in passes[self.rank]]
        if missing := max(map(len, passes)) - len(mine):
            idle = min((one for share in passes for some in share for one in some), key=lambda group: group.shared_tokens)
            mine += [pass_of([idle], compute=self.compute, pad=self.pad, loss_on=self.loss_on, weight=0.0)] * missing
        return mine


@dataclass(slots=True)
class Window:
    """Sums since the last row of the log, over all processes."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))

    def add(self, sums: Sequence[float]) -> None:
        """Add the sums of one step, in the order of SUMS."""
        self.steps += 1
        for name, value in zip(SUMS, sums, strict=True):
            self.sums[name] += value

    def mean(self, total: str, count: str) -> float | None:
        """One sum over another, None where nothing was counted."""
        return self.sums[total] / self.sums[count] if self.sums[count] else None

    def means(self) -> dict[str, float | None]:
        """What a row of the log says of the losses."""
        return (
            {"loss": self.sums["loss"] / max(1, self.steps)}
            | {term: self.mean(f"{term} nll", f"{term} rows") for term in TERMS}
            | {"anchor": self.mean("anchor", "anchored")}
        )


class DefenseTrainer(Trainer):
    """The Trainer with the loss of `docward.tuning.losses`."""

    def __init__(self, *, steps: Steps, objective: Objective, **options: Any) -> None:
        """Take a model and TrainingArguments as Trainer does."""
        super().__init__(train_dataset=steps, **options)
        self.steps, self.window = steps, Window()
        self.objective: Objective = objective
        steps.rank, steps.processes = self.args.process_index, self.args.world_size
        self.guessing = math.log(options["model"].config.get_text_config().vocab_size)  # nats per token of a uniform guess

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight (FSDP, ZeRO stage 3)."""
        wrapped: Any = self.model_wrapped
        return bool(self.is_fsdp_enabled or (self.is_deepspeed_enabled and wrapped.zero_optimization_partition_weights()))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps in order; each process makes its own share, so nothing is left to divide."""
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=_only)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's, with its complaints about settings as ours."""
        with settings_fit():
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Trainer's, with its complaints about settings as ours."""
        with settings_fit():
            return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step's gradients: all passes of this process, shared with others at the last one."""
        self.begun = True
        model.train()
        sums = torch.zeros(len(SUMS), dtype=torch.float64)
        for place, batch in enumerate(inputs):
            last = place == len(inputs) - 1
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss, found = self._pass(model, self._prepare_inputs(batch))
                self.accelerator.backward(loss * self.args.world_size)  # processes average gradients, the loss is a sum
            sums += found
        total: torch.Tensor = self.accelerator.reduce(sums.to(self.args.device, torch.float32), reduction="sum") if self.args.world_size > 1 else sums
        self.window.add(total.tolist())
        self._check(total)
        return total[0].to(self.args.device, torch.float32)

    def _pass(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of one pass, and its part of the sums (SUMS)."""
        objective = self.objective
        nll, logits = example_nll(model, batch, decision_weight=objective.decision_weight, refusal_token=objective.refusal_token)
        loss = (batch["factors"] * nll).sum()
        sums = dict.fromkeys(SUMS, 0.0)
        if objective.anchor_factor:
            kl = anchor_kl(self.accelerator.unwrap_model(model), objective.untuned, batch, logits, in_step=self.sharded)
            loss = loss + objective.anchor_factor * float(batch["counted"]) * kl.sum()
            sums["anchor"] = float(kl.detach().sum())
            sums["anchored"] = float(sum(batch["answer"][batch["owner"] == place].sum() for place, term in enumerate(batch["terms"]) if term == BENIGN))
        loss = loss / objective.examples_per_step
        for term, value in zip(batch["terms"], nll.detach().tolist(), strict=True):
            sums[f"{term} nll"] += value
            sums[f"{term} rows"] += 1
        sums |= {"loss": loss.item(), "examples": len(batch["terms"]), "tokens": batch["tokens"]}
        return loss, torch.tensor(list(sums.values()), dtype=torch.float64) * float(batch["counted"])

    def _check(self, sums: torch.Tensor) -> None:
        of = dict(zip(SUMS, sums.tolist(), strict=True))
        value = sum(of[f"{term} nll"] for term in TERMS) / max(1.0, of["examples"])
        if not math.isfinite(value) or not math.isfinite(of["loss"]) or value > EXPLODED * self.guessing:
            what = f"is {value}" if not math.isfinite(value) else f"exploded to {value:.1f} (guessing gives {self.guessing:.1f})"
            raise self._stopped(f"The loss {what} at step {self.state.global_step + 1}")

    def _stopped(self, why: str) -> TuningError:
        return TuningError(
            f"{why}, so tuning stopped; checkpoints before it are kept. "
            f"Lower tuning.learning_rate (now {self.args.learning_rate:g}) or raise tuning.warmup_steps, and start in a new folder."
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's, of all processes' gradients. It asks before the optimizer steps; DeepSpeed has stepped by then, but saved nothing, and may say -1."""
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and not 0 <= norm < math.inf and self.accelerator.mixed_precision != "fp16":  # whose scaler leaves such a step out, and goes on
            raise self._stopped(f"The gradient is {float(norm)} at step {self.state.global_step + 1}")
        return norm

    def check_weights(self) -> None:
        """Raise a TuningError where a trained weight is no finite number any more; all processes must call it."""
        if name := broken_weight(self.model):
            raise self._stopped(f"The weight {name} holds values that are no numbers after step {self.state.global_step}")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_weights()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_finished(str(self.args.output_dir), self.state.global_step, {"steps": self.window.steps, "sums": self.window.sums})
        except Exception as error:
            if not cannot_write(error):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StorageError(
                f"Cannot write a checkpoint under {self.args.output_dir}: {said}. Free some space and run the same command again: "
                "it goes on from the checkpoint before."
            ) from error

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        if place := self.resumed_from:
            held = json.loads((place / WINDOW).read_text(encoding="utf-8"))
            self.window = Window(held["steps"], held["sums"])

    resumed_from: Any = None  # the checkpoint's folder, where the run goes on from one
    aside = 0.0  # seconds since the last row of the log that went into something else than tuning
    begun = False  # whether a step was begun: what fails from then on is no fault of that checkpoint


def broken_weight(model: Any) -> str:
    """The name of a trained weight that is not finite everywhere, in any process's part of it; empty if there is none. All processes must call it."""
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    parts = ((name, getattr(weight, "ds_tensor", weight)) for name, weight in trained)  # ZeRO stage 3 holds its part there
    mine = next((name for name, part in parts if not bool(torch.isfinite(part.to_local() if hasattr(part, "to_local") else part).all())), "")
    return next(filter(None, gathered(mine)), "")


def rows_until(path: Path, step: int, *fields: str) -> list[dict[str, Any]]:
    """The rows of a run's log up to a step; a torn last line is left out.

    Raises:
        TuningError: another line is no row with such fields.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if missing := {"step", *fields} - row.keys():
                raise ValueError(f"no {min(missing)}")
            rows += [row] if row["step"] <= step else []
        except (ValueError, TypeError, AttributeError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise TuningError(f"{path}:{number}: not a row that Docward wrote. Move that file away and run the same command again.") from error
    return rows


def _only(items: list[Any]) -> Any:
    return items[0]


class Log(TrainerCallback):
    """Writes training.jsonl and tells progress."""

    def __init__(self, path: Any, trainer: DefenseTrainer, clock: Callable[[], float], progress: Callable[[str, int, int], None]) -> None:
        """Log to `path`; the window of sums is the trainer's."""
        self.path, self.trainer, self.clock, self.progress = path, trainer, clock, progress
        self.rows: list[dict[str, Any]] = []
        self.start = self.before = 0.0
        self.done, plan = [0], trainer.steps
        for step in plan.plan:
            self.done.append(self.done[-1] + sum(len(plan.groups[place].rows) for place in step.groups))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the rows up to the checkpoint that tuning goes on from."""
        self.rows = rows_until(self.path, state.global_step, "seconds")
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.start = self.clock()
        self._tell(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell progress; the last step has a row of the log, wherever it falls."""
        self._tell(state)
        control.should_log |= state.global_step >= state.max_steps

    def _tell(self, state: TrainerState) -> None:
        self.progress("tuning: examples", self.done[state.global_step], self.done[-1])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Add a row of means since the last one."""
        window = self.trainer.window
        if not logs or "loss" not in logs or not window.steps:
            return
        seconds = round(self.before + self.clock() - self.start, 2)
        since = seconds - (self.rows[-1]["seconds"] if self.rows else 0.0) - self.trainer.aside
        row = {"step": state.global_step, "epoch": round(self.trainer.steps.plan[state.global_step - 1].epoch, 4)} | window.means()
        row |= {"learning_rate": logs.get("learning_rate"), "examples": self.done[state.global_step]}
        self.rows.append(row | {"examples_per_second": round(window.sums["examples"] / since, 3) if since > 0 else None, "seconds": seconds})
        self.trainer.window, self.trainer.aside = Window(), 0.0
        if state.is_world_process_zero:
            from docward.records import write_rows

            write_rows(self.path, self.rows)
