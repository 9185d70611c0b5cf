"""Closed forms for what a training step keeps, exact for Llama-like layers and a guess elsewhere.

The formulas count bytes per token of what autograd saves in one decoder layer (RMSNorm, SwiGLU, RoPE, attention
without a mask, LoRA on the linears): two norms keep their input in float32, the products their inputs, attention its
q, k, v, output and log-sum-exp. A layer of another make is put through the same form and marked as assumed.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from qlora_planner.catalog import LossMemory, TrainerRow
from qlora_planner.memory.weights.classifier import LABELS
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.record import record
from qlora_planner.spec.family import liger_rows
from qlora_planner.spec.model import LayerKind
from qlora_planner.spec.run import RunConfig

# trl 1.16, models/activation_offloading.py: so many layer inputs wait on the card for their copy to the host.
STASHED = 5

_LLAMA_LINEARS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


@record
class LayerShape:
    """Widths of one kind of layer, in elements: attention output, keys, heads, MLP, experts per token."""

    count: int
    hidden: int
    query: int
    key: int
    heads: int
    mlp: int
    expert_mlp: int
    experts_per_token: int
    targets: int
    query_key_norm: bool
    extra_norms: int
    exact: bool


@record
class Activations:
    """Bytes at the moments that can be the peak, beside weights, gradients and states.

    `checkpoints` are kept through forward; `layer` is one layer's forward and backward on top; `logits` the head and
    loss on top of the checkpoints; `all_layers` what every layer keeps without checkpointing. `generation` is what
    generating completions takes at its highest.
    """

    checkpoints: Any  # an int, or an int64 array for as many runs
    layer: Any
    logits: Any
    all_layers: Any
    exact: bool
    offloaded: Any = 0  # on the host
    generation: Any = 0


@record
class ModelShape:
    """What the closed forms need of a model: its layers by kind, and the widths of its ends, in elements."""

    layers: tuple[LayerShape, ...]
    hidden: int
    vocab: int


def model_shape(placement: Placement) -> ModelShape:
    """The shape of a model with its adapters."""
    profile = placement.profile
    return ModelShape(
        layers=tuple(_layer_shape(placement, kind) for kind in profile.layer_kinds),
        hidden=int(profile.dims.get("hidden_size") or 1),
        vocab=int(profile.dims.get(LABELS) or profile.dims.get("vocab_size") or 1),
    )


def _layer_shape(placement: Placement, kind: LayerKind) -> LayerShape:
    profile = placement.profile
    groups = [weight.group for weight in placement.layer_weights(kind)]
    widths = {
        group.name.removesuffix(".weight").rpartition(".")[2]: group.shape
        for group in groups
        if group.role == "linear" and len(group.shape) == 2 and "expert" not in group.name
    }
    hidden = int(profile.dims.get("hidden_size") or 1)
    heads = int(profile.dims.get("num_attention_heads") or max(1, hidden // 64))
    head_dim = int(profile.dims.get("head_dim") or hidden // heads)
    key_heads = int(profile.dims.get("num_key_value_heads") or heads)
    experts = [group.shape for group in groups if group.role == "experts"]
    norms = [group.shape for group in groups if group.role == "norm" and group.name.endswith("weight")]
    wide = [shape for shape in norms if shape == (hidden,)]
    tops = [max(shape) for name, shape in widths.items() if name not in _LLAMA_LINEARS]
    mlp = widths["gate_proj"][0] if "gate_proj" in widths else max(tops, default=0)
    exact = set(widths) == _LLAMA_LINEARS and not experts and len(wide) == 2
    return LayerShape(
        count=kind.count,
        hidden=hidden,
        query=widths["q_proj"][0] if "q_proj" in widths else heads * head_dim,
        key=widths["k_proj"][0] if "k_proj" in widths else key_heads * head_dim,
        heads=heads,
        mlp=mlp,
        expert_mlp=min(experts[0][1:]) if experts else 0,
        experts_per_token=int(profile.dims.get("num_experts_per_tok") or 1) if experts else 0,
        targets=sum(adapter.count // kind.count for adapter in placement.adapters if adapter.layer_kind == kind.name)
        // 2,
        query_key_norm=any(shape in ((head_dim,), (heads * head_dim,)) for shape in norms if shape != (hidden,)),
        extra_norms=max(0, len(wide) - 2),
        exact=exact,
    )


def saved_per_token(shape: LayerShape, run: RunConfig, trainer: TrainerRow) -> int:
    """Bytes per token that one layer's forward keeps for its backward."""
    d, q, kv, heads, mlp, rank = shape.hidden, shape.query, shape.key, shape.heads, shape.mlp, run.rank
    dropout = bool(run.lora_dropout)
    if not run.upcast:
        base = 23 * d + 7 * q + 4 * kv + 9 * mlp if dropout else 12 * d + 4 * q + 4 * kv + 8 * mlp
        ranks = 2 * rank * shape.targets
    elif trainer.autocast:
        base = 23 * d + 7 * q + 4 * kv + 15 * mlp if dropout else 18 * d + 4 * q + 4 * kv + 14 * mlp
        ranks = 2 * rank * shape.targets
    else:
        base = 16 * d + 8 * q + 8 * kv + 16 * mlp
        ranks = 4 * rank * shape.targets
    total = base + 4 * heads + ranks + 8 + shape.extra_norms * (4 * d + 4)
    if shape.query_key_norm:
        total += 4 * (q + kv) + 8 * heads
    total += shape.experts_per_token * (6 * shape.expert_mlp + 2 * d) + (100 if shape.experts_per_token else 0)
    return total


def proved(shape: ModelShape, run: RunConfig) -> bool:
    """Whether the forms were derived for such a run: Llama-like layers, SDPA without a mask, 4 or 16 bits."""
    plain = not (run.dora or run.padding or run.liger or run.activation_offloading or run.packing)
    plain = plain and not (run.checkpoint_offload or (run.checkpoint_every or 1) > 1)
    return (
        all(layer.exact for layer in shape.layers)
        and plain
        and run.attention == "sdpa"
        and run.quant in ("nf4", "fp4", "none")
        and run.method != "full"
    )


def most(first: Any, *others: Any) -> Any:
    """The largest of numbers, or element by element where one of them is an array."""
    numbers = [each for each in (first, *others) if isinstance(each, int)]
    arrays = [each for each in (first, *others) if not isinstance(each, int)]
    return reduce(_numpy().maximum, arrays + ([max(numbers)] if numbers else [])) if arrays else max(numbers)


def _least(first: Any, other: int) -> Any:
    return min(first, other) if isinstance(first, int) else _numpy().minimum(first, other)


def _numpy() -> Any:
    import numpy  # estimates of single runs do without it

    return numpy


def activations(
    shape: ModelShape, run: RunConfig, trainer: TrainerRow, loss: LossMemory, tokens: Any = None, seq_len: Any = None
) -> Activations:
    """The activation bytes of one micro-batch; of many, when `tokens` and `seq_len` are int64 arrays of one shape.

    Arrays stand in place of the run's own sizes, and every figure is then an array.
    """
    tokens = (run.tokens if tokens is None else tokens) * trainer.sequences_per_row
    seq_len = run.seq_len if seq_len is None else seq_len
    stream = 4 if run.upcast else 2
    checkpoints: Any = 0
    layer: Any = 0
    all_layers: Any = 0
    for kind in shape.layers:
        saved = saved_per_token(kind, run, trainer) * tokens
        width = max(kind.mlp, kind.expert_mlp * kind.experts_per_token, kind.hidden)
        if run.upcast:
            beside = 8 * width * tokens
        else:
            beside = most(4 * width * tokens, 2 * kind.hidden * width + tokens * (2 * width + 6 * kind.hidden // 5))
        scores = 6 * kind.heads * seq_len * tokens if run.attention == "eager" else 0
        mask = 3 * seq_len * tokens if run.padding else 0
        layer = most(layer, saved + beside + scores + mask + stream * kind.hidden * tokens)
        # Each kind has its share of the layers that are not checkpointed, and keep all.
        kept = _kept_layers(run, kind.count)
        all_layers += (saved + scores) * kept
        checkpoints += stream * kind.hidden * tokens * (kind.count - kept)
    offloaded = checkpoints if run.activation_offloading else 0
    if run.activation_offloading and shape.layers:
        layers = sum(kind.count for kind in shape.layers)
        checkpoints = checkpoints * min(STASHED, layers) // layers
    elif run.checkpoint_offload and shape.layers:
        offloaded = checkpoints  # one input is copied back at a time
        checkpoints = stream * shape.hidden * tokens
    return Activations(
        checkpoints=checkpoints if run.gradient_checkpointing else 0,
        layer=layer,
        logits=_logits_bytes(shape, run, trainer, loss, tokens),
        all_layers=all_layers,
        exact=proved(shape, run),
        offloaded=offloaded,
        generation=0 if trainer.generation is None else _generation_bytes(shape, run, seq_len),
    )


def _kept_layers(run: RunConfig, count: int) -> int:
    """Of `count` layers, those that keep all that their backward needs."""
    if not run.gradient_checkpointing:
        return count
    return count - -(-count // (run.checkpoint_every or 1))


def _generation_bytes(shape: ModelShape, run: RunConfig, seq_len: Any) -> Any:
    """Keys and values of all completions that are generated together, with the prompts' pass or a token's logits.

    Every layer is taken to keep the whole sequence; a layer's pass holds four times its widest part, half of it a
    copy in float32; a token's logits are there in 16 bits and, in float32, as scores, probabilities and samples.
    Where vLLM generates, none of that is this process's.
    """
    if run.vllm not in (None, "none"):
        # Merging adapters for it: a weight of the largest layer four times over in 16 bits, and packed.
        return max((17 * kind.hidden * max(kind.mlp, kind.query) // 2 for kind in shape.layers), default=0)
    rows = run.batch_size * (run.steps_per_generation or 1)
    prompt_tokens = rows * (run.prompt_len or 0)
    cache: Any = 0
    layer = 0
    for kind in shape.layers:
        cache = cache + 4 * kind.key * kind.count * rows * seq_len
        width = max(kind.mlp, kind.expert_mlp * kind.experts_per_token, kind.hidden)
        layer = max(layer, 8 * width * prompt_tokens + 2 * kind.hidden * width)
    return cache + max(layer, 14 * rows * shape.vocab)


def _logits_bytes(shape: ModelShape, run: RunConfig, trainer: TrainerRow, loss: LossMemory, tokens: Any) -> Any:
    """Bytes of the head and the loss at their highest, beside the checkpoints."""
    hidden, vocab = shape.hidden, shape.vocab
    norm = 4 * hidden * tokens
    # The 16-bit copy of a float32 head that autocast makes, kept for backward.
    head_copy = 2 * vocab * hidden if run.upcast and trainer.autocast else 0
    if loss.kind == "fused":
        tile = 2 * _least(tokens, 4096) * min(vocab, 32768)
        return norm + head_copy + tile + tokens * (8 * hidden + 28) + 2 * hidden * tokens
    if loss.kind == "chunked_no_copy":
        return norm + head_copy + 18 * 256 * vocab
    if loss.kind == "chunked":
        return norm + head_copy + 4 * vocab * hidden + 7 * 256 * vocab
    if loss.kind in ("cut", "liger"):
        # What goes into the head, and its gradient of the same size; then what either package allocates beside them.
        beside = _cut_bytes(vocab, tokens) if loss.kind == "cut" else _liger_bytes(hidden, vocab, tokens)
        # The last norm in float32 is as high where the rest is little.
        return most(3 * norm, norm + head_copy + 4 * hidden * tokens + beside)
    per_logit = 12
    if trainer.keeps_outputs:
        per_logit = 16 if run.upcast else 14
    return norm + head_copy + per_logit * tokens * vocab


def _cut_bytes(vocab: Any, tokens: Any) -> Any:
    """cut_cross_entropy 25.1 (cce.py, cce_backward.py): for each token labels, positions and float32 sums; for each
    word its average logit, and the order of these while they are sorted."""
    return 24 * tokens + 20 * vocab


def _liger_bytes(hidden: int, vocab: Any, tokens: Any) -> Any:
    """liger-kernel 0.8.5 (ops/fused_linear_cross_entropy.py): 16-bit logits of so many rows that they take about what
    goes into the head does, up to the next power of two; for each token its float32 loss and its mask."""
    if isinstance(tokens, int):
        return 2 * vocab * liger_rows(hidden, vocab, tokens) + 5 * tokens
    rows = -(-tokens // -(-vocab // hidden))
    chunk = 2 ** _numpy().ceil(_numpy().log2(_numpy().maximum(rows, 1))).astype("int64")
    return 2 * vocab * _numpy().minimum(chunk, tokens) + 5 * tokens
