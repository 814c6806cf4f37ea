"""What is trained: a LoRA adapter (with PEFT's own switches), or all weights.

In: a loaded model and the recipe's section. Out: the model to train, and a folder of what was learned: an adapter, or a whole model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from docward import processes
from docward.dataset.refusals import openings
from docward.errors import ModelError
from docward.models import Loaded, packed
from docward.recipe import TuningSection
from docward.records import whole_folder
from docward.tuning.head_weights import Place, reading_place
from docward.tuning.refusal_token import refusal_token_id

SCALED = ("logits_scaling", "logit_scale", "final_logit_softcapping")  # what a config has where logits are not states @ rows


def prepare(loaded: Loaded, section: TuningSection) -> Any:
    """The model to train: with a fresh adapter, whose weights are float32 whatever the model's are, or as it is with all weights to be trained.

    Raises:
        ModelError: the model has no modules with the wanted names, or no such layers.
    """
    model: Any = loaded.model
    if getattr(model, "is_quantized", False):
        from peft import prepare_model_for_kbit_training

        prepared: Any = prepare_model_for_kbit_training
        model = loaded.model = prepared(model, use_gradient_checkpointing=section.gradient_checkpointing)
    if not section.use_peft:
        return model.requires_grad_(True)
    return with_lora(loaded, section)


def with_lora(loaded: Loaded, section: TuningSection) -> Any:
    """Put a fresh LoRA adapter on a model."""
    from peft import LoraConfig, get_peft_model

    count = int(loaded.model.config.get_text_config().num_hidden_layers)
    first, place = reading_head(loaded, section)
    layers = list(range(first, count))
    if not layers:
        raise ModelError(f"tuning.lora_first_layer = {section.lora_first_layer}, but {loaded.name} has {count} layers. Set it lower.")
    if place and not section.num_train_epochs:  # nothing else is to change
        layers = [place.reading, place.layer]
    token = refusal_token_id(loaded, section.refusal_token)
    ranks = place.ranks(section.lora_r) if place else {}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        use_dora=section.use_dora,
        use_rslora=section.use_rslora,
        target_modules=_targets(loaded.model, section.lora_target_modules),
        layers_to_transform=layers if len(layers) < count else None,
        trainable_token_indices=None if token is None else _rows_of(loaded.model, token),
        rank_pattern=ranks,
        alpha_pattern={name: section.lora_alpha * rank / section.lora_r for name, rank in ranks.items()},
    )
    model = get_peft_model(loaded.model, config)
    model.get_output_embeddings().register_forward_pre_hook(packed)  # what stands for the output layer where a token's row is trained
    if token is not None:
        _begin_like_refusals(model, loaded.tokenizer)
    return model


def can_begin_from_a_fit(loaded: Loaded, section: TuningSection) -> bool:
    """Whether a refusal token's row can be fitted: there is such a token, its logit is a product of state and row, and this process holds all weights."""
    config = loaded.model.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1) for name in SCALED)
    return refusal_token_id(loaded, section.refusal_token) is not None and not scaled and not processes.spread()


def reading_head(loaded: Loaded, section: TuningSection) -> tuple[int, Place | None]:
    """The first layer that is adapted (for `auto` the one whose neurons read, or the lowest where none can), and where a head averages what they read."""
    place = reading_place(loaded.model, section) if can_begin_from_a_fit(loaded, section) else None
    if section.lora_first_layer != "auto":
        return section.lora_first_layer, place
    return (place.reading if place else 0), place


def _rows_of(model: Any, token: int) -> dict[str, list[int]] | list[int]:
    """The token's rows to train, as PEFT takes them: of embeddings and output layer, or the one that both have."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if ends[0].weight is ends[1].weight:
        return [token]
    return {name.rsplit(".", 1)[-1]: [token] for name, module in model.named_modules() if module in ends}


def token_rows(model: Any) -> list[Any]:
    """The trained rows of the refusal token, that of the output layer last."""
    return [weight for name, weight in model.named_parameters() if "trainable_tokens_delta" in name]


def _begin_like_refusals(model: Any, tokenizer: Any) -> None:
    """Start the refusal token as the mean of the tokens that refusals begin with: a token that no text has used is next to impossible at first."""
    import torch

    starts = refusal_starts(tokenizer, "en")
    ends, rows = (model.get_input_embeddings(), model.get_output_embeddings()), token_rows(model)
    with torch.no_grad():
        for end, row in zip(ends[: len(rows)], rows, strict=True):
            row.data = (
                end.weight[starts].float().mean(0).expand_as(row).clone()
            )  # in float32, as the adapter's other weights: bfloat16 would swallow small steps


def refusal_starts(tokenizer: Any, language: str = "") -> list[int]:
    """The tokens that the project's refusals begin with, in one language or in all."""
    return sorted({int(tokenizer(text, add_special_tokens=False)["input_ids"][0]) for text in openings(language)})


def _targets(model: Any, wanted: list[str] | str) -> list[str]:
    from torch.nn import Linear

    head = model.get_output_embeddings()
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Linear) and module is not head}
    if wanted == "all-linear":
        return sorted(linear)
    if missing := sorted(set(wanted) - linear):
        raise ModelError(f"tuning.lora_target_modules: this model has no {', '.join(missing)}. It has: {', '.join(sorted(linear))}.")
    return sorted(wanted)


def gathered(wrapped: Any, *, deepspeed: bool = False) -> dict[str, Any]:
    """The trained weights of a model whose weights are spread over processes, whole and in the CPU's memory of process 0; all processes must call it.

    Args:
        wrapped: the model, as FSDP2 or DeepSpeed wrapped it.
        deepspeed: by the latter.
    """
    if deepspeed:
        found: dict[str, Any] = wrapped._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        return found
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True))


def save_tuned(loaded: Loaded, model: Any, folder: Path, *, weights: dict[str, Any] | None = None) -> None:
    """Write an adapter, or a whole model, with the tokenizer (and the chat template that it was tuned with); an adapter names its base as it was given.

    Args:
        loaded: the model's name and tokenizer.
        model: what was trained.
        folder: it is written whole or not at all.
        weights: the state to write, where the model's own is spread over processes.
    """

    def save(draft: Path) -> None:
        try:
            model.save_pretrained(
                str(draft), **({"save_embedding_layers": False} if hasattr(model, "peft_config") else {}), **({"state_dict": weights} if weights else {})
            )
        except SafetensorError as error:  # a full disk, in words of its own
            raise OSError(str(error)) from error
        loaded.tokenizer.save_pretrained(str(draft))
        if token_rows(model):
            loaded.model.generation_config.save_pretrained(str(draft))  # a refusal is the end of a reply
        place = draft / "adapter_config.json"
        if place.is_file():
            config = json.loads(place.read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = loaded.name
            place.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (draft / "README.md").unlink(missing_ok=True)

    whole_folder(folder, save)
