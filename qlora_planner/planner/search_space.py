"""What a search varies: the knobs that the user left open, the values tried, and the rules that leave others out.

A rule is something that people who do this know, with its source; `plan --explain` shows them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Any

from qlora_planner.catalog.trainers import DIVERGENCE, trainer_named
from qlora_planner.errors import InputError
from qlora_planner.memory.options.stored_checkpoint import stored_options
from qlora_planner.planner.knobs import SOME_LAYERS
from qlora_planner.record import record
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

# Sequences per optimizer step where the user wants none in particular: what the QLoRA paper's recipes use (Dettmers et
# al. 2023, table 9: 16 on OASST1 at every size).
EFFECTIVE_BATCH = 16
RANKS = (8, 16, 32, 64, 128, 256)
# Beyond what QLoRA found to make no difference (section 4 and appendix A: rank is unrelated to quality once every
# linear layer is adapted), a larger rank is no better quality.
QUALITY_RANKS = (16, 32, 64)
LARGEST_BATCH = 64


@record
class Rule:
    """Why some values are not tried."""

    name: str
    says: str
    source: str


RULES = (
    Rule(
        name="stack",
        says="nothing that the installed libraries refuse, as dropout on fused experts",
        source="asked of the model's class, PEFT, trl and bitsandbytes when it was profiled; see `audit`",
    ),
    Rule(
        name="bfloat16",
        says="bfloat16 where the card has it, float16 elsewhere",
        source="compute capability 8.0, CUDA C++ programming guide, arithmetic instructions",
    ),
    Rule(
        name="alpha",
        says="alpha is twice the rank, so that a rank can be changed without a new learning rate",
        source="LoRA paper (Hu et al. 2021), section 4.1: scaling by alpha / r",
    ),
    Rule(
        name="effective-batch",
        says="micro-batch times accumulation stays what is wanted, so memory never changes what is learnt",
        source=f"{EFFECTIVE_BATCH} sequences unless asked otherwise: QLoRA paper, table 9",
    ),
    Rule(
        name="all-linear",
        says="adapters on every linear layer",
        source="QLoRA paper, figure 2: needed to match full fine-tuning; attention alone does not",
    ),
    Rule(
        name="nf4",
        says="nf4 rather than fp4: the same bytes, better values",
        source="QLoRA paper, table 2 and figure 3",
    ),
    Rule(
        name="no-upcast",
        says="16-bit weights stay as they are: an fp32 copy costs memory and speed and trains no better",
        source="trl pull request 4457 took the cast out",
    ),
    Rule(
        name="fused-attention",
        says="SDPA where the class has it: the same sums without a matrix of sequence x sequence",
        source="torch.nn.functional.scaled_dot_product_attention",
    ),
    Rule(
        name="int8",
        says="8-bit weights only where quality is asked for before speed",
        source="bitsandbytes multiplies outlier columns of activations apart: their number, and so speed and memory,"
        " depends on trained weights, which no measurement here had",
    ),
    Rule(
        name="offloading",
        says="activations go to the host only where the longest context is asked for, or nothing else fits",
        source="each layer's input crosses PCIe twice: 1 x 4,096 tokens of Llama-3.1-8B took 0.87 s instead of 0.73 s",
    ),
    Rule(
        name="some-layers",
        says="memory that is left goes to layers that keep what backward needs: 1 in 2, 3, 4 or 8 is checkpointed",
        source="transformers' gradient_checkpointing_kwargs, every_n_layers; a layer that keeps all is not run again",
    ),
    Rule(
        name="near-ties",
        says="of runs within 2 % of the fastest: more bits, the usual options, a traced run, the least memory",
        source="nobody can tell runs so near apart beforehand; docs/accuracy.md has the accuracy of the speed model",
    ),
)


@record
class WeightStorage:
    """How weights are stored: one way to train, with a name for people, best quality first."""

    name: str
    options: Mapping[str, Any]
    quality: int  # 16-bit before 8-bit before 4-bit


WEIGHT_STORAGES = (
    WeightStorage(name="16-bit LoRA", options={"method": "lora", "quant": "none"}, quality=2),
    WeightStorage(name="8-bit", options={"method": "qlora", "quant": "int8"}, quality=1),
    WeightStorage(
        name="4-bit, plain constants", options={"method": "qlora", "quant": "nf4", "double_quant": False}, quality=0
    ),
    WeightStorage(
        name="4-bit, double-quantised", options={"method": "qlora", "quant": "nf4", "double_quant": True}, quality=0
    ),
)
OPTIMIZERS = ("paged_adamw_8bit", "adamw_8bit", "adamw_torch_fused")


@record
class SearchSpace:
    """What may be chosen: option sets, and sizes.

    `effective_batch` sequences a step, reached by any of `batches` with accumulation; None where the accumulation is
    the run's own.
    """

    options: tuple[Mapping[str, Any], ...]
    batches: tuple[int, ...]
    ranks: tuple[int, ...]
    effective_batch: int | None

    def accumulation(self, batch: int, run: RunConfig) -> int:
        """Micro-batches per step with this batch."""
        return run.grad_accum if self.effective_batch is None else max(1, self.effective_batch // batch)


def fixed_options(run: RunConfig, given: Collection[str] | None) -> frozenset[str]:
    """The options that are the user's: those named, else every one that differs from its default."""
    if given is not None:
        return frozenset(given)
    default = RunConfig()
    return frozenset(name for name, value in run.to_dict().items() if value != getattr(default, name))


def search_space(
    profile: ModelProfile,
    run: RunConfig,
    fixed: frozenset[str],
    *,
    effective_batch: int | None = None,
    packed: bool = False,
    int8: bool = False,
    offloading: bool = False,
    some_layers: bool = True,
    whole: bool = True,
) -> SearchSpace:
    """Every combination of what is not `fixed`; `packed`, `int8`, `offloading` and `some_layers` try those too.

    With `whole` false the optimizer and the allocator stay as they are, as for a survey of many models.
    """
    open_axes: list[list[dict[str, Any]]] = [_bases(profile, run, fixed, int8)]
    # Options of checkpointing keep it as it is.
    checkpointing = {"gradient_checkpointing", "checkpoint_every", "checkpoint_offload"} & fixed
    if not checkpointing and profile.supports.get("gradient_checkpointing", True):
        open_axes.append(list(_checkpointing(run, some_layers)))
    if whole:
        if "optimizer" not in fixed:
            open_axes.append([{"optimizer": name} for name in OPTIMIZERS])
        if offloading and "activation_offloading" not in fixed:
            open_axes.append([{"activation_offloading": False}, {"activation_offloading": True}])
        if "alloc_conf" not in fixed:
            open_axes.append([{"alloc_conf": None}, {"alloc_conf": "expandable_segments:True"}])
    if packed and "packing" not in fixed:
        open_axes.append([{"packing": False}, {"packing": True}])
    options = tuple(_runs(open_axes))
    batches, wanted = _batches(run, fixed, effective_batch)
    batches = _whole_groups(run, batches, wanted)
    return SearchSpace(options=options, batches=batches, ranks=(run.rank,), effective_batch=wanted)


def _bases(profile: ModelProfile, run: RunConfig, fixed: frozenset[str], int8: bool) -> list[dict[str, Any]]:
    """Ways to store the weights that agree with what is fixed; the run's own where none does (fp4, full), and where
    they are stored quantised already."""
    if stored_options(profile):
        return [{}]
    pinned = {name: getattr(run, name) for name in ("method", "quant", "double_quant") if name in fixed}
    bases = [
        dict(base.options)
        for base in WEIGHT_STORAGES
        if all(base.options.get(name, value) == value for name, value in pinned.items())
        and (int8 or base.options["quant"] != "int8" or "quant" in fixed)
    ]
    return bases or [{}]


def _checkpointing(run: RunConfig, some_layers: bool) -> Iterator[dict[str, Any]]:
    """All layers are checkpointed, none, or some."""
    for checkpointing in (True, False):
        yield {"gradient_checkpointing": checkpointing, "checkpoint_every": None}
    if some_layers and trainer_named(run.trainer).one_pass:
        for every in SOME_LAYERS:
            yield {"gradient_checkpointing": True, "checkpoint_every": every}


def _runs(axes: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for parts in product(*axes):
        options: dict[str, Any] = {}
        for part in parts:
            options |= part
        # Without checkpoints there is little to offload, and what there is slows the step by its whole size.
        if options.get("activation_offloading") and options.get("gradient_checkpointing") is False:
            continue
        yield options


def _whole_groups(run: RunConfig, batches: tuple[int, ...], effective: int | None) -> tuple[int, ...]:
    """Those batches with which a trainer that generates has whole groups of completions, and of others those that it
    takes; all where none is left."""
    trainer = trainer_named(run.trainer)
    generation = trainer.generation
    if generation is None:  # a batch of one has no completions of others, which some compare with
        least = 2 if DIVERGENCE in trainer.passes_of(run) else 1
        return tuple(size for size in batches if size >= least) or batches
    group = run.num_generations or generation.num_generations
    steps = run.steps_per_generation
    whole = tuple(
        size
        for size in batches
        if size * (steps or (run.grad_accum if effective is None else max(1, effective // size))) % group == 0
    )
    return whole or batches


def _batches(run: RunConfig, fixed: frozenset[str], effective: int | None) -> tuple[tuple[int, ...], int | None]:
    if "batch_size" in fixed:
        return (run.batch_size,), effective
    if effective is None and "grad_accum" in fixed:
        return tuple(2**power for power in range(LARGEST_BATCH.bit_length())), None
    wanted = effective or EFFECTIVE_BATCH
    return tuple(size for size in range(1, min(wanted, LARGEST_BATCH) + 1) if wanted % size == 0), wanted


def with_labels(run: RunConfig, labels: int | None) -> RunConfig:
    """The run of a classifier with as many labels as its data has, where their number is open.

    Raises InputError where the data has more than the run.
    """
    if run.task is None or labels is None:
        return run
    if run.num_labels is not None and labels > run.num_labels:
        raise InputError(f"--num-labels {run.num_labels}: the data has {labels} labels")
    return run.with_(num_labels=run.num_labels or labels)
