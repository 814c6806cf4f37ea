"""Several processes, for real: what is launched gives what one process gives, goes on from what another number of them left, and fails as one.

On the CPU, through gloo. Losses agree to 1e-4 of their value and weights to 1e-4 of their norm, in float32; 1e-6 is what was seen.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from docward import loop, processes
from docward.cli import main as cli
from docward.errors import RecipeError, RunError, TuningError, UsageError
from docward.loop import open_run
from docward.models import load
from docward.recipe import Recipe, TuningSection, dump
from docward.records import write_rows
from docward.tuning.arguments import trainer_arguments
from killed import started
from launched import FlipJudge, Launched, hold
from tiny import some_documents

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4  # of a loss, and of a weight matrix's norm: sums of float32 numbers in another order
SLOW_BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # so that Docward takes float32 on all machines

# Plain gradient descent without clipping: a gradient that is twice as large moves the weights twice as far, which Adam would hide.
EXACT = {"optim": "sgd", "max_grad_norm": 1e6, "learning_rate": 0.3, "compute": "shared", "max_batch_tokens": 550, "anchor_weight": 0.5}
PROBED = {"eval_steps": 2, "eval_documents": 1, "early_stopping_patience": None, "compute": "rows", "learning_rate": 3e-3}


def recipe_of(model: Path, documents: Path, **tuning: Any) -> Recipe:
    values = {
        "model_name_or_path": str(model),
        "documents": [{"path": str(documents)}],
        "dataset": {"tasks": ["summarize", "sentiment"], "max_new_tokens": 8, "general": 2, "validation_share": 0.25, "num_proc": 1},
        "tuning": {"num_train_epochs": 2, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "max_length": 512, "save_steps": 4} | tuning,
    }
    return Recipe.model_validate(values | {"tuning": {"logging_steps": 1, "warmup_steps": 1} | values["tuning"]})


class Place:
    """Runs that begin with the same dataset."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.documents = folder, model, folder / "documents.jsonl"
        write_rows(self.documents, some_documents())
        with open_run(self.recipe(), folder / "built") as run:
            loop.build(run)

    def recipe(self, **tuning: Any) -> Recipe:
        return recipe_of(self.model, self.documents, **tuning)

    def run(self, name: str, **tuning: Any) -> Path:
        """A run that has its dataset, and beside it the recipe as a file."""
        folder = self.folder / name
        shutil.copytree(self.folder / "built", folder)
        for place in (folder / "recipe.yaml", folder.with_suffix(".yaml")):
            place.write_text(dump(self.recipe(**tuning)))
        return folder

    def tuned(self, name: str, **tuning: Any) -> Path:
        """A run that this process has tuned, undisturbed."""
        folder = self.run(name, **tuning)
        tune_here(folder)
        return folder


def tune_here(folder: Path) -> None:
    with open_run(Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text())), folder) as run:
        loop.tune(run)


def stop_here(folder: Path, end: Callable[[], None], error: type[BaseException]) -> None:
    """Tune in this process until `end` raises an error before the seventh step."""
    from docward.tuning.trainer import DefenseTrainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefenseTrainer, "training_step", DefenseTrainer.training_step)  # to be put back
        hold(6, end)
        with pytest.raises(error):
            tune_here(folder)


def words(folder: Path, verb: str = "tune") -> list[str]:
    return [verb, str(folder.with_suffix(".yaml")), "--output-dir", str(folder)]


def launch(folder: Path, verb: str = "tune") -> subprocess.CompletedProcess[str]:
    """By the launcher itself, which takes 20 s."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml")]
    command += ["--num_processes", "2", "--main_process_port", "0", "-m", "docward", *words(folder, verb)]
    environment = os.environ | SLOW_BFLOAT16 | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def launched(folder: Path, **more: str) -> Launched:
    return Launched(words(folder), folder.with_suffix(".said"), **more)


def rows(folder: Path, name: str = "training.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def assert_same_run(found: Path, wanted: Path) -> None:
    """The same losses step by step, which only the same examples in the same steps give, and the same adapter."""
    for row, other in zip(rows(found), rows(wanted), strict=True):
        for name in ("step", "epoch", "examples"):
            assert row[name] == other[name]
        for name in ("loss", "defense", "benign", "general", "learning_rate"):
            assert row[name] == (other[name] and pytest.approx(other[name], rel=CLOSE)), (name, row["step"])
        assert row["anchor"] == (other["anchor"] and pytest.approx(other["anchor"], rel=0.01, abs=1e-6)), "a difference of nearly equal numbers, at first"
    assert_same_adapter(found, wanted)


def assert_same_adapter(found: Path, wanted: Path) -> None:
    mine, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (found, wanted))
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert float((mine[name] - theirs[name]).norm()) <= CLOSE * float(theirs[name].norm()), name


def probes(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(folder, "probes.jsonl")]


def as_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("docward.devices.fast_in_bf16", lambda: False)
    patch.setattr("docward.tuning.probing.get_judge", lambda _: FlipJudge())


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        as_here(patch)
        yield


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("processes"), tiny_folder)


@pytest.fixture(scope="module")
def exact(place: Place) -> Path:
    return place.tuned("exact", **EXACT)


@pytest.fixture(scope="module")
def probed(place: Place) -> Path:
    return place.tuned("probed", **PROBED)


def test_two_processes_give_the_losses_and_the_adapter_of_one(place, exact):
    halved = place.run("exact-2", **EXACT, per_device_train_batch_size=3)
    done = launch(halved)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same_run(halved, exact)
    assert len({round(row["loss"], 3) for row in rows(exact)}) > 3, "nothing is learned, so nothing is tested"


def test_what_two_killed_processes_leave_is_gone_on_from_by_one(place, probed):
    folder = place.run("killed-2", **PROBED, per_device_train_batch_size=3)
    held = folder.with_suffix(".held")
    with launched(folder, FLIP_JUDGE="1", HOLD_AT="6", HELD=str(held)) as two:
        two.wait(lambda: held.exists() and len(rows(folder)) == 6)  # process 1 may be there before process 0 has written of its sixth step
    assert held.exists()
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6], "two steps were made that no checkpoint holds"
    assert sorted(one.name for one in (folder / "checkpoints").glob("checkpoint-*")) == ["checkpoint-4"]
    tune_here(folder)
    assert_same_run(folder, probed)
    assert probes(folder) == probes(probed)


def tune_until_killed(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        as_here(patch)
        hold(6, lambda: os.kill(os.getpid(), signal.SIGKILL))
        tune_here(folder)


def test_what_one_killed_process_leaves_is_gone_on_from_by_two(place, probed):
    folder = place.run("killed-1", **PROBED)
    child = started(__name__, "tune_until_killed", folder)
    child.join(240)
    assert child.exitcode == -signal.SIGKILL
    assert [row["step"] for row in rows(folder)][-1] == 6
    patience = folder.with_suffix(".patience")
    launched(folder, FLIP_JUDGE="1", PATIENCE=str(patience)).finish()
    assert_same_run(folder, probed)
    assert probes(folder) == probes(probed)
    assert patience.read_text() == str(timedelta(days=1)), "they would not have waited for a long build"


def test_an_error_in_a_step_is_not_blamed_on_the_checkpoint_that_was_gone_on_from(place):
    folder = place.run("lost", **EXACT)

    def end() -> None:
        raise RuntimeError("Connection closed by peer")

    for _ in range(2):
        stop_here(folder, end, RuntimeError)
    assert (folder / "checkpoints" / "checkpoint-4").is_dir()


def test_probes_differ_from_each_other_and_the_best_adapter_is_kept(probed):
    found = probes(probed)
    assert [row["step"] for row in found] == [2, 4, 6, 8]
    assert len({json.dumps(row["pooled"]) for row in found}) > 1, "all replies get one verdict, so a lost one would not be seen"
    assert any(rate["unjudged"] for row in found for rate in row["pooled"].values())


def test_weights_in_shards_give_the_adapter_of_one_process(place, exact):
    folder = place.run("fsdp2", **EXACT, per_device_train_batch_size=3)
    launched(folder, config="fsdp2_8gpu", AS_GPUS="1").finish()
    assert_same_run(folder, exact)
    ids = torch.arange(40).reshape(1, -1)
    with torch.no_grad():
        mine, theirs = (load(str(run / "adapter"), dtype="float32").model(ids).logits for run in (folder, exact))
    torch.testing.assert_close(mine, theirs, rtol=CLOSE, atol=CLOSE)


def test_a_fault_of_process_0_ends_all_and_is_said_once(place):
    folder = place.run("other", **EXACT)
    folder.with_suffix(".yaml").write_text(dump(place.recipe(**EXACT, lora_r=3)))
    done = launch(folder)
    assert done.returncode
    assert done.stderr.count("holds another recipe's run (tuning.lora_r: 8 there, 3 now)") == 1, done.stderr[-4000:]
    assert done.stderr.count("Traceback") <= 1, "the launcher's own"


def test_a_fault_of_all_processes_is_said_once(place):
    folder = place.run("whole-loop", **EXACT)
    done = launch(folder, "run")
    assert done.returncode
    assert done.stderr.count("docward run was started as 2 processes") == 1, done.stderr[-4000:]
    assert not (folder / "training.jsonl").exists()


def test_only_process_0_speaks_at_once(monkeypatch, capsys):
    waits: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", waits.append)
    monkeypatch.setattr(sys, "argv", ["docward", "run", "there-is-none.yaml"])
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
    assert waits == [processes.HEAD_START]
    assert "there-is-none.yaml" in capsys.readouterr().err


def test_a_launched_loop_is_refused_and_told_what_to_launch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UsageError, match=r"started as 8 processes.*Launch `docward tune recipe.yaml --output-dir runs/recipe` instead"):
        cli.run(Path("recipe.yaml"))


@pytest.mark.parametrize("said", ["no", "bf16"])
def test_trainer_is_told_of_bfloat16_what_the_launcher_said(said, tiny, tmp_path, monkeypatch):
    """DeepSpeed refuses to work where the two differ."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    assert trainer_arguments(TuningSection(), tmp_path, 0, tiny).bf16 == (said == "bf16")


def test_processes_for_accelerators_that_are_not_there_are_refused(monkeypatch):
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="2 processes were started for accelerators"):
        processes.wait()


def test_weights_of_few_bits_are_not_divided(place, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"tuning\.load_in_4bit is set, and FSDP and DeepSpeed divide weights in 16 or 32 bits only"):
        tune_here(place.run("bits", load_in_4bit=True))


def test_an_error_on_main_is_everybodys(monkeypatch):
    """Process 1's part, with what process 0 would have sent it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda _: [(None, RunError("taken"))])
    with pytest.raises(RunError, match="taken"):
        processes.on_main(lambda: pytest.fail("process 1 looked for itself"))


def test_a_process_with_other_weights_than_process_0_is_found_out(place, monkeypatch):
    folder = place.run("mixed", **EXACT)
    monkeypatch.setattr(processes, "on_main", lambda _: "the fingerprint of process 0")
    with pytest.raises(TuningError, match=r"holds other weights than process 0, or in another precision \(torch.float32 here\)"):
        tune_here(folder)
