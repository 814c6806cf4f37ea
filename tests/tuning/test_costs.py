from __future__ import annotations

import re
import shlex
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from docward.recipe import load_recipe
from docward.tuning import costs
from docward.tuning.costs import LLAMA_2_7B, LLAMA_2_70B, Work, activations, adapter_parameters, attention_flops, flops, kept, memory, shape_of, table, work_of
from docward.tuning.fused import fused
from docward.tuning.packing import Layout
from docward.tuning.sharing import shared_layout

PAGE = Path(__file__).parents[2] / "docs" / "large-models.md"
SIZES = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20}
LENGTHS = {"document": 150, "own": 42, "tasks": 2, "answer": 9}


def config(kind: type = LlamaConfig, **other: Any) -> Any:
    return kind(**SIZES, vocab_size=300, max_position_embeddings=512, **other)


@pytest.mark.parametrize(
    ("model", "made"),
    [
        (LlamaForCausalLM, config()),
        (LlamaForCausalLM, config(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
        (Qwen2ForCausalLM, config(Qwen2Config)),
        (Qwen3ForCausalLM, config(Qwen3Config)),
        (Qwen3ForCausalLM, config(Qwen3Config, attention_bias=True, tie_word_embeddings=True)),
        (Gemma3ForCausalLM, config(Gemma3TextConfig, tie_word_embeddings=True)),
    ],
    ids=["llama", "llama-biases-tied", "qwen2", "qwen3", "qwen3-biases-tied", "gemma3-tied"],
)
def test_a_shape_has_as_many_weights_as_the_model(model, made):
    with torch.device("meta"):
        real = model(made)
    assert shape_of(made).parameters == sum(weight.numel() for weight in real.parameters())
    inside = [module.weight.numel() for name, module in real.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    assert shape_of(made).linear_parameters == sum(inside)


@pytest.mark.parametrize("modules", [costs.MODULES, ("q_proj", "v_proj")])
def test_an_adapter_has_as_many_weights_as_peft_adds(modules):
    found = adapted(r=3, modules=modules)
    added = sum(weight.numel() for weight in found.parameters() if weight.requires_grad)
    assert adapter_parameters(shape_of(config()), r=3, modules=modules) == added


def adapted(
    *, r: int = 8, modules: tuple[str, ...] = costs.MODULES, attention: str = "sdpa", dtype: torch.dtype = torch.float32, own_copies: bool = True
) -> Any:
    """A tiny Llama with an adapter whose weights are float32 whatever the model's are."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(attn_implementation=attention)).to(dtype)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=r, target_modules=list(modules), lora_dropout=0.0))


def full(*, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(config(attn_implementation=attention))


def loss_of(model: Any, rows: int, length: int, answer: int) -> torch.Tensor:
    """The loss on the last `answer` tokens of each of `rows` random rows; only what predicts them goes through the head."""
    ids = torch.randint(0, 300, (rows, length))
    predicting = torch.zeros(rows, length, dtype=torch.bool)
    predicting[:, length - answer - 1 : length - 1] = True
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=predicting, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, 300).float(), ids[:, length - answer :].reshape(-1))


@pytest.mark.parametrize(("trained", "checkpointing", "everywhere"), list(product(["adapter", "full"], [False, True], [False, True])))
def test_one_task_costs_the_same_shared_or_in_a_row(trained, checkpointing, everywhere):
    given: dict[str, Any] = {"document": 700, "own": 55, "tasks": 1, "answer": 30, "trained": trained}
    given |= {"checkpointing": checkpointing, "head_everywhere": everywhere}
    assert flops(LLAMA_2_7B, compute="shared", **given) == flops(LLAMA_2_7B, compute="rows", **given)


def test_pairs_are_those_that_a_mask_of_the_shared_pass_lets_through():
    document, own, tasks = 7, 3, 4
    branch = torch.arange(document + tasks * own).sub(document).div(own, rounding_mode="floor").clamp(min=-1)  # -1: the document
    same = (branch[:, None] == branch[None]) | (branch[None] < 0)
    work = work_of(document=document, own=own, tasks=tasks, answer=1, compute="shared")
    assert (work.tokens, work.pairs) == (len(branch), int(torch.tril(same).sum()))


def counted(model: Any, *, document: int, own: int, tasks: int, answer: int) -> int:
    """FLOPs that PyTorch counts of forward and backward in rows; of attention only what is written as plain products (`eager`)."""
    with FlopCounterMode(display=False) as counter:
        loss_of(model, tasks, document + own, answer).backward()
    return counter.get_total_flops()


ROWS = work_of(compute="rows", **LENGTHS)
MASKED = LENGTHS["tasks"] * (LENGTHS["document"] + LENGTHS["own"]) ** 2 - ROWS.pairs  # pairs that plain attention computes and then masks


@pytest.mark.parametrize("trained", ["adapter", "full"])
def test_flops_of_layers_adapter_and_head_are_those_that_pytorch_counts(trained):
    """PyTorch counts no FLOPs of fused attention on CPU, so what it counts is all the rest, and is equal to the last one."""
    found = counted(adapted() if trained == "adapter" else full(), **LENGTHS)
    shape = shape_of(config())
    assert flops(shape, compute="rows", trained=trained, **LENGTHS) - 3 * attention_flops(shape, ROWS.pairs) == found


@pytest.mark.parametrize("trained", ["adapter", "full"])
def test_flops_of_attention_are_those_that_pytorch_counts(trained):
    """Plain attention computes masked pairs too: with those put in, the figures are equal."""
    found = counted(adapted(attention="eager") if trained == "adapter" else full(attention="eager"), **LENGTHS)
    shape = shape_of(config())
    assert flops(shape, compute="rows", trained=trained, **LENGTHS) + 3 * attention_flops(shape, MASKED) == found


def test_a_head_on_all_positions_costs_what_pytorch_counts():
    model = adapted()
    ids = torch.randint(0, 300, (2, 192))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    shape = shape_of(config())
    assert flops(shape, compute="rows", head_everywhere=True, **LENGTHS) - 3 * attention_flops(shape, ROWS.pairs) == counter.get_total_flops()


def test_checkpointing_adds_one_forward_pass_of_the_layers():
    """All but each layer's very last product, the B matrix of `down_proj`: nothing in the backward pass reads what it gives, and PyTorch stops before it."""
    model = adapted(attention="eager").train()
    model.activation_checkpointing_enable()
    found = counted(model, **LENGTHS)
    shape = shape_of(config())
    told = flops(shape, compute="rows", checkpointing=True, **LENGTHS) + 4 * attention_flops(shape, MASKED)
    assert told - 2 * ROWS.tokens * shape.layers * 8 * shape.hidden == found


@contextmanager
def counting_kept(model: Any) -> Iterator[dict[int, torch.Tensor]]:
    """Tensors kept for the backward pass, one for each storage; weights and buffers are not counted."""
    own = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            found[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("shared", [False, True], ids=["rows", "shared"])
@pytest.mark.parametrize(
    ("trained", "value_bytes", "autocast"),
    [("adapter", 4, False), ("adapter", 2, False), ("adapter", 2, True), ("full", 4, False), ("full", 2, False)],
)
def test_activations_are_the_bytes_that_autograd_keeps(trained, value_bytes, autocast, shared, monkeypatch):
    """Plain modules and plain attention, as on a GPU."""
    monkeypatch.setattr("docward.tuning.attention.available", lambda query: False)
    measured, told = kept_and_told(trained, value_bytes, autocast, shared)
    assert told == pytest.approx(measured, rel=0.05)


def test_the_forms_for_the_cpu_keep_no_more_than_the_plain_ones():
    assert kept_and_told("adapter", 4, False, True, around=fused)[0] < 0.8 * kept_and_told("adapter", 4, False, True)[1]


def kept_and_told(trained, value_bytes, autocast, shared, around=nullcontext):
    """Bytes that autograd keeps in one forward pass, and what the model says of the plain one."""
    dtype = torch.float32 if value_bytes == 4 else torch.bfloat16
    model: Any = adapted(dtype=dtype) if trained == "adapter" else full().to(dtype)
    decoder = model.get_base_model().model if trained == "adapter" else model.model
    work = work_of(document=300, own=30, tasks=4, answer=5, compute="shared") if shared else Work(tokens=420, answers=20)
    positions = torch.cat([torch.arange(300), *[torch.arange(300, 330)] * 4])
    layout = Layout(((0, 300, tuple((300 + 30 * task, 30) for task in range(4))),))
    given: dict[str, Any] = {"position_ids": positions[None], "layout": layout} if shared else {}
    with ExitStack() as stack, around(model):
        stack.enter_context(shared_layout(model) if shared else nullcontext())
        found = stack.enter_context(counting_kept(model))
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast))
        states = decoder(input_ids=torch.randint(0, 300, (1, 420)), use_cache=False, **given).last_hidden_state
    assert states.requires_grad
    measured = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    return measured, activations(shape_of(config()), work, value_bytes=value_bytes, trained=trained, autocast=autocast)


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make, as long as they live."""

    def __init__(self, *there: torch.Tensor) -> None:
        super().__init__()
        self.places: set[int] = set()
        self.bytes = self.peak = 0
        self.see(there)

    def see(self, found: Any) -> None:
        for tensor in tree_leaves(found):
            if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in self.places:
                continue
            storage = tensor.untyped_storage()
            self.places.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())

    def gone(self, place: int, size: int) -> None:
        self.places.discard(place)
        self.bytes -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.see(found)
        return found


def peak_of_a_step(model: Any, *, length: int, answer: int) -> int:
    """Bytes alive at the peak of a second training step, when AdamW has its moments."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], foreach=False)
    with Alive(*model.parameters()) as alive:
        for _ in range(2):
            alive.peak = 0
            loss_of(model, 1, length, answer).backward()
            optimizer.step()
    return alive.peak


@pytest.mark.parametrize(("trained", "checkpointing"), list(product(["adapter", "full"], [False, True])))
def test_memory_is_the_peak_of_a_real_step(trained, checkpointing):
    torch.manual_seed(0)
    wide = LlamaConfig(**SIZES | {"num_hidden_layers": 12, "head_dim": 16}, vocab_size=300, max_position_embeddings=1024)
    model: Any = LlamaForCausalLM(wide)
    if trained == "adapter":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=list(costs.MODULES)))
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    work = Work(tokens=600, answers=40)
    told = memory(shape_of(wide), work, trained=trained, weight_bytes=costs.FLOAT32, value_bytes=4, checkpointing=checkpointing)
    assert told.total == pytest.approx(peak_of_a_step(model, length=600, answer=40), rel=0.1)


def test_shards_add_up_to_the_whole():
    alone = memory(LLAMA_2_7B, Work(1000, 100), trained="full")
    shared = memory(LLAMA_2_7B, Work(1000, 100), trained="full", devices=8, strategy="fsdp2")
    assert 8 * shared.weights == pytest.approx(alone.weights, abs=8)
    assert 8 * shared.trained == pytest.approx(alone.trained, abs=8)
    assert (shared.activations, shared.logits) == (alone.activations, alone.logits)
    assert alone == memory(LLAMA_2_7B, Work(1000, 100), trained="full", devices=8, strategy="ddp")


def test_all_weights_in_16_bits_cost_16_bytes_each():
    found = memory(LLAMA_2_7B, Work(0, 0), trained="full")
    assert found.total == 16 * LLAMA_2_7B.parameters


def test_llama_2_is_as_large_as_published():
    assert (LLAMA_2_7B.parameters, LLAMA_2_70B.parameters) == (6_738_415_616, 68_976_648_192)


def test_every_kept_tensor_has_a_name_of_its_own():
    names = [row.name for row in kept(LLAMA_2_7B)]
    assert len(set(names)) == len(names)


def test_the_page_shows_what_the_code_gives():
    text = PAGE.read_text(encoding="utf-8")
    assert text.split("<!-- costs -->\n")[1].split("\n<!-- end of costs -->")[0] == table()


def test_the_commands_of_the_page_train_what_its_tables_are_for():
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"```sh\n(accelerate .*?)```", text, re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", ""))
        sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        tuning = load_recipe(PAGE.parents[1] / "recipes" / "paper.yaml", overrides=sets).tuning
        assert (tuning.loss_on, tuning.lora_target_modules, tuning.lora_r, tuning.lora_dropout, tuning.use_dora) == ("answers", "all-linear", 8, 0, False)
        assert (tuning.compute, tuning.gradient_checkpointing, tuning.max_batch_tokens) == ("shared", True, 2560)
        processes = 8 * (4 if "nodes" in command else 1)
        assert processes * tuning.per_device_train_batch_size * tuning.gradient_accumulation_steps == 128
