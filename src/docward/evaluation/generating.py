"""Prompts become replies: greedy, in batches, and the tasks of one document share its prefill.

In: `Prompt` records. Out: `Generated` records, batch by batch. A document's keys and values are computed and held once, and its prompts go on from
there together (`branching`); `share=False` is the plain way, padded rows, which gives the same replies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from docward.models import token_biases, unwrapped
from docward.records import text_hash
from docward.rendering import Rendered, render
from docward.types import Position

if TYPE_CHECKING:
    import torch

    from docward.models import Loaded


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: an instruction on a document (which may be empty). `key` names the reply.

    `opening` is put in the model's mouth as the first words of its reply; the reply is what it adds.
    """

    key: str
    document: str
    instruction: str
    position: Position = Position.AFTER
    system: str = ""
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Generated:
    """What was answered. `dropped` document tokens were cut; `finished` is False where the token limit ended the reply."""

    key: str
    text: str
    dropped: int
    finished: bool


def generate(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    max_batch_tokens: int = 16384,
    max_length: int | None = None,
    share: bool = True,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[list[Generated]]:
    """Answer prompts, greedily unless a temperature is given; yields the replies of one batch at a time, so that they can be saved as they come.

    Args:
        loaded: model and tokenizer.
        prompts: in any order; those on one document are answered together.
        max_new_tokens: length of a reply, in tokens.
        max_batch_tokens: rows times padded length of a batch; one document's prompts always fit in one batch.
        max_length: longest prompt plus reply in tokens; default and ceiling: the model's context.
        share: compute each document once for all its prompts.
        temperature: of sampling; 0 is greedy.
        seed: of sampling; the same batch with the same seed gives the same replies.

    Raises:
        RecipeError: the limit leaves no room for a document.
    """
    for batch in _planned(loaded, prompts, max_new_tokens, max_batch_tokens, max_length):
        rows = [pair for group in batch for pair in group]
        sampler = _sampler(temperature, text_hash(str(seed), *(prompt.key for prompt, _ in rows)), token_biases(loaded.model))
        texts = _answer(loaded, [[row.ids for _, row in group] for group in batch], max_new_tokens, sampler, share=share and can_share(loaded.model))
        yield [Generated(prompt.key, text, row.dropped, finished) for (prompt, row), (text, finished) in zip(rows, texts, strict=True)]


def first_logits(
    loaded: Loaded, prompts: Sequence[Prompt], *, max_batch_tokens: int = 16384, max_length: int | None = None
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """What the model thinks of each prompt's first reply token, batch by batch: keys, and float32 logits (prompts, vocabulary) with no bias added."""
    import torch

    from docward.evaluation.branching import decode, left_padded, positions

    seen: list[torch.Tensor] = []

    def look(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.float())
        return logits.argmax(-1)

    model: Any = loaded.model
    for batch in _planned(loaded, prompts, 1, max_batch_tokens, max_length):
        groups = [[row.ids for _, row in group] for group in batch]
        prefixes = [common_prefix(group) for group in groups]
        with torch.inference_mode():
            if can_share(model) and min(prefixes):
                tails = [[row[size:] for row in group] for group, size in zip(groups, prefixes, strict=True)]
                decode(loaded, [group[0][:size] for group, size in zip(groups, prefixes, strict=True)], tails, 1, choose=look)
            else:
                ids, mask = left_padded([row for group in groups for row in group], loaded)
                look(model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), logits_to_keep=1, use_cache=False).logits[:, -1])
        yield [prompt.key for group in batch for prompt, _ in group], seen.pop().clone()  # cloned out here, it can be written to


def _planned(
    loaded: Loaded, prompts: Sequence[Prompt], new: int, max_batch_tokens: int, max_length: int | None
) -> Iterator[list[list[tuple[Prompt, Rendered]]]]:
    """Batches of documents' prompts, longest first: an estimate of the time left errs on the safe side."""
    limit = min(max_length or loaded.context, loaded.context)
    groups: dict[tuple[str, Position, str], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.document, prompt.position, prompt.system].append(prompt)
    rendered = [[(prompt, _rendered(loaded, prompt, limit, new)) for prompt in group] for group in groups.values()]
    rendered.sort(key=lambda group: -max(len(row.ids) for _, row in group))
    return _batches(rendered, new, max_batch_tokens)


def _rendered(loaded: Loaded, prompt: Prompt, limit: int, reserve: int) -> Rendered:
    asked = {"document": prompt.document, "instruction": prompt.instruction, "system": prompt.system, "opening": prompt.opening}
    return render(loaded.tokenizer, **asked, position=prompt.position, limit=limit, reserve=reserve)


def _batches(groups: list[list[tuple[Prompt, Rendered]]], new: int, most: int) -> Iterator[list[list[tuple[Prompt, Rendered]]]]:
    batch: list[list[tuple[Prompt, Rendered]]] = []
    rows = longest = 0
    for group in groups:
        length = max(longest, *(len(row.ids) + new for _, row in group))
        if batch and (rows + len(group)) * length > most:
            yield batch
            batch, rows, length = [], 0, max(len(row.ids) + new for _, row in group)
        batch.append(group)
        rows, longest = rows + len(group), length
    if batch:
        yield batch


def can_share(model: Any) -> bool:
    """Whether all layers attend to everything before them, in a way that can be exchanged.

    Recurrent layers have no keys to share, and padding between document and instruction would use up a sliding window.
    """
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    windows = set(kinds) != {"full_attention"} if kinds is not None else getattr(text, "sliding_window", None) is not None
    if windows or text.is_encoder_decoder or getattr(text, "attn_logit_softcapping", None) is not None:
        return False
    return bool(getattr(unwrapped(model), "_supports_attention_backend", False))


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share, leaving each row at least one token of its own."""
    shortest = min(len(row) for row in rows) - 1
    return next((place for place in range(shortest) if len({row[place] for row in rows}) > 1), shortest)


def _answer(loaded: Loaded, groups: list[list[list[int]]], new: int, sampler: Sampler, *, share: bool) -> list[tuple[str, bool]]:
    import torch

    from docward.evaluation.branching import decode, ends_of

    prefixes = [common_prefix(group) for group in groups]
    with torch.inference_mode():
        if share and min(prefixes):
            tails = [[row[size:] for row in group] for group, size in zip(groups, prefixes, strict=True)]
            answers = decode(loaded, [group[0][:size] for group, size in zip(groups, prefixes, strict=True)], tails, new, choose=sampler.choose)
        else:
            answers = _plain(loaded, [row for group in groups for row in group], new, sampler)
    return [_text(loaded, tokens, ends_of(loaded)) for tokens in answers]


def _plain(loaded: Loaded, rows: list[list[int]], new: int, sampler: Sampler) -> list[list[int]]:
    """One padded row a prompt through transformers' own `generate`."""
    from docward.evaluation.branching import left_padded

    model: Any = loaded.model
    ids, mask = left_padded(rows, loaded)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, pad_token_id=loaded.tokenizer.pad_token_id, **sampler.options)
    fresh: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return fresh


# Whatever sampling a model's own generation_config asks for, evaluation is greedy.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": None}


@dataclass(frozen=True, slots=True)
class Sampler:
    """How the next token is chosen: the likeliest, or drawn at a temperature. `biases` are added to tokens' logits, as `generate` does by itself."""

    temperature: float = 0.0
    biases: Mapping[int, float] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The same for `generate`."""
        return GREEDY | {"do_sample": True, "temperature": self.temperature, "top_p": 1.0, "top_k": 0} if self.temperature else GREEDY

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) to (rows,)."""
        if self.biases:
            logits = logits.clone()
            for token, bias in self.biases.items():
                logits[:, token] += bias
        if not self.temperature:
            return logits.argmax(-1)
        return (logits.float() / self.temperature).softmax(-1).multinomial(1)[:, 0]


def _sampler(temperature: float, seed: str, biases: Mapping[int, float]) -> Sampler:
    import torch

    if temperature:
        torch.manual_seed(int(seed[:8], 16))
    return Sampler(temperature, biases)


def _text(loaded: Loaded, tokens: list[int], ends: set[int]) -> tuple[str, bool]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return str(loaded.tokenizer.decode(tokens[:stop], skip_special_tokens=True)).strip(), stop < len(tokens)
