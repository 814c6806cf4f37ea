"""Tiny models for tests of heads, and what their attention takes and gives."""

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from docward.tuning.reading_head import Spread

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def attention_of(model, layer):
    return model.base_model.model.get_decoder().layers[layer].self_attn


def outputs(model, layer, ids):
    """What the layer's attention takes and gives, each (length, size)."""
    held = {}
    attention = attention_of(model, layer)
    hooks = [
        attention.q_proj.register_forward_pre_hook(lambda _, given: held.update(taken=given[0][0])),
        attention.register_forward_hook(lambda _, given, gave: held.update(given=gave[0][0])),
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return held["taken"], held["given"]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread_of(states):
    found = Spread()
    found.add(states)
    return found


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | more))


def qwen(**more):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE | more))


def gemma3(**more):
    """With weights in its norms, as a trained one has."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] + 2 * ["sliding_attention"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE | {"layer_types": kinds} | more)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    return model
