"""What tests make themselves: a byte tokenizer, a tiny Llama-shaped model with random weights, harmless matched documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from docward.dataset.building import Plan, general_examples, plan_examples
from docward.models import Loaded, load
from docward.tasks import get_tasks
from docward.types import Document, Example, Label, Split

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NO = "<|no|>"  # a special token to spare


def byte_tokenizer(template: str | None = CHATML, *, words: Iterable[str] = (), **tokens: str):
    """One token a byte, as no training is needed for that; with some texts as `words`, one token for nearly each of their words, which makes prompts short."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | tokens
    if words:
        model.train_from_iterator(words, BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, special_tokens=[], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, clean_up_tokenization_spaces=False, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": [token for token in SPECIAL if token not in names.values()]})
    if template:
        tokenizer.chat_template = template
    return tokenizer


def save_tiny_model(folder: Path, *, context: int = 2048, spare: Sequence[str] = (), layers: int = 2) -> Path:
    """A Llama of two layers with a byte tokenizer, and special tokens to spare; of three and more, neurons can read and a head average."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(spare)}, replace_extra_special_tokens=False)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=context, **shape, **ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def some_documents(groups: int = 6, *, split: Split | None = None) -> list[Document]:
    """Matched triples of harmless stand-in texts."""
    words = {Label.MALICIOUS: "how to trick them all", Label.SENSITIVE: "how they were tricked", Label.ORDINARY: "how to bake the bread"}
    return [
        Document(
            id=f"t{place}-{label[0]}",
            text=f"Note {place}: this is {what}. The second sentence is number {place}. A third one follows here. And one more to end it.",
            label=label,
            category="fraud",
            triple=f"t{place}",
            split=split,
        )
        for place in range(groups)
        for label, what in words.items()
    ]


def with_answers(examples, answers):
    """Fill in replies by example id; an example without one is dropped."""
    filled = (one if one.response else replace(one, response=answers.get(one.id, "")) for one in examples)
    return [one for one in filled if one.response.strip()]


def training_examples(groups: int = 6, tasks=("summarize", "case")) -> list[Example]:
    planned = plan_examples(some_documents(groups, split=Split.TRAIN), Plan(tuple(get_tasks(list(tasks)))))
    planned += general_examples([("g1", "Say hello."), ("g2", "Name a colour.")])
    return with_answers(planned, {one.id: "A plain answer." for one in planned})


RATE = {"set": "malicious", "task": "all", "hits": 9, "judged": 10, "unjudged": 0, "value": 0.9, "low": 0.596, "high": 0.982}


def adapted(name: str, run: Path) -> Loaded:
    """A run folder with an adapter that changes replies: random weights, where a fresh LoRA would change nothing."""
    import torch

    from docward.recipe import TuningSection
    from docward.tuning.adapters import save_tuned, with_lora

    loaded = load(name)
    torch.manual_seed(0)
    model = with_lora(loaded, TuningSection(lora_r=4))
    with torch.no_grad():
        for label, weight in model.named_parameters():
            if "lora_B" in label:
                weight.normal_(std=0.2)
    save_tuned(loaded, model, run / "adapter")
    pooled = {"malicious": RATE}
    models = {name: {"pooled": pooled, "documents": {"malicious": 10}} for name in ("untuned", "defended")}
    (run / "metrics.json").write_text(json.dumps({"models": models}))
    return load(str(run / "adapter"), dtype="float32")
