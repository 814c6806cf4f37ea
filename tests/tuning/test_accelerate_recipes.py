from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from docward.recipe import load_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
MACHINES = {"ddp_8gpu": 1, "fsdp2_8gpu": 1, "deepspeed_zero3_8gpu": 1, "nodes_ddp": 4, "nodes_fsdp2": 4}
FILES = sorted(FOLDER.glob("*.yaml"))


def read(name: str) -> Any:
    return load_config_from_file(str(FOLDER / f"{name}.yaml"))


def launched(name: str, *more: str) -> Any:
    """What the launcher makes of a file, just before it starts processes; the port is any free one."""
    given = ["--config_file", str(FOLDER / f"{name}.yaml"), "--main_process_port", "0", *more, "-m", "docward", "tune", "recipes/quickstart.yaml"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    args.deepspeed_fields_from_accelerate_config = ""
    return args


def test_every_file_is_tested():
    assert {file.stem for file in FILES} == {*MACHINES, "ddp_cpu"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file):
    found = load_config_from_file(str(file))  # refuses unknown keys, but does not look into sections
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*found.fsdp_config, *found.deepspeed_config} <= options


@pytest.mark.parametrize(("name", "machines"), MACHINES.items())
def test_there_is_a_process_for_each_of_8_gpus_a_machine(name, machines):
    found = read(name)
    assert (found.num_machines, found.num_processes, found.use_cpu) == (machines, machines * 8, False)


@pytest.mark.parametrize("name", [*MACHINES, "ddp_cpu"])
def test_only_deepspeed_casts_what_docward_has_loaded(name):
    assert read(name).mixed_precision == ("bf16" if name.startswith("deepspeed") else "no")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_at_the_top_of_a_file_is_one_that_the_launcher_takes(file):
    lines = file.read_text(encoding="utf-8").split("compute_environment")[0].replace("\\\n#", "").splitlines()
    (command,) = [line.removeprefix("#").strip() for line in lines if "accelerate launch" in line]
    words = shlex.split(command.replace("\\\n", "").replace("$MACHINE", "2").replace("$FIRST", "10.0.0.1"))
    assert words[:2] == ["accelerate", "launch"]
    args, config, _ = _validate_launch_command(launch_command_parser().parse_args([*words[2:3], str(ROOT / words[3]), *words[4:]]))
    assert ROOT / words[3] == file
    assert (args.module, args.training_script, args.training_script_args[0]) == (True, "docward", "tune")
    assert (ROOT / args.training_script_args[1]).is_file()
    if config.num_machines > 1:
        assert (args.machine_rank, args.main_process_ip, args.main_process_port) == (2, "10.0.0.1", 29500)


def test_the_commands_of_the_page_are_ones_that_the_launcher_and_the_recipe_take():
    commands = re.findall(r"```sh\n(accelerate .*?)```", (ROOT / "docs" / "large-models.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", "").replace("$MACHINE", "2").replace("$FIRST", "10.0.0.1"))
        args = launch_command_parser().parse_args(words[2:])
        assert load_config_from_file(str(ROOT / args.config_file)).fsdp_config["fsdp_version"] == 2
        tune, recipe, _, _, *overrides = args.training_script_args
        assert (args.module, args.training_script, tune) == (True, "docward", "tune")
        load_recipe(ROOT / recipe, overrides=overrides[1::2])


@pytest.mark.parametrize("name", ["nodes_ddp", "nodes_fsdp2"])
def test_each_machine_starts_its_8_processes_and_meets_the_others_at_the_first(name):
    args = launched(name, "--machine_rank", "3", "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank, args.rdzv_endpoint.split(":")[0]) == ("4", "8", 3, "10.0.0.1")


@pytest.mark.parametrize("name", ["fsdp2_8gpu", "nodes_fsdp2"])
def test_fsdp_files_give_version_2_with_a_unit_for_each_layer(name, monkeypatch, tiny):
    for key, value in prepare_multi_gpu_env(launched(name, *(["--machine_rank", "1"] if name.startswith("nodes") else []))).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading, plugin.activation_checkpointing) == (2, True, False, False)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    plugin.set_auto_wrap_policy(tiny.model)
    assert {kind.__name__ for kind in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} == {"LlamaDecoderLayer"}


def test_the_deepspeed_file_gives_stage_3_and_leaves_the_batch_to_the_recipe(monkeypatch):
    _, environment = prepare_deepspeed_cmd_env(launched("deepspeed_zero3_8gpu"))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin()
    assert (plugin.zero_stage, plugin.zero3_init_flag, plugin.zero3_save_16bit_model) == (3, False, True)
    left = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {plugin.deepspeed_config[name] for name in left} == {"auto"}


SUM = """
import torch
from accelerate import PartialState
state = PartialState(cpu=True)
mine = torch.tensor(state.process_index + 1)
torch.distributed.all_reduce(mine)
with open(f"{state.process_index}.txt", "w") as said:  # two processes that print write into each other's lines
    said.write(f"{torch.distributed.get_backend()} {state.num_processes} {mine.item()}")
state.destroy_process_group()
"""


def test_two_processes_on_the_cpu_start_and_talk(tmp_path):
    (tmp_path / "sum.py").write_text(SUM)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "ddp_cpu.yaml"), "--main_process_port", "0", "-m", "sum"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f"{number}.txt").read_text() for number in range(2)] == ["gloo 2 3"] * 2
