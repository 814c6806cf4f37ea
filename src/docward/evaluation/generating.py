"""Prompts become replies: greedy, in batches, and the tasks of one document share its prefill.

In: `Prompt` records. Out: `Generated` records, batch by batch. The shared pass computes a document's keys and values once and lets
each of its prompts go on from there; `share=False` is the plain way, padded rows, which gives the same replies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    limit = min(max_length or loaded.context, loaded.context)
    groups: dict[tuple[str, Position, str], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.document, prompt.position, prompt.system].append(prompt)
    rendered = [[(prompt, _rendered(loaded, prompt, limit, max_new_tokens)) for prompt in group] for group in groups.values()]
    rendered.sort(key=lambda group: -max(len(row.ids) for _, row in group))  # longest first: an estimate of the time left errs on the safe side
    for batch in _batches(rendered, max_new_tokens, max_batch_tokens):
        rows = [pair for group in batch for pair in group]
        how = _sampling(temperature, text_hash(str(seed), *(prompt.key for prompt, _ in rows)))
        texts = _answer(loaded, [[row.ids for _, row in group] for group in batch], max_new_tokens, how, share=share and can_share(loaded.model.config))
        yield [Generated(prompt.key, text, row.dropped, finished) for (prompt, row), (text, finished) in zip(rows, texts, strict=True)]


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


def can_share(config: Any) -> bool:
    """Whether all layers attend to everything before them.

    Recurrent layers have no keys to share, and padding between document and instruction would use up a sliding window.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(text, "sliding_window", None) is None and not getattr(text, "is_encoder_decoder", False)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share, leaving each row at least one token of its own."""
    shortest = min(len(row) for row in rows) - 1
    return next((place for place in range(shortest) if len({row[place] for row in rows}) > 1), shortest)


def _answer(loaded: Loaded, groups: list[list[list[int]]], new: int, how: Mapping[str, Any], *, share: bool) -> list[tuple[str, bool]]:
    import torch

    from docward.evaluation.caching import spread

    model: Any = loaded.model
    rows = [row for group in groups for row in group]
    shared = [common_prefix(group) for group in groups] if share else [0] * len(groups)
    with torch.inference_mode():
        if share:
            heads, head_mask = _left_padded([group[0][:size] for group, size in zip(groups, shared, strict=True)], loaded)
            cache = model(input_ids=heads, attention_mask=head_mask, position_ids=_positions(head_mask), use_cache=True, logits_to_keep=1).past_key_values
            owner = torch.tensor([index for index, group in enumerate(groups) for _ in group], device=heads.device)
            spread(cache, owner, room=new + max(len(row) for row in rows) - min(shared))
            tails, tail_mask = _left_padded([row[size:] for group, size in zip(groups, shared, strict=True) for row in group], loaded)
            given = {"input_ids": torch.cat([heads[owner], tails], 1), "attention_mask": torch.cat([head_mask[owner], tail_mask], 1), "past_key_values": cache}
        else:
            ids, mask = _left_padded(rows, loaded)
            given = {"input_ids": ids, "attention_mask": mask}
        out = model.generate(**given, max_new_tokens=new, **how, pad_token_id=loaded.tokenizer.pad_token_id)
    fresh = out[:, given["input_ids"].shape[1] :].tolist()
    return [_text(loaded, tokens, _ends(loaded)) for tokens in fresh]


# Whatever sampling a model's own generation_config asks for, evaluation is greedy.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": None}


def _sampling(temperature: float, seed: str) -> dict[str, Any]:
    import torch

    if not temperature:
        return GREEDY
    torch.manual_seed(int(seed[:8], 16))
    return GREEDY | {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}


def _left_padded(rows: list[list[int]], loaded: Loaded) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    width = max(len(row) for row in rows)
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(loaded.model.device), mask.to(loaded.model.device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _ends(loaded: Loaded) -> set[int]:
    ends = loaded.model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(token) for token in [*listed, loaded.tokenizer.eos_token_id] if token is not None}


def _text(loaded: Loaded, tokens: list[int], ends: set[int]) -> tuple[str, bool]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return str(loaded.tokenizer.decode(tokens[:stop], skip_special_tokens=True)).strip(), stop < len(tokens)
