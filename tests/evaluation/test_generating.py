from __future__ import annotations

import pytest
import torch

from docward.evaluation import branching
from docward.evaluation.generating import Generated, Prompt, Sampler, can_share, common_prefix, generate
from docward.models import Loaded
from docward.tasks import TASKS, document_for
from docward.types import Position
from tiny import byte_tokenizer, some_documents


def prompts(groups: int = 3) -> list[Prompt]:
    found = [
        Prompt(f"{document.id}|{task.name}", document_for(task.name, document.text * (1 + place % 3)), task.wordings[0])
        for place, document in enumerate(some_documents(groups))
        for task in list(TASKS.values())[:5]
    ]
    return [*found, Prompt("general", "", "Say hello."), Prompt("before", "A short text.", "Do it.", Position.BEFORE)]


def by_key(loaded: Loaded, asked: list[Prompt], **options) -> dict[str, Generated]:
    return {one.key: one for batch in generate(loaded, asked, max_new_tokens=12, **options) for one in batch}


def test_sharing_a_document_changes_no_reply(tiny):
    assert by_key(tiny, prompts()) == by_key(tiny, prompts(), share=False)


def test_sharing_a_document_changes_no_reply_of_the_real_model(real):
    asked = prompts(1)
    assert by_key(real, asked) == by_key(real, asked, share=False)


def gemma3() -> Loaded:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(tokenizer), sliding_window=24, layer_types=layers, max_position_embeddings=2048, **shape, **ends))
    return Loaded("gemma", model.eval(), tokenizer, "gemma")


def test_sharing_a_document_changes_no_reply_with_sliding_windows():
    loaded = gemma3()
    assert by_key(loaded, prompts()) == by_key(loaded, prompts(), share=False)


@pytest.mark.parametrize("most", [1, 700, 100_000])
def test_the_size_of_a_batch_changes_no_reply(tiny, most):
    assert by_key(tiny, prompts(), max_batch_tokens=most) == by_key(tiny, prompts())


def test_every_prompt_gets_one_reply(tiny):
    keys = [one.key for batch in generate(tiny, prompts(), max_new_tokens=2, max_batch_tokens=900) for one in batch]
    assert sorted(keys) == sorted(prompt.key for prompt in prompts())


def test_a_document_longer_than_the_context_is_cut_and_counted(tiny):
    reply = by_key(tiny, [Prompt("long", "word " * 1000, "Do it.")])["long"]
    assert 0 < reply.dropped < 5000


def test_a_common_prefix_leaves_each_row_a_token_of_its_own():
    assert common_prefix([[1, 2, 3, 4], [1, 2, 5]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix([[1, 2, 3]]) == 2


def test_answers_that_end_early_change_no_other(tiny):
    """Some tokens end an answer now, so that branches and whole documents drop out on the way. With small weights the tiny model repeats itself."""
    with torch.no_grad():
        for weight in tiny.model.parameters():
            weight.mul_(6)
    tiny.model.generation_config.eos_token_id = list(range(0, len(tiny.tokenizer), 7))
    found = by_key(tiny, prompts())
    assert found == by_key(tiny, prompts(), share=False)
    assert len({len(one.text) for one in found.values()}) > 3


def test_documents_with_different_numbers_of_prompts_go_together(tiny):
    asked = [one for place, one in enumerate(prompts()) if place % 7]
    assert by_key(tiny, asked) == by_key(tiny, asked, share=False)


def test_a_document_is_held_once_for_all_its_prompts(tiny, monkeypatch):
    held = []
    whole = branching.Branches.step

    def step(self, *given):
        held.append(self.prefixes[0][0].shape[0])
        return whole(self, *given)

    monkeypatch.setattr(branching.Branches, "step", step)
    asked = prompts()[:10]
    by_key(tiny, asked)
    assert set(held) == {len({one.document for one in asked})}
    assert held[0] < len(asked)


@pytest.mark.parametrize("kind", ["windows", "recurrent", "soft cap"])
def test_what_cannot_share_is_known_by_its_configuration(kind):
    from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM

    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
    wide = shape | {"intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = {
        "windows": lambda: gemma3().model,
        "recurrent": lambda: MambaForCausalLM(MambaConfig(**shape, state_size=4)),
        "soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**wide, layer_types=["full_attention"] * 2)),
    }[kind]()
    assert not can_share(model)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_blocks_is_attention(dtype, near, causal):
    """Half precision takes another way on a CPU than float32, in which the other tests are."""
    torch.manual_seed(0)
    tokens, keys = 2 * branching.BLOCK + 9, 2 * branching.BLOCK + 9 + (0 if causal else 40)
    query, key, value = (torch.randn(1, heads, count, 8).to(dtype) for heads, count in ((6, tokens), (2, keys), (2, keys)))
    mask = None if causal else torch.zeros(tokens, keys).masked_fill(torch.rand(tokens, keys) < 0.3, -torch.inf)
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=mask, is_causal=causal, scale=0.3, enable_gqa=True
    )
    found = branching.in_blocks(query, key, value, 0.3, mask if mask is None else mask.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=near, rtol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_is_not_rounded_to_the_steps_of_logits(dtype):
    logits = torch.tensor([[20.25, 20.0], [20.5, 20.0]], dtype=dtype)
    assert Sampler(biases={0: -0.251}).choose(logits).tolist() == [1, 0]
    assert logits[0, 0] == 20.25  # they are the caller's
