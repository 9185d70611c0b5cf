"""A model's layers as pieces of work, read off its profile: which linears, norms, experts and attention they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

from qlora_planner.memory.weights.placement import PlacedTensor, Placement
from qlora_planner.record import record
from qlora_planner.spec.model import LayerKind, TensorGroup
from qlora_planner.speed import classes, recurrent
from qlora_planner.speed import kernels as pieces
from qlora_planner.speed.kernels import Setting
from qlora_planner.speed.work import Pass, Work, moves

_ATTENTION = re.compile(r"attn|attention")
# Mixers that are no softmax attention: gated delta nets, state spaces, short convolutions, recurrences.
_RECURRENT = re.compile(r"linear_attn|mamba|mixer|ssm|recurrent|temporal_block|short_conv|\bconv\b|lightning")
_ANY_MIXER, _STATE = re.compile(r"\.mixer\."), re.compile(r"conv1d|A_log")
_FUSED_NORMS = frozenset({"LayerNorm", "FusedLayerNorm"})
# Those, and one that calls torch's with autocast off, so that it hands on what it was given.
_ONE_KERNEL_NORMS = _FUSED_NORMS | {"NemotronLayerNorm1P"}
_TOWERS = ("vision", "visual", "audio")
_DELTA = re.compile(r"linear_attn\.")


@record
class Grown:
    """What adapters add to the modules of one group per rank: elements, and operations to make B times A whole."""

    elements: float = 0.0
    whole_flops: float = 0.0


Adapted = Mapping[tuple[str, str | None], Grown]


@record
class LayerWork:
    """One kind of layer and how many there are.

    `plain` is its work at sequences up to `window`, `masked` beyond, where a kernel takes a mask and cannot skip half
    of the square of scores. `window` is None where nothing changes with the length. `unneeded` is the end of forward
    that a recompute leaves out, because backward needs nothing of it (torch.utils.checkpoint stops early, unless
    reentrant).
    """

    count: int
    plain: Pass
    masked: Pass
    unneeded: Work
    window: int | None = None


def layers_of(placement: Placement, at: Setting) -> tuple[LayerWork, ...]:
    """The work of every kind of layer; raises InputError when target modules match nothing."""
    adapted = _adapted(placement)
    return tuple(_Layer(placement, at, kind, adapted).work() for kind in placement.profile.layer_kinds)


def has_fused_norms(placement: Placement) -> bool:
    """Whether the layers' norms are torch's own, which autocast runs in float32 and hands on so."""
    groups = [weight.group for weight in placement.weights]
    classes = {group.module_class for group in groups if group.role == "norm" and group.layer_kind is not None}
    return bool(classes) and classes <= _FUSED_NORMS


def widens_stream(placement: Placement) -> bool:
    """Whether autocast runs the activation in float32, which what is quantised hands on to the next layer."""
    return placement.profile.model_type in classes.FLOAT32_ACTIVATIONS


def _adapted(placement: Placement) -> Adapted:
    """What adapters add, by target and layer kind; of each pair A comes before B."""
    grown: dict[tuple[str, str | None], Grown] = {}
    rows, inner = 0, 0
    for adapter in placement.adapters:
        at_1, at_2 = adapter.shape(1), adapter.shape(2)
        flops = 0.0
        if len(at_1) == 2 and at_2[0] > at_1[0]:
            rows, inner = at_2[0] - at_1[0], at_1[1]
        elif len(at_1) == 2 and at_2[1] > at_1[1]:
            flops = 2.0 * rows * inner * at_1[0]
        key = (adapter.target, adapter.layer_kind)
        before = grown.get(key, Grown())
        grown[key] = Grown(elements=before.elements + prod(at_2) - prod(at_1), whole_flops=before.whole_flops + flops)
    return grown


class _Layer:
    def __init__(self, placement: Placement, at: Setting, kind: LayerKind, adapted: Adapted) -> None:
        self.profile, self.run = placement.profile, placement.run
        self.at, self.kind, self.adapted = at, kind, adapted
        weights = placement.layer_weights(kind)
        self.weights = [weight for weight in weights if not any(name in weight.group.name for name in _TOWERS)]
        self.groups = [weight.group for weight in self.weights]
        self.has_rotary = any("rotary" in w.group.name or w.group.role == "rotary" for w in placement.weights)
        self.hidden = int(self.profile.dims.get("hidden_size") or 1)

    def work(self) -> LayerWork:
        """All pieces together."""
        rest = self._feed_forward() + self._experts() + self._norms() + self._mixer_linears()
        rest += pieces.residuals(self.hidden, self.at, 2)
        if self._is_recurrent():
            whole = rest + self._recurrence()
            return LayerWork(count=self.kind.count, plain=whole, masked=whole, unneeded=self._unneeded())
        if not self._linears(mixer=True):
            return LayerWork(count=self.kind.count, plain=rest, masked=rest, unneeded=self._unneeded())
        query, key, value, heads = self._widths()
        if self._dim("position_rows") is None and self.has_rotary:
            rest += pieces.rotary(query, self.at) + pieces.rotary(key, self.at)
        # One head of keys that merely broadcasts suits no fused kernel (aten, sdp_utils.cpp).
        broadcast = self.profile.model_type == "falcon" and key < query and key == self._dim("head_dim")
        kernel = "eager" if broadcast else self.run.attention or "sdpa"
        always = self.run.padding or self.run.packing or self.profile.model_type in classes.ALWAYS_MASKED
        plain, masked = (
            rest + pieces.attention(query, key, value, heads, self.at, kernel, with_mask)
            for with_mask in (bool(always) and kernel == "sdpa", kernel == "sdpa")
        )
        window = self._dim("sliding_window")
        slides = "sliding" in self.kind.name or len(self.profile.layer_kinds) == 1
        return LayerWork(
            count=self.kind.count, plain=plain, masked=masked, unneeded=self._unneeded(),
            window=window if slides else None,
        )  # fmt: skip

    def _dim(self, name: str) -> int | None:
        value = self.profile.dims.get(name)
        return int(value) if value else None

    def _linears(self, mixer: bool) -> list[tuple[PlacedTensor, int, int]]:
        """Linear weights of the mixer or of the rest, with their widths in and out (Conv1D holds them otherwise)."""
        linears = []
        for weight in self.weights:
            group = weight.group
            if group.role == "linear" and len(group.shape) == 2 and _in_mixer(group.name) == mixer:
                outer, inner = group.shape if group.module_class != "Conv1D" else group.shape[::-1]
                linears.append((weight, inner, outer))
        return linears

    def _linear(self, weight: PlacedTensor, inner: int, outer: int, source: int) -> Pass:
        module = weight.group.name.removesuffix(".weight")
        product = pieces.linear(
            inner, outer, self.at, quantized=weight.scheme is not None,
            adapted=(module, self.kind.name) in self.adapted, source=source,
        )  # fmt: skip
        return product * self._each(weight.group)

    def _each(self, group: TensorGroup) -> float:
        """How many of a group one layer has."""
        return group.count / self.kind.count

    def _mixer_linears(self) -> Pass:
        linears, total = self._linears(mixer=True), Pass()
        outputs = [index for index, (_, _, outer) in enumerate(linears) if outer == self.hidden]
        last = outputs[-1] if outputs else -1
        for index, (weight, inner, outer) in enumerate(linears):
            # Fused attention gives the compute dtype, whatever the stream is in.
            source = self.at.compute if index == last and self.at.autocast else self.at.stream
            total += self._linear(weight, inner, outer, source)
        return total + pieces.shared_inputs(self.hidden, self.at, max(1, len(linears) - 1))

    def _feed_forward(self) -> Pass:
        total, ups, downs, uses = Pass(), 0.0, 0.0, 0.0
        for weight, inner, outer in self._linears(mixer=False):
            each = self._each(weight.group)
            total += self._linear(weight, inner, outer, self.at.stream)
            if outer == self.hidden and inner != self.hidden:
                downs += inner * each
            elif inner == self.hidden:
                ups, uses = ups + outer * each, uses + each
        if downs:
            form = classes.ACTIVATIONS.get(
                self.profile.model_type, pieces.GATED if ups >= 1.9 * downs else pieces.PLAIN
            )
            total += pieces.activation(downs, self.at, form)
        return total + pieces.shared_inputs(self.hidden, self.at, max(1, round(uses)))

    def _unneeded(self) -> Work:
        """The last product of a dense layer: whole where it has no adapter, else the adapter's second."""
        downs = [
            linear for linear in self._linears(mixer=False) if linear[2] == self.hidden and linear[1] != self.hidden
        ]
        if not downs or any(group.role == "experts" for group in self.groups):
            return Work()
        weight, inner, outer = downs[-1]
        if (weight.group.name.removesuffix(".weight"), self.kind.name) in self.adapted:
            return pieces.adapter_end(outer, self.at)
        return self._linear(weight, inner, outer, self.at.stream).forward

    def _experts(self) -> Pass:
        stacks = [group for group in self.groups if group.role == "experts" and len(group.shape) == 3]
        routers = [group for group in self.groups if group.role == "router" and len(group.shape) == 2]
        if not stacks:
            return Pass()
        count = stacks[0].shape[0]
        sides = [[side for side in group.shape[1:] if side != self.hidden] or [self.hidden] for group in stacks]
        widths = sorted(max(side) for side in sides)
        inner = widths[0]
        outer = sum(widths) - inner
        here = {module: grown for (module, kind), grown in self.adapted.items() if kind == self.kind.name}
        on_stacks = [grown for module, grown in here.items() if any(_same(group.name, module) for group in stacks)]
        on_stacks = on_stacks or [grown for module, grown in here.items() if module.endswith("experts")]
        model_type = self.profile.model_type
        per_token = self._dim("num_experts_per_tok") or classes.EXPERTS_PER_TOKEN.get(model_type, 1)
        total = pieces.experts(
            count, min(per_token, count), self.hidden, inner, outer, self.at, adapted=bool(on_stacks),
            dense=model_type in classes.DENSE_EXPERTS,
            rank_factor=sum(grown.elements for grown in on_stacks),
            whole_flops=sum(grown.whole_flops for grown in on_stacks),
            biased=any("experts" in group.name and group.name.endswith("bias") for group in self.groups),
        )  # fmt: skip
        for group in routers[:1]:
            adapted = any(_same(group.name, module) for module, kind in self.adapted if kind == self.kind.name)
            total += pieces.router(count, self.hidden, self.at, adapted=adapted)
            python, engine = classes.PICKS_IN_TURN.get(model_type, (0, 0))
            total += Pass(forward=moves(python) + moves(engine, engine=True))
        return total

    def _norms(self) -> Pass:
        total = Pass()
        query, key, _, _ = self._widths()
        head = self._dim("head_dim")
        for group in self.groups:
            if group.role != "norm" or not group.name.endswith("weight") or len(group.shape) != 1:
                continue
            width = group.shape[0]
            alone = self._each(group) <= 2  # not one norm for each head, as in a list of them
            if alone and (width == head or (width != self.hidden and width in (query, key))):
                width = key if "k_" in group.name or "key" in group.name else query
            fused = group.module_class in _ONE_KERNEL_NORMS
            total += pieces.norm(width, self.at, fused=fused) * self._each(group)
        return total

    def _widths(self) -> tuple[int, int, int, int]:
        """Elements per token of queries, keys and values, and heads."""
        heads = self._dim("num_attention_heads") or max(1, self.hidden // 64)
        head = self._dim("head_dim") or self.hidden // heads
        keys = self._dim("num_key_value_heads") or heads
        linears = self._linears(mixer=True)
        outs = {weight.group.name.removesuffix(".weight").rpartition(".")[2]: outer for weight, _, outer in linears}
        into_last = next((inner for weight, inner, _ in linears if "o_proj" in weight.group.name), 0)
        if "kv_b_proj" in outs:  # latent attention: keys and values of every head are made from a low-rank vector
            both = outs["kv_b_proj"]
            rotary = self._dim("qk_rope_head_dim") or 64
            query = outs.get("q_b_proj", outs.get("q_proj", both))
            value = max(1, both - (query - heads * rotary))
            return query, query, value, heads
        fused = outs.get("query_key_value") if self.profile.model_type == "falcon" else None
        keys = keys if fused is None else (fused // head - heads) // 2  # which its config need not say
        query = outs.get("q_proj", heads * head)
        if query == 2 * into_last:  # half of it gates what attention gives (qwen3_next, qwen3_5)
            query = into_last
        key = outs.get("k_proj", keys * head)
        return query, key, outs.get("v_proj", key), heads

    def _is_recurrent(self) -> bool:
        names = [group.name for group in self.groups if _in_mixer(group.name)]
        if not any(_STATE.search(name) for name in names):  # what is called a mixer may be attention (nemotron_h)
            names = [name for name in names if not _ANY_MIXER.search(name)]
        return any(_RECURRENT.search(name) for name in names)

    def _recurrence(self) -> Pass:
        """What lies between the products of a recurrent mixer: convolution, gates, and the scan."""
        width = sum(outer for _, inner, outer in self._linears(mixer=True) if inner == self.hidden)
        s = self.at.stream
        names = [group.name for group in self.groups]
        if any(_DELTA.search(name) for name in names):
            return recurrent.delta_scan(width)
        states = [group for group in self.groups if group.name.endswith(("rg_lru.recurrent_param", "A_log"))]
        if states and (len(states[0].shape) == 2 or not states[0].name.endswith("A_log")):  # of Mamba's first version
            return recurrent.step_by_step(prod(states[0].shape))
        total = Pass(forward=moves(8, 8 * s * width), backward=moves(14, 14 * s * width, engine=True))
        heads = [group.shape[0] for group in self.groups if group.name.endswith("A_log")]
        convolved = [group.shape[0] for group in self.groups if "conv1d.weight" in group.name]
        if heads and convolved:
            inner = width - convolved[0] - heads[0]
            groups, chunk = classes.SCANS.get(self.profile.model_type, classes.USUAL_SCAN)
            total += recurrent.state_space(
                heads[0], inner // heads[0], max(0, convolved[0] - inner) // 2 // groups, chunk
            )
        return total


def _in_mixer(name: str) -> bool:
    inside = name.partition(".*.")[2] or name
    mixes = bool(_ATTENTION.search(inside) or _RECURRENT.search(inside))
    return mixes and not any(word in inside for word in ("mlp", "norm", "expert", "up_proj", "down_proj"))


def _same(name: str, module: str) -> bool:
    return name.removesuffix(".weight") == module or name.rpartition(".")[0] == module
