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


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def windowed(kind: str, window: int) -> Loaded:
    """A tiny model with sliding windows, and weights large enough that it says more than one thing."""
    import transformers

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config")
    more = {"Mistral": {}, "Qwen2": {"layer_types": MIXED, "use_sliding_window": True}}.get(kind, {"layer_types": MIXED})
    shape = SHAPE | {"vocab_size": len(tokenizer), "sliding_window": window, "max_position_embeddings": 2048}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, config)(**shape, **ends, **more))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(6)
    return Loaded(kind, model.eval(), tokenizer, kind)


def test_like_lengths_go_together_the_longest_first(tiny):
    asked = [Prompt(str(many), "A note. " * many, "Do it.") for many in (3, 40, 1, 38, 20, 22, 2)]
    batches = [[int(one.key) for one in batch] for batch in generate(tiny, asked, max_new_tokens=1, max_batch_tokens=900)]
    assert [many for batch in batches for many in batch] == [40, 38, 22, 20, 3, 2, 1]
    assert max(map(len, batches)) > 1 < len(batches), "more than one batch, and not all of one document"


def read_documents(monkeypatch) -> list[int]:
    """How many documents each pass that is shared reads, as they come."""
    found: list[int] = []
    whole = branching.decode

    def decode(loaded, documents, *given, **more):
        found.append(len(documents))
        return whole(loaded, documents, *given, **more)

    monkeypatch.setattr(branching, "decode", decode)
    return found


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral", "Qwen2"])
@pytest.mark.parametrize("window", [24, 290, 1500], ids=["shorter than an instruction", "than most prompts", "all fits"])
def test_sharing_a_document_changes_no_reply_with_sliding_windows(kind, window, monkeypatch):
    loaded, read = windowed(kind, window), read_documents(monkeypatch)
    loaded.model.generation_config.eos_token_id = list(range(0, len(loaded.tokenizer), 7))  # some end on the way
    plain = by_key(loaded, prompts(), share=False)
    assert not read
    assert by_key(loaded, prompts()) == plain
    assert sum(read) == len({(one.document, one.position) for one in prompts()}), "each is read once, and for all its prompts"


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral", "Qwen2"])
@pytest.mark.parametrize("window", [24, 290, 1500], ids=["shorter than an instruction", "than most prompts", "all fits"])
def test_with_sliding_windows_each_step_has_the_logits_of_a_plain_pass(kind, window):
    loaded = windowed(kind, window)
    documents, tails = [[5, 6, 7] * 40, [9, 8] * 150], [[[1, 2], [3] * 30, [4] * 7], [[2] * 40, [7, 1]]]
    steps = []

    def choose(logits):
        steps.append(logits)
        return torch.randint(100, (len(logits),))  # unlike the likeliest, they differ

    with torch.inference_mode():
        answers = branching.decode(loaded, documents, tails, 6, choose=choose)
        found = torch.stack([torch.cat(steps[:-5]), *steps[-5:]], 1)
        rows = [[*document, *tail] for document, some in zip(documents, tails, strict=True) for tail in some]
        plain = [loaded.model(input_ids=torch.tensor([[*row, *answer[:-1]]])).logits[0, -6:] for row, answer in zip(rows, answers, strict=True)]
    torch.testing.assert_close(found, torch.stack(plain), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [5, 100, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_in_a_window_is_attention_with_its_mask(window, dtype):
    torch.manual_seed(0)
    tokens = 2 * branching.BLOCK + 9
    query, key, value = (torch.randn(1, heads, tokens, 8).to(dtype) for heads in (6, 2, 2))
    far = torch.arange(tokens)[:, None] - torch.arange(tokens)
    mask = torch.zeros(tokens, tokens).masked_fill((far < 0) | (far >= window), -torch.inf)
    exact = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask, scale=0.3, enable_gqa=True)
    found = branching._in_window(query, key, value, 0.3, window)
    near = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float(), exact, atol=near, rtol=near)


@pytest.mark.parametrize(("window", "least", "most"), [(299, 300, 300), (300, 301, 0), (100, 120, 300)])
def test_a_document_that_its_window_holds_is_read_as_one_without_a_window(window, least, most, monkeypatch):
    """Blocks with a mask of their own cost more than causal attention, and say the same."""
    loaded, documents = windowed("Mistral", window), [[5, 6, 7] * 40, [9, 8] * 150]
    whole, read = branching._in_window, []
    monkeypatch.setattr(branching, "_in_window", lambda query, *given: read.append(query.shape[2]) or whole(query, *given))
    with torch.inference_mode():
        branching.decode(loaded, documents, [[[1, 2]], [[7]]], 1, choose=lambda logits: logits.argmax(-1))
    assert set(read) == {len(document) for document in documents if least <= len(document) <= most}


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_ways_heed_the_ends_and_biases_of_a_generation_config_and_nothing_else_of_it(tiny, temperature):
    plain = by_key(tiny, prompts(), share=False)
    asked = [prompts()[0]]  # sampling draws for the rows of a batch together
    drawn = by_key(tiny, asked, share=False, temperature=temperature)
    config = tiny.model.generation_config
    more = {"no_repeat_ngram_size": 1, "suppress_tokens": list(range(40, 120)), "begin_suppress_tokens": list(range(40)), "min_new_tokens": 9}
    config.update(**more, do_sample=True, temperature=0.3, top_k=2, repetition_penalty=3.0, num_beams=2, sequence_bias=[[[5, 6], 50.0]])
    assert by_key(tiny, prompts(), share=False) == by_key(tiny, prompts()) == plain
    assert by_key(tiny, asked, share=False, temperature=temperature) == by_key(tiny, asked, temperature=temperature) == drawn
    config.update(sequence_bias=[[[70], 0.4], [[5, 6], 50.0]], eos_token_id=list(range(60)))
    found = by_key(tiny, prompts(), share=False)
    assert found == by_key(tiny, prompts())
    assert found != plain
    assert tiny.model.generation_config is config


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


@pytest.mark.parametrize("kind", ["recurrent", "soft cap", "sinks", "keys of another layer", "both ways"])
def test_what_cannot_share_is_known_by_its_configuration(kind):
    from transformers import Gemma2Config, Gemma2ForCausalLM, GptOssConfig, GptOssForCausalLM, MambaConfig, MambaForCausalLM

    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
    wide = shape | {"intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = {
        "recurrent": lambda: MambaForCausalLM(MambaConfig(**shape, state_size=4)),
        "soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**wide, layer_types=["full_attention"] * 2)),
        "sinks": lambda: GptOssForCausalLM(GptOssConfig(**wide, num_local_experts=2)),
        "keys of another layer": lambda: windowed("Gemma3", 24).model,
        "both ways": lambda: windowed("Gemma3", 24).model,
    }[kind]()
    if kind == "keys of another layer":
        model.config.num_kv_shared_layers = 1
    if kind == "both ways":
        model.config.use_bidirectional_attention = True
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
