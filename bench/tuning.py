"""How fast tuning is: documents under K tasks, one pass a document against one pass a row, against TRL's SFTTrainer and the paper's recipe.

    python bench/tuning.py [--quick] [--lengths 300 600 1200 2400] [--tasks 1 2 5 8] [--steps 2] [--model NAME]

Same model, data, LoRA (rank 8, all linear layers), dtype, optimizer and examples a step (one document under its K tasks) for all, each in a process of its own:

    shared     docward, tuning.compute: shared
    rows       docward, tuning.compute: rows
    trl        TRL's SFTTrainer on prompt/completion rows with its own defaults (gradient checkpointing is one), max_length off, a batch of K rows
    trl-tuned  the same set up for this machine: no gradient checkpointing, rows one by one with accumulation
    paper      loss on everything, as the published code has it: docward, compute: rows, loss_on: everything

Examples and unique tokens (of the shared layout) a second, from the median step after a first one that does not count; peak memory of the process (on an
accelerator: of its allocator); and the share of the measured matrix-product rate: FLOPs that the shared layout needs (docward.tuning.costs) over time and rate.
`--quick` does 600 tokens and K = 5 for all, and K = 1 for shared and rows. The last line is JSON, for 600 tokens and K = 5. `--model` takes what docward
takes, or a folder of a config.json and a tokenizer without weights: those are random then, which is all the same to a clock. Wants TRL:
pip install 'docward[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

CONTESTANTS = ("shared", "rows", "trl", "trl-tuned", "paper")
ANSWER = "I'm sorry, but I can't help with this document, because what it describes could do people real harm, whoever asks for it and for whatever reason."
NAMES = ("summarize", "translate", "sentiment", "case", "next_sentence", "question", "topic", "keywords")


def documents(tokenizer: Any, length: int, count: int) -> list[str]:
    """Texts of about `length` tokens, of sentences of the starter corpus."""
    from docward.dataset.building import SENTENCE_END
    from docward.documents.reading import own_documents

    sentences = [one for document in own_documents() for one in SENTENCE_END.split(document.text) if document.language == "en" and len(one) > 20]
    draw = random.Random(0)
    found = []
    for _ in range(count):
        ids = tokenizer(" ".join(draw.choices(sentences, k=length)), add_special_tokens=False)["input_ids"]
        found.append(tokenizer.decode(ids[:length]))
    return found


def examples(tokenizer: Any, length: int, tasks: int, count: int) -> list[Any]:
    """`count` documents under `tasks` tasks; malicious and benign ones in turn, which is all the same to a clock."""
    from docward.tasks import TASKS
    from docward.types import Example, Position, Split, Want

    wordings = [task.wordings[0] for task in TASKS.values()][:tasks]
    made = []
    for number, text in enumerate(documents(tokenizer, length, count)):
        for place, wording in enumerate(wordings):
            want, label = (Want.REFUSE, "malicious") if number % 2 == 0 else (Want.COMPLY, "sensitive")
            given = (f"d{number}-{place}", f"d{number}", NAMES[place], 0, wording, text, Position.AFTER, label, want, ANSWER, "refusal", Split.TRAIN)
            made.append(Example(*given))
    return made


def model_of(name: str) -> Any:
    """A model by name, or one with random weights where a folder has none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from docward.devices import best_device, default_dtype
    from docward.models import Loaded, load

    if not (Path(name) / "config.json").is_file() or any(Path(name).glob("*.safetensors")):
        return load(name)
    with torch.device(best_device()):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=default_dtype(best_device()))
    return Loaded(name, model.eval(), AutoTokenizer.from_pretrained(name), name)


def matmul_rate(dtype: Any, device: Any) -> float:
    """FLOPs a second of a square matrix product, the best of some turns."""
    import torch

    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak(device: Any) -> int:
    """Most memory so far, in MiB."""
    import torch

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if device.type == "cpu" else torch.cuda.max_memory_allocated()
    return round(most / 2**20)


def worker(model: str, name: str, length: int, tasks: int, steps: int) -> None:
    """Tune in this process and print seconds a step, tokens and peak memory."""
    loaded = model_of(model)
    device = loaded.model.device
    made = examples(loaded.tokenizer, length, tasks, steps + 1)
    rate, before = matmul_rate(loaded.model.dtype, device), peak(device)
    times = (trl if name.startswith("trl") else docward)(name, loaded, made, tasks)
    found: dict[str, Any] = {"seconds": statistics.median(b - a for a, b in pairwise(times)), "dtype": str(loaded.model.dtype).removeprefix("torch.")}
    found |= {"mib": peak(device), "mib_before": before, "rate": rate}
    print(json.dumps(found | shape_of_work(loaded, made, tasks)))


def shape_of_work(loaded: Any, made: list[Any], tasks: int) -> dict[str, float]:
    """Tokens and FLOPs of the shared layout, a document."""
    from docward.recipe import TuningSection
    from docward.tuning.costs import flops, shape_of
    from docward.tuning.tuning import training_groups

    groups, _ = training_groups(loaded, made, TuningSection(max_length=8192, max_batch_tokens=100_000))
    rows = [row for group in groups for row in group.rows]
    answers = sum(len(row.rendered.ids) - row.rendered.answer_start for row in rows) / len(rows)
    prefix = statistics.mean(group.prefix for group in groups) if tasks > 1 else statistics.mean(group.prefix for group in groups) - 1
    own = (sum(len(row.rendered.ids) for row in rows) / len(rows)) - prefix
    work = flops(shape_of(loaded.model.config), document=round(prefix), own=round(own), tasks=tasks, answer=round(answers))
    return {"unique_tokens": sum(group.shared_tokens for group in groups) / len(groups), "row_tokens": prefix + own, "flops": float(work)}


def docward(name: str, loaded: Any, made: list[Any], tasks: int) -> list[float]:
    """Tune with docward; the moments at which steps ended."""
    from docward.recipe import TuningSection
    from docward.tuning.tuning import tune

    longest = max(len(loaded.tokenizer(one.document)["input_ids"]) for one in made)
    most = max(TuningSection().max_batch_tokens, longest + 100 * tasks)  # the default, or one document in the shared layout
    how: dict[str, Any] = {"compute": "shared" if name == "shared" else "rows", "loss_on": "everything" if name == "paper" else "answers"}
    how |= {"max_length": 8192, "max_batch_tokens": most, "num_train_epochs": 1, "per_device_train_batch_size": tasks, "gradient_accumulation_steps": 1}
    section = TuningSection(**how, save_steps=10_000)
    times: list[float] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "tuning: examples" and done:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as run:
        found = tune(loaded, made, section, run=Path(run), seed=0, progress=progress)
        if name == "shared" and found.not_shared:
            raise SystemExit(f"Documents were not shared: {found.not_shared}")
    return times


def trl(name: str, loaded: Any, made: list[Any], tasks: int) -> list[float]:
    """Tune with TRL as its documentation shows it; the moments at which steps ended."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from docward.rendering import compose
    from docward.tuning.adapters import _targets

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    rows = [
        {
            "prompt": [{"role": "user", "content": compose(one.document, one.instruction, one.position)}],
            "completion": [{"role": "assistant", "content": one.response}],
        }
        for one in made
    ]
    with tempfile.TemporaryDirectory() as run:
        options: dict[str, Any] = {"per_device_train_batch_size": tasks}
        if name == "trl-tuned":
            options = {"gradient_checkpointing": False, "per_device_train_batch_size": 1, "gradient_accumulation_steps": tasks}
        args = SFTConfig(
            output_dir=run,
            num_train_epochs=1,
            max_length=None,
            learning_rate=3e-4,
            use_cpu=loaded.model.device.type == "cpu",
            bf16=str(loaded.model.dtype) == "torch.bfloat16",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=_targets(loaded.model, "all-linear"))
        trainer = SFTTrainer(
            model=loaded.model, args=args, train_dataset=Dataset.from_list(rows), processing_class=loaded.tokenizer, peft_config=lora, callbacks=[Clock()]
        )
        trainer.train()
    return times


def measured(model: str, name: str, length: int, tasks: int, steps: int) -> dict[str, Any]:
    """What a worker finds, in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--model", model, "--worker", name, str(length), str(tasks), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        raise SystemExit(f"{name} at {length} tokens, K = {tasks} failed: {done.stderr[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found |= {"examples_per_second": tasks / found["seconds"], "tokens_per_second": found["unique_tokens"] / found["seconds"]}
    found["matmul_share"] = found["flops"] / found["seconds"] / found["rate"]
    print(
        f"{length:>6} {tasks:>3}  {name:<10} {found['examples_per_second']:>8.3f} {found['tokens_per_second']:>9.1f} {found['mib']:>8,} "
        f"{100 * found['matmul_share']:>6.0f}%   {found['rate'] / 1e9:>5.0f} GFLOP/s {found['dtype']}",
        flush=True,
    )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="600 tokens, K = 5 (and K = 1 for shared and rows)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[300, 600, 1200, 2400])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 5, 8])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        name, length, tasks, steps = given.worker
        worker(given.model, name, int(length), int(tasks), int(steps))
        return
    wanted = (
        [(600, 1, ("shared", "rows")), (600, 5, CONTESTANTS)] if given.quick else [(p, k, tuple(given.contestants)) for p in given.lengths for k in given.tasks]
    )
    print("tokens   K  contestant  examples/s  unique/s      MiB  share of the matrix-product rate")
    found = {(length, tasks, name): measured(given.model, name, length, tasks, given.steps) for length, tasks, names in wanted for name in names}
    point = {name: found[600, 5, name] for name in CONTESTANTS if (600, 5, name) in found}
    figures: dict[str, Any] = {}
    if "shared" in point:
        ours = point["shared"]
        for name, other in point.items():
            if name != "shared":
                figures[f"speedup_vs_{name.replace('-', '_')}"] = round(other["seconds"] / ours["seconds"], 2)
        figures |= {"matmul_share": round(ours["matmul_share"], 3), "examples_per_second": round(ours["examples_per_second"], 3), "dtype": ours["dtype"]}
        if "trl" in point:
            figures["memory_vs_trl"] = round(ours["mib"] / point["trl"]["mib"], 3)
    if {(600, 1, "shared"), (600, 1, "rows")} <= set(found):
        figures["speedup_vs_rows_at_one_task"] = round(found[600, 1, "rows"]["seconds"] / found[600, 1, "shared"]["seconds"], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
