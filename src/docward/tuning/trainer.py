"""Examples become a LoRA adapter: `transformers.Trainer` with our loss, our order of rows, and checkpoints that survive a kill.

In: a loaded model, training examples, settings. Out: an adapter folder and `training.jsonl`. One real row of the log:
`{"step": 10, "epoch": 0.3, "loss": 2.9, "defense": 1.2, "benign": 1.5, "general": 1.1, "learning_rate": 0.0002, "seconds": 31.0}`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from docward.errors import TuningError
from docward.records import write_rows
from docward.rendering import Rendered
from docward.tuning.losses import answer_nll, term_of
from docward.types import Example

# A mean loss above this many times that of guessing uniformly over the vocabulary is no learning any more.
EXPLODED = 3.0
FINISHED = "finished"  # a checkpoint without this file was cut short by a kill


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: token ids, where the answer starts, its factor in the loss, its term, and its group (matched documents under one task)."""

    rendered: Rendered
    factor: float
    term: str
    group: str
    states: torch.Tensor | None = None  # (length, size): what enters the first adapted layer, where the layers below are frozen


@dataclass(slots=True)
class Window:
    """Sums since the last log: weighted loss and steps, and plain nll by term."""

    loss: float = 0.0
    batches: int = 0
    terms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Rows(Dataset[Row]):
    """Training rows as a map-style data set."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Hold `rows`."""
        self.rows = list(rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        """One row."""
        return self.rows[place]


def rows_of(examples: Sequence[Example], rendered: Sequence[Rendered], factors: Sequence[float], groups: Sequence[str]) -> Rows:
    """Join examples with what the renderer and the loss say of them; `factors` are coefficients times the number of rows."""
    joined = zip(examples, rendered, factors, groups, strict=True)
    return Rows([Row(one, factor, term_of(example), f"{group}|{example.task}") for example, one, factor, group in joined])


class MatchedSampler(Sampler[int]):
    """A seeded shuffle, another in each epoch, that keeps matched documents next to each other: they differ in intent only, and land in one step."""

    def __init__(self, groups: Sequence[str], seed: int) -> None:
        """Sample rows whose group names are `groups`."""
        self.groups, self.seed, self.epoch = list(groups), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; accelerate calls this, so that a resumed run sees the same order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Row numbers in order."""
        members: dict[str, list[int]] = defaultdict(list)
        for place, group in enumerate(self.groups):
            members[group].append(place)
        order = sorted(members)
        Random(f"{self.seed}|{self.epoch}").shuffle(order)
        return iter([place for group in order for place in members[group]])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.groups)


def collate(rows: Sequence[Row], pad: int) -> dict[str, Any]:
    """Right-padded batch: ids, attention mask, answer mask (rows, length), factors (rows,) and terms."""
    width = max(len(row.rendered.ids) for row in rows)
    states = [row.states for row in rows if row.states is not None]
    return ({"inputs_embeds": torch.nn.utils.rnn.pad_sequence(states, batch_first=True)} if states else {}) | {
        "input_ids": torch.tensor([row.rendered.ids + [pad] * (width - len(row.rendered.ids)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row.rendered.ids) + [0] * (width - len(row.rendered.ids)) for row in rows]),
        "answer_mask": torch.tensor([row.rendered.answer_mask + [False] * (width - len(row.rendered.ids)) for row in rows]),
        "factors": torch.tensor([row.factor for row in rows], dtype=torch.float32),
        "terms": [row.term for row in rows],
    }


class DefenseTrainer(Trainer):
    """The Trainer with the loss of `docward.tuning.losses`."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the nominal batch itself: short last batches then weigh what they hold, no more

    def __init__(self, *, seed: int, pad: int, decision_weight: float, **options: Any) -> None:
        """Take TrainingArguments and a `Rows` data set as Trainer does; `pad` fills short rows."""
        super().__init__(data_collator=lambda rows: collate(rows, pad), **options)
        self.order_seed, self.decision_weight, self.window = seed, decision_weight, Window()
        self.guessing = math.log(options["model"].config.vocab_size)  # nats per token of a uniform guess

    def _get_train_sampler(self, train_dataset: Any = None) -> MatchedSampler:
        rows: Any = train_dataset or self.train_dataset
        return MatchedSampler([row.group for row in rows.rows], self.order_seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The batch's part of L: sum of factor * nll over its rows, divided by the nominal number of rows in a step."""
        nll = answer_nll(model, inputs, decision_weight=self.decision_weight)
        for term, value in zip(inputs["terms"], nll.detach().tolist(), strict=True):
            self.window.terms[term].append(value)
        self._check(nll.detach().mean().item())
        loss = (inputs["factors"] * nll).sum() / (self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)
        self.window.loss += loss.item()
        return (loss, None) if return_outputs else loss

    def _check(self, value: float) -> None:
        if not math.isfinite(value) or value > EXPLODED * self.guessing:
            what = f"is {value}" if not math.isfinite(value) else f"exploded to {value:.1f} (guessing gives {self.guessing:.1f})"
            raise TuningError(
                f"The loss {what} at step {self.state.global_step + 1}, so tuning stopped; checkpoints before it are kept. "
                f"Lower tuning.learning_rate (now {self.args.learning_rate:g}) or raise tuning.warmup_steps, and start in a new folder."
            )


class Log(TrainerCallback):
    """Writes training.jsonl, marks finished checkpoints, tells progress."""

    def __init__(self, path: Path, trainer: Callable[[], DefenseTrainer], clock: Callable[[], float], progress: Callable[[str, int, int], None]) -> None:
        """Log to `path`; `trainer` is asked for its window of sums."""
        self.path, self.trainer, self.clock, self.progress = path, trainer, clock, progress
        self.rows: list[dict[str, Any]] = []
        self.start = self.before = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the rows up to the checkpoint that tuning goes on from."""
        known = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()] if self.path.is_file() else []
        self.rows = [row for row in known if row["step"] <= state.global_step]
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.start = self.clock()
        self.progress("tuning steps", state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell progress."""
        self.progress("tuning steps", state.global_step, state.max_steps)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Add a row of means since the last one."""
        window = self.trainer().window
        if not logs or "loss" not in logs or not window.terms:
            return
        steps = state.global_step - (self.rows[-1]["step"] if self.rows else 0)
        means = {term: sum(values) / len(values) for term, values in window.terms.items()}
        row: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), "loss": window.loss / max(1, steps)}
        row |= {name: means.get(name) for name in ("defense", "benign", "general")}
        self.rows.append(row | {"learning_rate": logs.get("learning_rate"), "seconds": round(self.before + self.clock() - self.start, 2)})
        write_rows(self.path, self.rows)
        self.trainer().window = Window()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint as whole."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for file in checkpoint.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        (checkpoint / FINISHED).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint; those that a kill cut short are removed."""
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / FINISHED).is_file():
            whole.append((int(checkpoint.name.split("-")[1]), checkpoint))
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(whole)[1] if whole else None
