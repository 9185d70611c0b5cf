"""What each piece of a decoder layer launches, moves and multiplies, kernel by kernel.

Read off the operators that the installed transformers, PEFT and bitsandbytes dispatch in one layer, forwards and
backwards (`benchmarks/speed_counts.py` prints them); bytes are what each reads plus what it writes. An elementwise
kernel over x elements of `s` bytes that makes one of two moves 3sx.
"""

from __future__ import annotations

from functools import lru_cache

from qlora_planner.record import record
from qlora_planner.speed.work import NOTHING, Pass, Work, moves, multiplies, terms

# A weight is read through dequantising: constants by `dequantize_blockwise` and `add`, then the matrix, then a product.
_QUANTIZED_KERNELS = 4
# A Triton kernel inside an autograd function written in Python passes through as much Python as several operators.
TRITON_LAUNCHES = 3


@record
class Setting:
    """What of a run decides how a layer is computed.

    `stream` and `adapter` are bytes per element of the residual stream and of the adapters; `compute` those that
    products take. `autocast` says whether forward runs under it.
    """

    quant: str
    double_quant: bool
    stream: int
    compute: int
    adapter: int
    autocast: bool
    dropout: bool
    dora: bool
    trains_weights: bool
    liger: bool = False

    @property
    def rate(self) -> str:
        """Which units multiply."""
        return "float" if self.compute == 4 else "half"


def cast(width: float, source: int, target: int) -> Work:
    """A copy in another dtype, launched by autocast or the engine without Python between; nothing for the same one."""
    return NOTHING if source == target else moves(1, (source + target) * width, engine=True)


@lru_cache(maxsize=1024)
def linear(
    inner: int, outer: int, at: Setting, *, quantized: bool, adapted: bool, source: int, bias: bool = False
) -> Pass:
    """One linear layer `inner` to `outer`, with its adapter; `source` is bytes per element of what it is given."""
    product = _base(inner, outer, at, quantized, source, bias)
    return product + _adapter(inner, outer, at, quantized, source) if adapted else product


def _base(inner: int, outer: int, at: Setting, quantized: bool, source: int, bias: bool) -> Pass:
    weights, c = inner * outer, at.compute
    product = multiplies(at.rate, terms(tokens=2.0 * weights))
    into, back = cast(inner, source, c), cast(inner, c, source)
    # Under autocast a quantised layer returns the dtype it was given (bitsandbytes, nn/modules.py); others autocast's.
    out = cast(outer, c, source) if quantized else NOTHING
    down = cast(outer, source, c) if quantized else NOTHING
    if quantized and at.quant == "int8":
        # Half copy, largest of each row, outliers looked for (abs, compare), quantise; the int32 product is scaled.
        forward = moves(7, 11 * inner + 10 * outer, one=weights)
        forward += multiplies("int8", terms(tokens=2.0 * weights))
        backward = moves(4, 0.0, engine=True, one=weights * (1 + c + 2 * c + c))
        return Pass(forward=into + forward + out, backward=down + backward + product + back)
    if quantized:
        constants = weights / 64 * (1 + 4 + 8 + 4 if at.double_quant else 4)
        read = weights / 2 + 2 * c * weights + constants
        kernels = _QUANTIZED_KERNELS if at.double_quant else 2
        forward, backward = moves(kernels, one=read), moves(kernels, engine=True, one=read)
    else:
        kept = 4 if at.stream == 4 and not at.trains_weights else c
        copy = 0.0 if kept == c else weights * (4 + c)  # autocast's copy of a float32 weight
        forward = moves(1 if not copy else 2, 0.0, one=c * weights + copy)
        backward = moves(1, 0.0, engine=True, one=c * weights)
    if at.trains_weights:
        backward += product + moves(2, 0.0, engine=True, one=3 * c * weights)
    return Pass(forward=into + forward + product + out, backward=down + backward + product + back)


def _adapter(inner: int, outer: int, at: Setting, quantized: bool, source: int) -> Pass:
    """LoRA beside a layer: `result + B(A(dropout(x))) * scaling` (PEFT, tuners/lora/bnb.py and layer.py)."""
    c = at.compute if at.autocast else at.adapter  # what the small products run in
    given = source
    # A quantised layer's result is cloned first; where autocast does not, PEFT casts the input to the adapters' dtype,
    # and for layers that are not quantised it does so in any case.
    clone = moves(1, 2 * source * outer) if quantized and at.quant != "int8" else NOTHING
    entry = NOTHING
    if not at.autocast or not quantized:
        entry, given = cast(inner, source, at.adapter), at.adapter
    drop = moves(1, (2 * given + 1) * inner) if at.dropout else NOTHING
    undrop = moves(1, (2 * given + 1) * inner, engine=True) if at.dropout else NOTHING
    # Adapters in float32 are cast for each pass, and their gradients back.
    resize = NOTHING if c == at.adapter else moves(2, 0.0, engine=True, rank=(4 + c) * (inner + outer))
    regrad = NOTHING if c == at.adapter else moves(2, 0.0, engine=True, rank=(4 + c) * (inner + outer))
    rate = "float" if c == 4 else "half"
    small = terms(tokens_rank=2.0 * (inner + outer))
    # Products with a side of `rank` are bound by the tall side's bytes.
    tall = moves(2, c * (inner + outer), tokens_rank=2 * c)
    result = source if quantized else at.compute
    joined = moves(2, 2 * c * outer + (2 * result + c) * outer)
    forward = clone + entry + drop + cast(inner, given, c) + resize + tall + multiplies(rate, small) + joined
    if not at.autocast:
        forward += cast(outer, c, result)
    scaled = moves(1, 2 * c * outer, engine=True)
    talls = moves(4, 2 * c * (inner + outer), engine=True, tokens_rank=4 * c)
    summed = moves(1, 3 * source * inner, engine=True)  # into the gradient of the input, beside the layer's own
    backward = cast(outer, result, c) + scaled + talls + multiplies(rate, 2 * small) + regrad
    backward += cast(inner, c, given) + undrop + summed
    if given != source:
        backward += cast(inner, given, source)
    if at.dora:
        forward, backward = forward + _magnitude(inner, outer, c)[0], backward + _magnitude(inner, outer, c)[1]
    return Pass(forward=forward, backward=backward)


def adapter_end(outer: int, at: Setting) -> Work:
    """What a recompute of an adapted layer leaves out when nothing follows it: the second small product, the scaling,
    the sum, and the residual's."""
    c = at.compute if at.autocast else at.adapter
    product = multiplies("float" if c == 4 else "half", terms(tokens_rank=2.0 * outer))
    return product + moves(4, (3 * c + 2 * at.stream + c + 2 * at.stream + 2) * outer)


def _magnitude(inner: int, outer: int, c: int) -> tuple[Work, Work]:
    """DoRA beside an adapter (PEFT, tuners/lora/dora.py): BA whole, through an identity matrix, added to the whole
    weight in float32, its norm by rows; the dropped input times the whole weight; both results scaled."""
    square, dense = float(inner) * inner, float(inner) * outer
    forward = moves(18, 30 * outer + (4 + c) * inner, one=4 * square + 46 * dense)
    forward += multiplies("half", terms(rank=2 * square + 2 * dense, tokens=2 * dense))
    backward = moves(12, 50 * outer + 18 * inner, engine=True, one=c * dense)
    return forward, backward + multiplies("half", terms(tokens=2 * dense))


def norm(width: float, at: Setting, *, fused: bool) -> Pass:
    """A norm over `width` elements a token, and the sum with the residual's gradient.

    `fused` is torch's own layer norm; the others are written out: pow, mean, add, rsqrt, mul, mul in float32.
    """
    s, residual = at.stream, moves(1, 3 * at.stream * width, engine=True)
    if at.liger:  # one Triton kernel each way (liger_kernel, ops/rms_norm.py), and a sum over blocks
        return Pass(
            forward=moves(TRITON_LAUNCHES, 2 * s * width),
            backward=moves(TRITON_LAUNCHES, 3 * s * width) + moves(1, engine=True) + residual,
        )
    if fused:
        casts = moves(2) if at.autocast and s == 4 else NOTHING
        return Pass(forward=moves(1, 2 * s * width) + casts, backward=moves(1, 3 * s * width, engine=True) + residual)
    if s == 4:
        return Pass(forward=moves(6, 28 * width), backward=moves(12, 76 * width, engine=True) + residual)
    return Pass(forward=moves(8, 36 * width), backward=moves(14, 84 * width, engine=True) + residual)


def rotary(width: float, at: Setting) -> Pass:
    """Rotating `width` elements a token: x * cos + cat(-x2, x1) * sin, for queries and keys apart."""
    s = at.stream
    if at.liger:  # one kernel, after copies that make queries and keys dense (ops/rope.py); half of it for either
        each = TRITON_LAUNCHES / 2 + 1
        return Pass(forward=moves(each, 4 * s * width), backward=moves(each, 4 * s * width))
    return Pass(forward=moves(5, 10 * s * width), backward=moves(7, 14 * s * width, engine=True))


PLAIN, GATED, WRITTEN_OUT, SQUARED, XIELU = "plain", "gated", "written out", "squared", "xielu"
# Kernels forwards and backwards, and the bytes an element that they move where the stream has two bytes and four.
_LONG_ACTIVATIONS = {
    WRITTEN_OUT: (8, 14, (36, 68), (72, 136)),  # gelu_new, eight operators in Python
    SQUARED: (3, 6, (18, 40), (16, 40)),  # relu, and pow in float32
    XIELU: (18, 25, (115, 201), (115, 201)),  # written out, and promoted to float32
}  # fmt: skip


def activation(width: float, at: Setting, form: str) -> Pass:
    """The nonlinearity between the two halves of an MLP."""
    s = at.stream
    if form in _LONG_ACTIVATIONS:
        forward, backward, *moved = _LONG_ACTIVATIONS[form]
        there, back = moved[s == 4]
        return Pass(forward=moves(forward, there * width), backward=moves(backward, back * width, engine=True))
    if form == GATED and at.liger:  # ops/swiglu.py, ops/geglu.py
        return Pass(forward=moves(TRITON_LAUNCHES, 3 * s * width), backward=moves(TRITON_LAUNCHES, 5 * s * width))
    if form == GATED:
        return Pass(forward=moves(2, 5 * s * width), backward=moves(3, 9 * s * width, engine=True))
    return Pass(forward=moves(1, 2 * s * width), backward=moves(1, 3 * s * width, engine=True))


def residuals(width: int, at: Setting, count: int) -> Pass:
    """Adding `count` branches to the stream; their gradients' sums are counted with the norms."""
    return Pass(forward=moves(count, (2 * at.stream + 2) * width * count), backward=NOTHING)


def shared_inputs(width: int, at: Setting, uses: int) -> Pass:
    """Sums of the gradients of an input that `uses` layers read, beside what each adapter adds by itself."""
    return Pass(backward=moves(uses - 1, 3 * at.stream * width * (uses - 1), engine=True)) if uses > 1 else Pass()


def attention(query: int, key: int, value: int, heads: int, at: Setting, kernel: str, masked: bool) -> Pass:
    """Scores and their product with the values: `query`, `key`, `value` elements a token.

    A causal kernel skips half of the square; one with a mask does not (cuDNN and memory-efficient attention), reads the
    mask, and takes keys and values repeated to the queries' heads. `eager` writes every score out, several times.
    """
    c = at.compute if at.autocast else at.stream
    # Multiply-adds twice, both products, per token and position; values are multiplied by the scores of every head.
    whole = 2.0 * (query + value * query / key)
    q, k = cast(query, at.stream, c), cast(key + value, at.stream, c)
    forward, backward = q + k, NOTHING
    if at.stream != c:
        forward += moves(1)
        backward += moves(3, (at.stream + c) * (query + key + value), engine=True)
    moved = query + key + value
    if kernel == "eager" or c == 4:
        if key < query:  # repeat_kv, and the sum over the copies
            forward += moves(2, 2 * c * (2 * query))
            backward += moves(2, 2 * c * (2 * query), engine=True)
        # Half scores: product, scale, mask, to float32, softmax, back, product; float32 ones need no casts.
        forward += moves(8, c * 2 * moved, tokens_seq=heads * (32.0 if c == 2 else 30.0))
        backward += moves(8, c * 4 * moved, engine=True, tokens_seq=heads * (36.0 if c == 2 else 28.0))
        rate = "float" if c == 4 else "half"
        forward += multiplies(rate, terms(tokens_seq=whole))
        return Pass(forward=forward, backward=backward + multiplies(rate, terms(tokens_seq=2 * whole)))
    part = 1.0 if masked else 0.5
    if masked:
        forward += moves(1, 0.0, tokens_seq=3.0)  # the boolean mask becomes an additive one
        if key < query:
            forward += moves(2, 2 * c * (2 * query))
            backward += moves(2, 2 * c * (2 * query), engine=True)
    forward += moves(1, c * (moved + query) + 4 * heads) + multiplies("attention", terms(tokens_seq=part * whole))
    # Backward makes the scores again: five products for two.
    backward += moves(1, c * (2 * moved + 2 * query), engine=True)
    backward += multiplies("attention", terms(tokens_seq=2.5 * part * whole))
    # Transposed gradients of queries, keys and values are made dense for the layers before.
    backward += moves(2, 2 * at.stream * (query + key), engine=True)
    return Pass(forward=forward, backward=backward)


def experts(
    count: int, per_token: int, hidden: int, inner: int, outer: int, at: Setting, *, biased: bool, adapted: bool,
    dense: bool, rank_factor: float, whole_flops: float,
) -> Pass:  # fmt: skip
    """Experts held as stacks of matrices: tokens sorted by expert, two grouped products, weighted sum.

    `dense` experts are given every token each, side by side, and their outputs are weighted and summed.
    `outer` is the width of the first stack's output (both halves of a gate), `inner` the second's input. An adapter on
    a stack makes W + scaling * BA whole in each pass, and its gradient too (PEFT, ParamWrapper); `rank_factor` is the
    adapters' elements per rank of one layer, `whole_flops` what making BA takes per rank.
    """
    c, k = at.compute, count if dense else per_token
    stack = float(count) * hidden * (outer + inner)
    flops = terms(tokens=2.0 * k * hidden * (outer + inner))
    reached = c * stack / count
    # index, masked_fill twice, silu and mul, weights, index, sum: bytes a token and chosen expert.
    forward = moves(22, k * (c * (9 * hidden + 3 * outer) + 5 * c * inner) + 6 * hidden, experts_tokens=reached)
    forward += multiplies("half", flops)
    backward = moves(26, k * (c * (14 * hidden + 5 * outer) + 9 * c * inner) + 12 * hidden, engine=True,
                     experts_tokens=reached) + multiplies("half", flops)  # fmt: skip
    if dense:
        forward = moves(12, k * c * (6 * hidden + 5 * inner), one=c * stack) + multiplies("half", flops)
        backward = moves(16, k * c * (14 * hidden + 9 * inner), engine=True, one=c * stack) + multiplies("half", flops)
    if at.trains_weights:
        backward += multiplies("half", flops) + moves(2, 0.0, engine=True, one=3 * c * stack)
    if biased:  # biases by expert, and the clamped activation that comes with them (gpt_oss)
        forward += moves(7, c * k * (2 * outer + 2 * hidden + 11 * inner))
        backward += moves(10, c * k * (3 * outer + 3 * hidden + 20 * inner), engine=True)
    if adapted:
        products = multiplies("half", terms(rank=whole_flops))
        # Whole twice in a pass: once as the parametrisation is registered, once as it is read.
        forward += moves(4, 0.0, one=4 * c * stack, rank=2 * c * rank_factor) + products * 2
        # The stacks' dense gradients (a product of their own), and from them those of A and B.
        backward += multiplies("half", flops) + products * 2
        backward += moves(10, k * c * (2 * hidden + outer + inner), engine=True, one=3 * c * stack,
                          rank=4 * c * rank_factor)  # fmt: skip
    return Pass(forward=forward, backward=backward)


def router(count: int, hidden: int, at: Setting, *, adapted: bool) -> Pass:
    """Scores over experts, the best of them, their weights."""
    forward = moves(8 + (3 if adapted else 0), 2 * hidden + 26 * count)
    backward = moves(12 + (4 if adapted else 0), 6 * hidden + 30 * count, engine=True)
    flops = terms(tokens=2.0 * hidden * count)
    return Pass(
        forward=forward + multiplies("half", flops),
        backward=backward + multiplies("half", flops) * (2 if adapted else 1),
    )
