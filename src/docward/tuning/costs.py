"""What tuning costs: floating-point operations and memory, from the shape of a model and the lengths of documents and answers.

In: a `Shape` (of a transformers config, or written down), lengths in tokens, what is trained and on how many devices. Out: FLOPs for one document, bytes on one
device. One real row: a rank-8 adapter on Llama-2-7B adds `adapter_parameters(LLAMA_2_7B)` = 19,988,480 weights.

It holds for decoders of Llama's kind: gated MLP (three matrices), grouped heads, no experts. The tests compare it with what real models count and keep.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

GIB = 1 << 30
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Bytes a weight. NF4 with double quantisation: 4 bits, 8 bits for each 64 weights, 32 bits for each 64 * 256 (QLoRA, arXiv 2305.14314, section 3).
FLOAT32, BFLOAT16, INT8, NF4 = 4.0, 2.0, 1.0, (4 + 8 / 64 + 32 / (64 * 256)) / 8
MOMENTS = 8  # bytes a trained weight: AdamW's two averages in float32
ZERO3_LIVE = 10**9  # weights that DeepSpeed keeps whole on a device at once (`stage3_max_live_parameters`, deepspeed.ai/docs/config-json)

Compute = Literal["shared", "rows"]  # one pass over the document for all its tasks, or a row for each task
Trained = Literal["adapter", "full"]  # LoRA on every linear layer of the decoder, or all weights
Strategy = Literal["ddp", "fsdp2", "zero3"]  # every device holds all of it, or a part


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the size of a decoder; `extra` counts a layer's weights in biases and in norms beyond Llama's two."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    extra: int = 0

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """A layer's linear layers: inputs and outputs by name."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = [(self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden)]
        return dict(zip(MODULES, [*sizes, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)], strict=True))

    @property
    def linear_parameters(self) -> int:
        """Weights in the decoder's linear layers, without embeddings and head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def parameters(self) -> int:
        """All weights."""
        norms = self.layers * (2 * self.hidden + self.extra) + self.hidden
        return self.linear_parameters + norms + self.vocab * self.hidden * (1 if self.tied else 2)


LLAMA_2_7B = Shape(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000)  # arXiv 2307.09288
LLAMA_2_70B = Shape(layers=80, hidden=8192, intermediate=28672, heads=64, kv_heads=8, head_dim=128, vocab=32000)


def shape_of(config: Any) -> Shape:
    """The shape of the decoder that a transformers config describes."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    hidden, intermediate = int(text.hidden_size), int(text.intermediate_size)
    family = str(getattr(text, "model_type", ""))
    extra = 2 * hidden if family in {"gemma2", "gemma3_text"} else 0  # norms after attention and after the MLP too
    extra += 2 * head_dim if family in {"qwen3", "gemma3_text"} else 0  # norms of queries and keys
    if family == "qwen2" or getattr(text, "attention_bias", False):
        extra += (heads + 2 * kv_heads) * head_dim + (0 if family == "qwen2" else hidden)
    extra += 2 * intermediate + hidden if getattr(text, "mlp_bias", False) else 0
    tied = bool(getattr(text, "tie_word_embeddings", False))
    return Shape(int(text.num_hidden_layers), hidden, intermediate, heads, kv_heads, head_dim, int(text.vocab_size), tied, extra)


def adapter_parameters(shape: Shape, *, r: int = 8, modules: Collection[str] = MODULES) -> int:
    """Weights of a LoRA adapter on the named linear layers of every layer: r * (inputs + outputs) each (arXiv 2106.09685, section 4.1)."""
    return shape.layers * r * sum(sum(shape.matrices[name]) for name in modules)


def flops(
    shape: Shape,
    *,
    document: int,
    own: int,
    tasks: int,
    answer: int,
    compute: Compute = "shared",
    trained: Trained = "adapter",
    r: int = 8,
    checkpointing: bool = False,
    head_everywhere: bool = False,
) -> int:
    """FLOPs of forward and backward for one document under `tasks` tasks; a multiplication and an addition are two.

    A weight costs 2 a token forward, 2 for the gradient of its input and, where it is trained, 2 for its own (arXiv 2001.08361, section 2.1).
    Attention counts the pairs of positions that really attend, 2 products forward and 4 backward. The scores that fused kernels compute once more in the
    backward pass are left out, so a share of a device's peak that is worked out from these figures is too low rather than too high.

    Args:
        shape: the model.
        document: tokens that the tasks share, P.
        own: tokens of one task, s: its instruction and answer.
        tasks: how many, K. Shared: P + K * s tokens; rows: K * (P + s).
        answer: positions of one task that predict an answer token; only they go through the vocabulary head.
        compute: one pass over the document, or a row for each task.
        trained: a LoRA adapter on all linear layers, or all weights.
        r: the adapter's rank.
        checkpointing: every decoder layer runs forward a second time.
        head_everywhere: all positions go through the head, as in trainers that mask the prompt in the loss only.
    """
    work = work_of(document=document, own=own, tasks=tasks, answer=answer, compute=compute)
    tokens = work.tokens
    linear = 2 * tokens * shape.linear_parameters
    adapter = 2 * tokens * adapter_parameters(shape, r=r) if trained == "adapter" else 0
    attention = attention_flops(shape, work.pairs)
    head = 2 * shape.hidden * shape.vocab * (tokens if head_everywhere else work.answers)
    products = 1 if trained == "adapter" else 2  # gradients of the input, of the weight
    backward = products * (linear + head) + 2 * adapter + 2 * attention
    if trained == "adapter" and not checkpointing:  # checkpointing asks for a gradient of the embeddings in any case
        backward -= 2 * tokens * _entry_weights(shape, r)
    decoder = linear + adapter + attention
    return decoder + head + backward + (decoder if checkpointing else 0)


@dataclass(frozen=True, slots=True)
class Work:
    """What goes through a model at once."""

    tokens: int
    answers: int  # positions that go through the vocabulary head
    pairs: int = 0  # of positions of which one attends to the other
    shared: bool = False  # whether documents are shared between tasks


def work_of(*, document: int, own: int, tasks: int, answer: int, compute: Compute) -> Work:
    """The work of one document; see `flops` for what the lengths are."""
    row = document + own
    if compute == "rows":
        return Work(tasks * row, tasks * answer, tasks * row * (row + 1) // 2)
    branch = own * document + own * (own + 1) // 2
    return Work(document + tasks * own, tasks * answer, document * (document + 1) // 2 + tasks * branch, shared=True)


def attention_flops(shape: Shape, pairs: int) -> int:
    """Forward FLOPs of all layers' attention: a score and a value product for every pair."""
    return 4 * shape.layers * shape.heads * shape.head_dim * pairs


def _entry_weights(shape: Shape, r: int) -> int:
    """Weights that read the embeddings: those are not trained, so no gradient flows out of them."""
    return sum(shape.hidden * (shape.matrices[name][1] + r) for name in ("q_proj", "k_proj", "v_proj"))


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor that autograd keeps until the backward pass: values a token in one layer, and bytes each."""

    name: str
    values: int
    each: float


def kept(shape: Shape, *, trained: Trained = "adapter", r: int = 8, value_bytes: int = 2, autocast: bool = True, shared: bool = True) -> list[Kept]:
    """All that a Llama layer keeps for its backward pass, with fused attention and without dropout (which adds masks and more copies).

    Args:
        shape: the model.
        trained: a LoRA adapter on all linear layers, or all weights.
        r: the adapter's rank.
        value_bytes: 4 for a model in float32, 2 for one in bfloat16.
        autocast: whether a float32 adapter on a bfloat16 model computes in bfloat16. PEFT turns what each adapted layer reads to float32, and autocast turns it
            back, so below float32 each keeps a copy of its own.
        shared: whether it is a shared pass, in which key and value heads are repeated for all query heads.
    """
    lora, query, own_key = trained == "adapter", shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    copies = lora and value_bytes < FLOAT32
    read = FLOAT32 if copies and not autocast else value_bytes
    table = [
        Kept("inputs of both norms, in float32", 2 * shape.hidden, FLOAT32),
        Kept("their inverse root mean squares", 2, FLOAT32),
        Kept("normalised states, where the norm's weight is trained", 0 if lora else 2 * shape.hidden, value_bytes),
        Kept("what query, key, value and gate, up read", (5 if copies else 2) * shape.hidden, read),
        Kept("queries", query, value_bytes),
        Kept("keys and values", 2 * (query if shared else own_key), value_bytes),
        Kept("attention's output", query, value_bytes),
        Kept("log-sum-exp of attention's scores", shape.heads, FLOAT32),
        Kept("what the layer after attention reads, where that is a copy", query if copies or shared else 0, read),
        Kept("gate, gate after its activation, up", 3 * shape.intermediate, value_bytes),
        Kept("their product, which down reads", shape.intermediate, read),
        Kept("outputs of the adapter's A matrices", r * len(MODULES) if lora else 0, read),
    ]
    return [row for row in table if row.values]


def activations(shape: Shape, work: Work, *, checkpointing: bool = False, value_bytes: int = 2, **options: Any) -> int:
    """Bytes kept for the backward pass; `options` as for `kept`.

    With checkpointing each layer keeps its input only, and one layer at a time all the rest.
    """
    rows = kept(shape, value_bytes=value_bytes, shared=work.shared, **options)
    layer = work.tokens * sum(row.values * row.each for row in rows)
    return round(shape.layers * work.tokens * shape.hidden * value_bytes + layer if checkpointing else shape.layers * layer)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device. Not counted: a layer's short-lived tensors in the backward pass, the attention mask, the allocator's gaps, the driver's part."""

    weights: int  # as they are stored
    gathered: int  # sharded weights that are whole for a while
    trained: int  # of trained weights: gradients, AdamW's moments, float32 copies; of an adapter, its weights too
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gathered + self.trained + self.activations + self.logits


def memory(
    shape: Shape,
    work: Work,
    *,
    trained: Trained = "adapter",
    r: int = 8,
    weight_bytes: float = BFLOAT16,
    value_bytes: int = 2,
    checkpointing: bool = False,
    devices: int = 1,
    strategy: Strategy = "ddp",
    autocast: bool = True,
) -> Memory:
    """Peak memory of one device in training.

    An adapter in float32 costs 16 bytes a weight: itself, its gradient, two moments. All weights in 16 bits cost 16 as well: 2, gradient 2, float32 copy 4,
    moments 8 (ZeRO, arXiv 1910.02054, section 3.1, which also gives the shards).

    Args:
        shape: the model.
        work: one pass on one device.
        trained: a LoRA adapter on all linear layers, or all weights.
        r: the adapter's rank.
        value_bytes: of an activation, 4 or 2.
        autocast: see `kept`.
        weight_bytes: of the decoder's linear layers: FLOAT32, BFLOAT16, INT8 or NF4; the rest has at least 16 bits.
        checkpointing: activations are computed again in the backward pass.
        devices: how many train together.
        strategy: `ddp` (every device holds all), `fsdp2` or `zero3` (weights, gradients and moments in equal shards).
    """
    shards = 1 if strategy == "ddp" else devices
    if trained == "adapter":
        state = (FLOAT32 + FLOAT32 + MOMENTS) * adapter_parameters(shape, r=r)
    else:
        state = (weight_bytes + MOMENTS + (FLOAT32 if weight_bytes < FLOAT32 else 0)) * shape.parameters
    head = work.answers * shape.vocab * (2 * FLOAT32 + (value_bytes if value_bytes < FLOAT32 else 0))  # log-probabilities, their gradient, one in 16 bits
    return Memory(
        weights=round(_stored(shape, weight_bytes) / shards),
        gathered=round(_gathered(shape, weight_bytes, trained, strategy)) if shards > 1 else 0,
        trained=round(state / shards),
        activations=activations(shape, work, checkpointing=checkpointing, value_bytes=value_bytes, trained=trained, r=r, autocast=autocast),
        logits=round(head),
    )


def _stored(shape: Shape, weight_bytes: float) -> float:
    """Bytes of all weights; embeddings, head and norms stay in 16 bits where linear layers have fewer."""
    return shape.linear_parameters * weight_bytes + (shape.parameters - shape.linear_parameters) * max(weight_bytes, BFLOAT16)


def _gathered(shape: Shape, weight_bytes: float, trained: Trained, strategy: Strategy) -> float:
    """Bytes of sharded weights that are whole at once: FSDP2 the layer at work, the next one and the head; DeepSpeed up to its limit.

    Where all weights are trained, a layer's gradients are whole too before they are shared out.
    """
    layer = shape.linear_parameters // shape.layers
    whole = min(ZERO3_LIVE, shape.parameters) if strategy == "zero3" else 2 * layer
    return whole * weight_bytes + (layer * weight_bytes if trained == "full" else 0) + (shape.vocab * shape.hidden * BFLOAT16 if strategy == "fsdp2" else 0)


def table(*, document: int = 2048, own: int = 80, tasks: int = 5, answer: int = 48) -> str:
    """What a 7B and a 70B model need, as two Markdown tables: memory of one GPU in GiB, FLOPs for one document."""
    models = {"7B": LLAMA_2_7B, "70B": LLAMA_2_70B}
    ways: dict[str, tuple[Trained, float]] = {"LoRA, bfloat16": ("adapter", BFLOAT16), "QLoRA, 4 bits": ("adapter", NF4), "all weights": ("full", BFLOAT16)}
    places: dict[str, Strategy] = {"1, or each of 8 with DDP": "ddp", "each of 8, FSDP2": "fsdp2", "each of 8, ZeRO-3": "zero3"}
    work = work_of(document=document, own=own, tasks=tasks, answer=answer, compute="shared")
    lines = ["| model | trained | GPUs | weights | gathered | trained part | activations | logits | all | all, checkpointing |", "|---" * 10 + "|"]
    for name, shape in models.items():
        for way, (trained, weight_bytes) in ways.items():
            for place, strategy in places.items():
                if weight_bytes == NF4 and strategy != "ddp":
                    continue  # tuning refuses it
                common: dict[str, Any] = {"trained": trained, "weight_bytes": weight_bytes, "devices": 8, "strategy": strategy}
                plain, less = (memory(shape, work, checkpointing=again, **common) for again in (False, True))
                parts = [plain.weights, plain.gathered, plain.trained, plain.activations, plain.logits, plain.total, less.total]
                lines.append(f"| {name} | {way} | {place} | " + " | ".join(f"{part / GIB:.1f}" for part in parts) + " |")
    lines += ["", "| model | trained | shared pass, TFLOP | rows, TFLOP | times fewer |", "|---" * 5 + "|"]
    for name, shape in models.items():
        for label, part in (("LoRA", "adapter"), ("all weights", "full")):
            lengths: dict[str, Any] = {"document": document, "own": own, "tasks": tasks, "answer": answer, "trained": part}
            shared, rows = (flops(shape, compute=how, **lengths) for how in ("shared", "rows"))
            lines.append(f"| {name} | {label} | {shared / 1e12:.0f} | {rows / 1e12:.0f} | {rows / shared:.2f} |")
    return "\n".join(lines)
