"""How fast a run is on several cards: one card's step and what the cards then tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qlora_planner.catalog import DTYPE_BYTES, trainer_row
from qlora_planner.catalog.parallel import DDP, FSDP2, GLOO, PIPELINE
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, Sharding, unplayed
from qlora_planner.memory.records import Basis, Speed
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.trainable import training_dtype
from qlora_planner.spec.machine import GpuSpec, Machine
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import speed_of

# Of what the links could carry: two H200s reduced buckets of 25 MiB at 215 GB/s over links of 450. Assumed elsewhere,
# on networks between nodes too.
LINK_FRACTION = 215 / 450
# Of the time in which cards talk, how much passes while they compute. Assumed: with none of it two H200s were predicted
# to take 4 % more than they took under DDP, 2 % more under FSDP2.
HIDDEN_SHARE = 0.0


def speed_within(budget: Budget, profile: ModelProfile, run: RunConfig, stack: Mapping[str, str]) -> Speed:
    """Tokens per second of all cards of a budget together and seconds per step; all None where nothing is known."""
    return speed_on(budget.machine, profile, run, budget.gpu, budget.calibration, stack)


def speed_on(
    machine: Machine | None,
    profile: ModelProfile,
    run: RunConfig,
    gpu: GpuSpec | None,
    calibration: Calibration | None,
    stack: Mapping[str, str],
) -> Speed:
    """The same on a machine of this card.

    Every gradient is reduced once a step over the link between the cards, and FSDP2 gathers weights for forward and
    for backward of each micro-batch; none of that is taken to hide behind arithmetic (`HIDDEN_SHARE`). Unknown where
    nobody says what the cards of a node, or the nodes, talk over, and for other strategies that gather weights.
    """
    alone = speed_of(profile, run, gpu, calibration, stack)
    if machine is None or machine.world == 1 or alone.step_s is None or alone.tokens_per_s is None:
        return alone
    if run.ddp_backend == GLOO:  # by way of the host's memory, whose pace nobody has said
        return Speed()
    if run.parallel == PIPELINE:  # cards take turns
        return replace(alone, basis=Basis.ASSUMED)
    if run.parallel == FSDP2:
        seconds = gather_s(machine, profile, run, stack)
    else:
        seconds = reduce_s(machine, _gradient_bytes(profile, run, stack)) if run.parallel == DDP else None
    if seconds is None:
        return Speed()
    step_s = alone.step_s + (1 - HIDDEN_SHARE) * seconds
    tokens_per_s = machine.world * alone.tokens_per_s * alone.step_s / step_s
    return Speed(tokens_per_s=tokens_per_s, step_s=step_s, basis=alone.basis if _measured(machine) else Basis.ASSUMED)


def reduce_s(machine: Machine, size_bytes: int) -> float | None:
    """Seconds in which all ranks add up so many bytes in a ring: each sends 2 (N - 1) / N of them."""
    rate = ring_bytes_per_s(machine)
    world = machine.world
    return None if rate is None else 2 * (world - 1) / world * size_bytes / rate


def ring_bytes_per_s(machine: Machine) -> float | None:
    """What passes through a ring of all ranks in a second; None where nobody said what it passes over.

    NCCL's rings go through every card of a node and then on to the next node, so that what each rank sends passes a
    node's network once for all its cards: the slower of the link and the network sets the pace, since both carry pieces
    of the same message at once. How long a message takes to go round is left out.
    """
    rates = []
    if machine.gpus_per_node > 1:
        rates.append(None if machine.link is None else machine.link.bytes_per_s)
    if machine.nodes > 1:
        rates.append(None if machine.network is None else machine.network.bytes_per_s)
    bytes_per_s = [rate for rate in rates if rate is not None]
    return LINK_FRACTION * min(bytes_per_s) if bytes_per_s and len(bytes_per_s) == len(rates) else None


def gather_s(machine: Machine, profile: ModelProfile, run: RunConfig, stack: Mapping[str, str]) -> float | None:
    """Seconds of a step in which all ranks gather weights and scatter gradients: each takes in (N - 1) / N of
    what is gathered.

    Layers and the embedding are gathered for forward and for backward, what forward keeps and the head once.
    """
    rate = ring_bytes_per_s(machine)
    if rate is None or unplayed(run):
        return None
    world, (trainer, _) = machine.world, trainer_row(run.trainer, dict(stack))
    model = ShardedModel(Placement(profile, run), trainer, Sharding.of(run, world))
    again = 2 if run.reshard_after_forward is not False else 1
    layers = sum(model.layers[kind].gathered_bytes for kind in model.kinds)
    ends = model.embedding.gathered_bytes * (1 if model.tied else again) + model.root.gathered_bytes
    head = 0 if model.head is None else model.head.gathered_bytes
    taken = run.grad_accum * (again * layers + ends + head) + sum(unit.reduced_bytes() for unit in model.units)
    return (world - 1) / world * taken / rate


def _measured(machine: Machine) -> bool:
    """Whether cards of this kind were timed together."""
    return machine.gpus[0].name == "h200" and machine.nodes == 1


def _gradient_bytes(profile: ModelProfile, run: RunConfig, stack: Mapping[str, str]) -> int:
    trainer, _ = trainer_row(run.trainer, dict(stack))
    return sum(
        tensor.numel * tensor.count * DTYPE_BYTES[training_dtype(tensor.dtype, run, trainer, tensor.shape)]
        for tensor in Placement(profile, run).trained
    )
