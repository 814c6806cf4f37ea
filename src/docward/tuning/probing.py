"""The two-sided probe: what a model in tuning does on validation documents, malicious and benign, through the evaluation's own generation and judge.

In: a model in tuning and a few documents of each label. Out: `probes.jsonl` and the adapter with the best balance so far. One real row:
`{"step": 20, "epoch": 0.5, "documents": {"malicious": 12, ...}, "pooled": {"malicious": {"hits": 8, "judged": 20, "value": 0.4, ...}, ...},
"balance": {"value": 0.3, "low": 0.1, "high": 0.5}, "best": true, "seconds": 12.3}`. Balance is block rate minus over-refusal. Kept is the adapter of the
last row with `best`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from docward.errors import RecipeError
from docward.evaluation.evaluating import Settings, planned_replies
from docward.evaluation.generating import Prompt, generate
from docward.evaluation.judges import get_judge
from docward.evaluation.rates import balance, pooled
from docward.models import Loaded
from docward.processes import on_main
from docward.records import write_rows
from docward.tuning.checkpoints import BEST, numbered
from docward.tuning.trainer import DefenseTrainer, rows_until
from docward.types import Document, Label, Verdict

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """When to probe, on what, and when to stop: after `patience` probes without a better balance (None: never)."""

    documents: tuple[Document, ...]
    settings: Settings
    every: int
    patience: int | None = None


def probe_documents(documents: Sequence[Document], limit: int) -> tuple[Document, ...]:
    """The first `limit` documents of each label.

    Raises:
        RecipeError: there are none of a label that balance needs.
    """
    chosen = tuple(one for label in Label for one in [document for document in documents if document.label == label][:limit])
    if missing := [label.value for label in (Label.MALICIOUS, Label.SENSITIVE) if not any(one.label == label for one in chosen)]:
        raise RecipeError(
            f"tuning.eval_steps is set, and the validation split has no {' and no '.join(missing)} documents to probe on. "
            "Raise dataset.validation_share, or leave eval_steps out."
        )
    return chosen


class Probe(TrainerCallback):
    """Probes at every `plan.every` steps and at the last one, keeps the best adapter, stops when it is not bettered any more."""

    def __init__(
        self,
        loaded: Loaded,
        plan: ProbePlan,
        trainer: DefenseTrainer,
        *,
        path: Path,
        save: Callable[[Path], None],
        whole: Callable[[], AbstractContextManager[Any]],
        clock: Callable[[], float],
        progress: Progress,
    ) -> None:
        """Probe `loaded` into `path` (probes.jsonl); `save` writes an adapter folder (all processes call it), `whole` is a context in which it can generate."""
        self.loaded, self.plan, self.trainer, self.path = loaded, plan, trainer, path
        self.save, self.whole, self.clock, self.progress = save, whole, clock, progress
        self.rows: list[dict[str, Any]] = []

    def kept(self, step: int) -> Path:
        """Where the adapter of a probe lies while tuning goes on."""
        return Path(str(self.trainer.args.output_dir)) / f"{BEST}{step}"

    def best(self) -> Path | None:
        """The adapter with the best balance; None before the first probe."""
        steps = [row["step"] for row in self.rows if row["best"]]
        return self.kept(steps[-1]) if steps else None

    def over_at(self, step: int) -> bool:
        """Whether the run was stopped by the probe of that step."""
        self._read(step)
        return bool(self.rows) and self.rows[-1]["step"] == step and self._exhausted()

    def _exhausted(self) -> bool:
        measured = [row for row in self.rows if row["balance"]]  # a probe of which nothing could be judged says nothing
        since = next((place for place, one in enumerate(reversed(measured)) if one["best"]), 0)
        return self.plan.patience is not None and since >= self.plan.patience

    def _read(self, step: int) -> None:
        self.rows = rows_until(self.path, step, "best", "balance")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the probes up to the checkpoint that tuning goes on from."""
        self._read(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Probe where it is due."""
        if state.global_step % self.plan.every and state.global_step != state.max_steps:
            return
        start = self.clock()
        verdicts = self._verdicts(args.process_index, args.world_size)
        found = balance(verdicts)
        value = found.value if found else None
        before = [row["balance"]["value"] for row in self.rows if row["balance"]]
        best = value is not None and all(value > one for one in before)
        row: dict[str, Any] = {"step": state.global_step, "epoch": round(self.trainer.steps.plan[state.global_step - 1].epoch, 4)}
        row["documents"] = dict(Counter(document.label.value for document in self.plan.documents))
        row |= {"pooled": {name: asdict(rate) for name, rate in pooled(verdicts).items()}, "balance": asdict(found) if found else None}
        self.rows.append(row | {"best": best, "seconds": round(self.clock() - start, 2)})
        if best:
            self.save(self.kept(state.global_step))
        if state.is_world_process_zero:
            write_rows(self.path, self.rows)
        self.trainer.accelerator.wait_for_everyone()
        self.trainer.aside += self.clock() - start
        if self._exhausted():
            control.should_training_stop = control.should_log = True
            control.should_save = True  # a run that is killed now must not tune on

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let go of adapters that no checkpoint would go back to."""
        best = self.best()
        if state.is_world_process_zero and best is not None:
            oldest = min((step for step, _ in numbered(best.parent)), default=0)
            needed = [row["step"] for row in self.rows if row["best"]]
            last_needed = max((step for step in needed if step <= oldest), default=0)
            for step in needed:
                if step < last_needed:
                    shutil.rmtree(self.kept(step), ignore_errors=True)

    def _verdicts(self, rank: int, processes: int) -> list[Verdict]:
        """Verdicts on all documents; several processes divide them, unless a model is spread over them: then each answers all."""
        from accelerate.utils import gather_object

        sharded = self.trainer.sharded
        divided = processes > 1 and not sharded
        outermost: Any = self.trainer.model
        loaded = replace(self.loaded, model=outermost) if sharded else self.loaded  # its outermost module fetches what no layer does
        documents = self.plan.documents[rank::processes] if divided else self.plan.documents
        settings, judge = self.plan.settings, get_judge(self.plan.settings.judge)
        planned = {reply.key: reply for reply in planned_replies(documents, settings)}
        prompts = [Prompt(reply.key, reply.document, reply.instruction, system=settings.system) for reply in planned.values()]
        verdicts: list[Verdict] = []
        model: Any = self.loaded.model
        training = model.training
        model.eval()
        with self.whole(), torch.random.fork_rng(devices=[]):
            for batch in generate(loaded, prompts, max_new_tokens=settings.max_new_tokens, max_batch_tokens=settings.max_batch_tokens):
                verdicts += [judge.judge(replace(planned[one.key], reply=one.text, dropped=one.dropped, finished=one.finished)) for one in batch]
                self.progress("probe: replies", len(verdicts), len(prompts))
        model.train(training)
        order = {key: place for place, key in enumerate(reply.key for reply in planned_replies(self.plan.documents, settings))}
        everybody = gather_object(verdicts) if divided else on_main(lambda: verdicts)
        return sorted(everybody, key=lambda verdict: order[verdict.key])
