"""The work of one optimizer step of a run: polynomials by stage, compiled once for a model and its options."""

from __future__ import annotations

from qlora_planner.catalog import LossMemory, OptimizerRow, TrainerRow, find_optimizer
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.sweep.validity import HEAD_TILE_TOKENS
from qlora_planner.memory.weights.classifier import LABELS
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.trainable import training_dtype
from qlora_planner.record import record, replaced
from qlora_planner.spec.family import layer_kinds
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.kernels import Setting, cast, norm
from qlora_planner.speed.layers import LayerWork, has_fused_norms, layers_of, widens_stream
from qlora_planner.speed.work import NOTHING, Pass, Work, moves, multiplies, terms

# trl 1.15 and later, trainer/utils.py add_fused_lm_head: vocabulary columns of one tile of the head.
HEAD_TILE_COLUMNS = 32768
# The head multiplies once forwards and, where it is not trained, about twice backwards (see `_head`): a pass without
# gradients does a third of it.
_HEAD_PRODUCTS = 3


@record
class StepWork:
    """One optimizer step: `micro_steps` times `micro`, then the optimizer over `tensors` trainable tensors.

    `micro` holds for sequences up to the first window; `masked` is added once a window is exceeded, by window. Both
    are of `sequences_per_row` times the batch. Where rows lie `end_to_end`, each token meets those of all rows.
    """

    micro: Work
    masked: tuple[tuple[int, Work], ...]
    micro_steps: int
    optimizer_fixed: float  # bytes of the optimizer's step that do not depend on the rank
    optimizer_per_rank: float  # bytes per rank
    tensor_steps: float  # tensors that are stepped over one by one
    experts: int
    head_tile_tokens: int = HEAD_TILE_TOKENS
    sequences_per_row: int = 1
    end_to_end: bool = False

    def towards(self, other: StepWork, share: float) -> StepWork:
        """A step part of whose layers are as in `other`, all being alike."""

        def between(first: Work, second: Work) -> Work:
            return first + (second + first * -1) * share

        masked = zip(self.masked, other.masked, strict=True)
        return replaced(
            self,
            micro=between(self.micro, other.micro),
            masked=tuple((window, between(first, second)) for (window, first), (_, second) in masked),
        )


def setting_of(placement: Placement, trainer: TrainerRow) -> Setting:
    """What of a resolved run decides how its layers are computed."""
    run = placement.run
    compute = 4 if run.compute_dtype == "float32" else 2
    autocast = trainer.autocast and compute == 2
    quantized = placement.packed_matrices > 0
    # Norms that autocast runs in float32 hand it on where a layer returns the dtype it was given: quantised ones do.
    # DoRA's float32 magnitudes make every result float32.
    hands_on = quantized and (has_fused_norms(placement) or widens_stream(placement))
    wide = bool(run.upcast) or (autocast and (hands_on or run.dora))
    return Setting(
        quant=run.quant or "none",
        double_quant=run.double_quant,
        stream=4 if wide or compute == 4 else 2,
        compute=compute if autocast or (run.quant or "none") != "none" else (4 if wide else 2),
        adapter=2 if training_dtype("float32", run, trainer, (1, 1)) == "bfloat16" else 4,
        autocast=autocast,
        dropout=bool(run.lora_dropout),
        dora=run.dora,
        trains_weights=run.method == "full",
        liger=run.liger,
    )


def layer_works(profile: ModelProfile, resolution: Resolution) -> tuple[LayerWork, ...]:
    """The work of every kind of layer of a resolved run, however many are recomputed; raises InputError when target
    modules match nothing."""
    placement = Placement(profile, resolution.run)
    return layers_of(placement, setting_of(placement, resolution.trainer))


def step_work(
    profile: ModelProfile,
    resolution: Resolution,
    layers: tuple[LayerWork, ...] | None = None,
    stepped: tuple[float, float, float] | None = None,
) -> StepWork:
    """The work of one step of a resolved run; `layers` and `stepped` are its `layer_works` and its `optimizer_work`,
    where they are at hand. Raises InputError when target modules match nothing."""
    run, trainer = resolution.run, resolution.trainer
    placement = Placement(profile, run)
    at = setting_of(placement, trainer)
    layers = layers_of(placement, at) if layers is None else layers
    beside = len(trainer.passes) - 1  # passes without gradients: a forward each
    again = recomputed_shares(profile, run)
    micro = _total(
        [
            _passes(layer.plain, run, share, layer.unneeded, beside) * layer.count
            for layer, share in zip(layers, again, strict=True)
        ]
    )
    masked = tuple(
        (layer.window, _beyond(layer, run, share, beside))
        for layer, share in zip(layers, again, strict=True)
        if layer.window is not None
    )
    head = _head(placement, at, resolution.loss)
    micro += head * (1 + beside / _HEAD_PRODUCTS) if beside else head
    fixed, per_rank, tensors = stepped or optimizer_work(profile, run, trainer)
    return StepWork(
        micro=micro,
        masked=masked,
        micro_steps=run.grad_accum,
        optimizer_fixed=fixed,
        optimizer_per_rank=per_rank,
        tensor_steps=tensors,
        experts=int(profile.dims.get("num_experts") or profile.dims.get("num_local_experts") or 0),
        sequences_per_row=trainer.sequences_per_row,
        end_to_end=run.packing and run.attention != "flash_attention_2",
    )


def _total(parts: list[Work]) -> Work:
    total = NOTHING
    for part in parts:
        total += part
    return total


def recomputed_shares(profile: ModelProfile, run: RunConfig) -> tuple[float, ...]:
    """Of each kind of layer, the part that backward computes once more: layers 0, n, 2 n and so on of a run that
    checkpoints every n-th one."""
    every = (run.checkpoint_every or 1) if run.gradient_checkpointing else None
    order = layer_kinds(profile)
    of_kind = [[index for index, name in enumerate(order) if name == kind.name] for kind in profile.layer_kinds]
    if every is None or every == 1:
        return tuple(0.0 if every is None else 1.0 for _ in of_kind)
    return tuple(sum(index % every == 0 for index in indices) / max(1, len(indices)) for indices in of_kind)


def _passes(layer: Pass, run: RunConfig, share: float, unneeded: Work, beside: int) -> Work:
    """Forward and backward; of a `share` of layers the forward once more, less what backward does not need.

    `beside` forwards without gradients come on top.
    """
    forward = layer.forward * (1 + beside) if beside else layer.forward
    if not share:
        return forward + layer.backward
    again = layer.forward if run.use_reentrant else layer.forward + unneeded * -1
    return forward + (again if share == 1 else again * share) + layer.backward


def _beyond(layer: LayerWork, run: RunConfig, share: float, beside: int) -> Work:
    """What a mask adds to a kind of layer."""
    more = _passes(layer.masked, run, share, NOTHING, beside) + _passes(layer.plain, run, share, NOTHING, beside) * -1
    return more * layer.count


def _head(placement: Placement, at: Setting, loss: LossMemory) -> Work:
    """Embedding, last norm, output head and loss, forwards and backwards."""
    profile, run = placement.profile, placement.run
    hidden = int(profile.dims.get("hidden_size") or 1)
    vocab = int(profile.dims.get(LABELS) or profile.dims.get("vocab_size") or 1)
    c, weights = at.compute, float(hidden) * vocab
    last = norm(hidden, at, fused=has_fused_norms(placement))
    total = last.forward + last.backward + moves(12, 4 * at.stream * hidden)
    total += cast(hidden, at.stream, c) + cast(hidden, c, at.stream)
    product = terms(tokens=2.0 * weights)
    kept = 4 if run.upcast else 2
    if loss.kind == "fused":
        tiles = -(-vocab // HEAD_TILE_COLUMNS)
        # Each tile of tokens reads the head, forwards once and backwards twice, and casts a float32 one each time.
        read = weights * (3 * c + (0 if kept == c else 2 * (kept + c)) + (8 if at.trains_weights else 0))
        kernels = tiles * (2 + 3) + (0 if kept == c else 2 * tiles) + (tiles if at.trains_weights else 0)
        work = Work(launches=terms(one=120, tiles=kernels), engine_launches=terms(one=40))
        # Forwards a tile is written and folded; backwards written, turned in place, multiplied.
        work += Work(traffic=terms(tokens=12.0 * vocab + 20 * hidden, tiles=read))
        return total + work + multiplies(at.rate, (4 if at.trains_weights else 3) * product)
    copy = 0.0 if kept == c else (kept + c) * weights
    if loss.kind == "cut":
        # Logits stay on the chip: a product forwards, that product again and one for the gradient backwards.
        passes = 4 if at.trains_weights else 3
        work = Work(launches=terms(one=20), engine_launches=terms(one=12), traffic=terms(one=passes * c * weights))
        return total + work + multiplies(at.rate, passes * product)
    if loss.kind == "liger":
        # Logits in chunks of a few rows, turned into their gradient in place, and multiplied with the head at once
        # (liger_kernel, ops/fused_linear_cross_entropy.py): the head is read twice for every chunk of T d / V rows.
        chunks = vocab / hidden
        work = Work(
            launches=terms(one=20 + 6 * chunks), engine_launches=terms(one=4),
            traffic=terms(tokens=5.0 * c * vocab, one=2 * chunks * c * weights + copy),
        )  # fmt: skip
        return total + work + multiplies(at.rate, (3 if at.trains_weights else 2) * product)
    # Logits: written, to float32 (by the loss and by accelerate), log-softmax; backwards nll, log-softmax, cast.
    logits = (c + (c + 4) + (8 if at.autocast else 0) + 8 + 4) + (4 + 12 + (4 + c) + 2 * c)
    passes = 3 if at.trains_weights else 2
    work = Work(
        launches=terms(one=20), engine_launches=terms(one=20),
        traffic=terms(tokens=float(logits) * vocab, one=passes * c * weights + copy),
    )  # fmt: skip
    if loss.kind in ("chunked", "chunked_no_copy"):
        chunk = (4.0 * weights + 2 * weights if loss.kind == "chunked" else 2.0 * weights) / 256 * 3
        work += Work(traffic=terms(tokens=chunk), launches=terms(tokens=40 / 256))
        passes = 3
    return total + work + multiplies(at.rate, passes * product)


# One step of an optimizer that takes tensors one by one (bitsandbytes, adafactor) launches and looks things up for
# each; torch's take them in lists, with about this part of the work left for each tensor: gathering and checking it.
_LISTED = 0.15


def optimizer_work(profile: ModelProfile, run: RunConfig, trainer: TrainerRow) -> tuple[float, float, float]:
    """Bytes of one step, clipping included, apart from the rank and per rank; tensors stepped over one by one."""
    optimizer = find_optimizer(run.optimizer)
    assert optimizer is not None
    here, at_rank_1 = (_optimizer_bytes(profile, at, trainer, optimizer) for at in (run, run.with_(rank=1)))
    per_rank = (here[0] - at_rank_1[0]) / (run.rank - 1) if run.rank > 1 else 0.0
    if run.rank == 1:
        two = _optimizer_bytes(profile, run.with_(rank=2), trainer, optimizer)
        per_rank = two[0] - at_rank_1[0]
    listed = _LISTED if optimizer.kind in ("torch", "none") else 1.0
    return here[0] - per_rank * run.rank, per_rank, here[1] * listed


def _optimizer_bytes(
    profile: ModelProfile, run: RunConfig, trainer: TrainerRow, optimizer: OptimizerRow
) -> tuple[float, int]:
    traffic, tensors = 0.0, 0
    for tensor in Placement(profile, run).trained:
        dtype, count = training_dtype(tensor.dtype, run, trainer, tensor.shape), tensor.count
        size = 2 if dtype in ("bfloat16", "float16") else 4
        states = sum(state.size_bytes for state in optimizer.states(tensor.shape, dtype, tensor.forced_32bit(trainer)))
        # The norm reads the gradient, clipping reads and writes it; the step reads it, and reads and writes the weight
        # and the states.
        traffic += count * (tensor.numel * size * 6.0 + 2 * states)
        tensors += count
    return traffic, tensors
