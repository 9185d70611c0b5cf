"""Budget: what one process may use of one card of a machine, and how well that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from qlora_planner.catalog.cuda import ContextRow, context_row, cublas_workspace_bytes
from qlora_planner.catalog.gpus import usable_bytes
from qlora_planner.catalog.links import machine_of
from qlora_planner.catalog.parallel import GLOO, STREAM_POOL_BYTES, communication_row, strategy_row
from qlora_planner.catalog.trainers import VLLM_SHARE, trainer_named
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.memory.distribution import Distribution, beside_a_cap, distribution, interval, probability_over
from qlora_planner.record import record, replaced
from qlora_planner.spec.libraries import library_bytes
from qlora_planner.spec.machine import GpuSpec, Machine
from qlora_planner.spec.risk import FITS_AT_MOST, TIGHT_AT_MOST
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_mib

_FLOOR_STEP_BYTES = 1 << 16


@record
class Budget:
    """What a process may use of the card `rank` of a machine; made by `of`. Without a machine, figures have no card.

    `reserve_bytes` is held back for a desktop or other processes, `cap_bytes` is torch's own per-process limit,
    `calibration` what measurements say, `risk` the highest chance of running out that is taken. From these come the
    CUDA context, one cuBLAS handle's workspace, and the usable bytes with the reason.
    """

    machine: Machine | None
    rank: int
    reserve_bytes: int
    cap_bytes: int | None
    calibration: Calibration | None
    context: ContextRow
    workspace_bytes: int
    usable: tuple[int, str] | None  # None without a machine
    held_bytes: int = 0  # what vLLM holds of the card beside a run that it generates for
    risk: float = TIGHT_AT_MOST
    # Largest floors by method, context and chance: each is looked for once.
    _floors: dict[tuple[str, ContextRow, float], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls,
        gpu: GpuSpec | None,
        *,
        reserve_bytes: int = 0,
        cap_bytes: int | None = None,
        calibration: Calibration | None = None,
        risk: float = TIGHT_AT_MOST,
        machine: Machine | None = None,
        communicates: bool = True,
        communicators: int = 1,
    ) -> Budget:
        """The budget of a process that has one card to itself but for `reserve_bytes`; of a `machine` of several such
        cards, that of one of its ranks, which talks to the others through NCCL if it `communicates`, by so many
        `communicators`; it has torch's streams for that either way.

        Raises InputError for a reserve below zero.
        """
        if machine is None and gpu is not None:
            machine = Machine.of(gpu)
        context = context_of(gpu, calibration)
        if machine is not None and machine.world > 1:
            context = _with_communication(context, machine) if communicates else _with_streams(context)
            if communicates:
                context = _as_many_communicators(context, machine, communicators)
        return cls(
            machine=machine,
            rank=0,
            reserve_bytes=reserve_bytes,
            cap_bytes=cap_bytes,
            calibration=calibration,
            context=context,
            workspace_bytes=cublas_workspace_bytes(None if gpu is None else gpu.compute_capability),
            usable=None if gpu is None else _usable_with_reason(gpu, reserve_bytes, cap_bytes, context),
            risk=risk,
        )

    def on(self, gpu: GpuSpec | None) -> Budget:
        """The whole of another card, or of as many, by the same measurements and at the same risk."""
        machine = None
        if gpu is not None and self.machine is not None and self.world > 1:
            network = self.machine.network
            named = None if network is None or network.assumed else network
            machine = machine_of(gpu, self.machine.gpus_per_node, self.machine.nodes, named)
        return Budget.of(gpu, calibration=self.calibration, risk=self.risk, machine=machine)

    @property
    def world(self) -> int:
        """How many cards share the work; 1 without any."""
        return 1 if self.machine is None else self.machine.world

    @property
    def nodes(self) -> int:
        """How many nodes they are in; 1 without any."""
        return 1 if self.machine is None else self.machine.nodes

    def for_run(self, run: RunConfig) -> Budget:
        """The same for a run whose libraries take more or less than the usual one's, and whose trainer nobody measured:
        how its figures may turn out is assumed."""
        if not trainer_named(run.trainer).measured and self.calibration is not None:
            return replaced(self, calibration=None).for_run(run)
        context = self.context_for(run)
        if context is self.context:
            return self
        gpu = self.gpu
        usable = None if gpu is None else self._usable(gpu, context)
        return replaced(self, context=context, usable=usable)

    def beside_vllm(self, run: RunConfig) -> Budget:
        """What vLLM leaves of the card, for a run that it generates for in the trainer's own process.

        Its part is that of all memory that CUDA reports, as the run says; while it sleeps it holds none of it, and what
        then counts is `vllm_bytes`.
        """
        held = 0 if run.vllm_enable_sleep_mode else self.vllm_bytes(run)
        if self.gpu is None or held == self.held_bytes:
            return self
        beside = replaced(self, held_bytes=held)
        return replaced(beside, usable=beside._usable(self.gpu, self.context))

    def vllm_bytes(self, run: RunConfig) -> int:
        """The part of the card that vLLM takes beside this run's trainer; 0 where no card is known."""
        if run.vllm != "colocate" or self.gpu is None:
            return 0
        return int((run.vllm_gpu_memory_utilization or VLLM_SHARE) * usable_bytes(self.gpu)[0])

    def _usable(self, gpu: GpuSpec, context: ContextRow) -> tuple[int, str]:
        usable, why = _usable_with_reason(gpu, self.reserve_bytes + self.held_bytes, self.cap_bytes, context)
        return usable, why + (f"; vLLM holds {format_mib(self.held_bytes)} of it" if self.held_bytes else "")

    def context_for(self, run: RunConfig) -> ContextRow:
        """The CUDA context with the libraries that a run uses."""
        context = _with_libraries(self.context, run)
        if run.parallel is None or self.machine is None or self.world == 1:
            return context
        if run.ddp_backend == GLOO and context.communication_bytes:
            return replaced(
                _with_streams(_as_many_communicators(context, self.machine, 0)),
                communication_why="gloo talks through the host and takes nothing of a card but torch's streams",
            )
        return _as_many_communicators(context, self.machine, strategy_row(run.parallel).communicators)

    @property
    def gpu(self) -> GpuSpec | None:
        """The card; None where figures are for none in particular."""
        return None if self.machine is None else self.machine.gpus[self.rank]

    @property
    def card(self) -> GpuSpec:
        """The card, for what cannot be asked without one."""
        assert self.machine is not None, "a search is for a card"
        return self.machine.gpus[self.rank]

    @property
    def usable_bytes(self) -> int:
        """Device bytes that the process may reach on its card."""
        assert self.usable is not None, "without a card nothing is usable"
        return self.usable[0]

    def less(self, size_bytes: int) -> Budget:
        """The same with so much of the card taken already, as by what ranks do not count."""
        if self.usable is None or not size_bytes:
            return self
        usable, why = self.usable
        return replaced(self, usable=(usable - size_bytes, why))

    @property
    def fits_at_most(self) -> float:
        """The highest chance of running out that is called a fit: no more than is taken at all."""
        return min(FITS_AT_MOST, self.risk)

    @property
    def capped(self) -> bool:
        """Whether torch's own limit is what decides."""
        gpu = self.gpu
        return gpu is not None and self.usable_bytes < usable_bytes(gpu, self.reserve_bytes)[0]

    def distribution(self, device_bytes: int, method: str) -> Distribution:
        """How a device figure that was predicted on this method may turn out."""
        return distribution(device_bytes, method, self.context, self.calibration)

    def interval(self, device_bytes: int, method: str) -> tuple[int, int]:
        """Its 90 % interval, in bytes."""
        return interval(device_bytes, self.distribution(device_bytes, method))

    def probability_oom(self, floor_bytes: int, method: str) -> float:
        """The chance of running out on the card for a run that works from so many bytes on."""
        around = self.distribution(floor_bytes, method)
        return probability_over(self.usable_bytes, beside_a_cap(around, self.context) if self.capped else around)

    def largest_floor(self, method: str, context: ContextRow, chance: float) -> int:
        """The largest floor, to 64 KiB, of which the chance of running out is at most `chance`; 0 where none is.

        `context` is that of the run: see `context_for`.
        """
        key = method, context, chance
        if key not in self._floors:
            usable = self.usable_bytes
            self._floors[key] = _last(
                lambda floor: (
                    probability_over(usable, distribution(floor, method, context, self.calibration)) <= chance
                ),
                usable,
            )
        return self._floors[key]


def context_of(gpu: GpuSpec | None, calibration: Calibration | None = None) -> ContextRow:
    """The context on a card: what measurements of that card say, else the catalogue's row."""
    measured = None if gpu is None or calibration is None else calibration.contexts.get(gpu.name)
    if measured is None:
        return context_row(gpu.name if gpu else None, gpu.form if gpu else None)
    total = measured.first_tensor_bytes + measured.kernels_bytes
    return ContextRow(
        first_tensor_bytes=measured.first_tensor_bytes,
        kernels_bytes=measured.kernels_bytes,
        low_bytes=min(measured.low_bytes, total),
        high_bytes=max(measured.high_bytes, total),
        measured=True,
        why=f"calibrated: {format_mib(measured.first_tensor_bytes)} after the first tensor, {format_mib(total)} by the"
        f" end of a step, the middle of {measured.count:,} runs measured on this card",
    )


def _with_communication(context: ContextRow, machine: Machine) -> ContextRow:
    """The context of a process that talks to others through NCCL."""
    row = communication_row(machine.gpus[0].name, machine.world, machine.nodes)
    return replaced(
        context,
        first_tensor_bytes=context.first_tensor_bytes + row.first_bytes,
        low_bytes=context.low_bytes + row.low_bytes,
        high_bytes=context.high_bytes + row.high_bytes,
        communication_bytes=row.first_bytes,
        communication_measured=row.measured,
        communication_why=row.why,
    )


def _with_streams(context: ContextRow) -> ContextRow:
    """The context of a rank that is played without the others: gathers have streams of their own, and nothing is
    sent."""
    return replaced(
        context,
        first_tensor_bytes=context.first_tensor_bytes + STREAM_POOL_BYTES,
        high_bytes=context.high_bytes + STREAM_POOL_BYTES,
        why=f"{context.why}; {STREAM_POOL_BYTES >> 20} MiB for torch's streams beside the main one",
    )


def _as_many_communicators(context: ContextRow, machine: Machine, count: int) -> ContextRow:
    """The same where a strategy has more communicators than one, or none."""
    row = communication_row(machine.gpus[0].name, machine.world, machine.nodes)
    if count == 1:
        return context
    more = (count - 1) * row.further_bytes if count else -row.first_bytes
    why = f"{row.why}; {more >> 20} MiB more for a second communicator" if count else "one process drives every card"
    return replaced(
        context,
        first_tensor_bytes=context.first_tensor_bytes + more,
        low_bytes=context.low_bytes + (more if count else -row.low_bytes),
        high_bytes=context.high_bytes + (more if count else -row.high_bytes),
        communication_bytes=context.communication_bytes + more,
        communication_why=why,
    )


def _with_libraries(context: ContextRow, run: RunConfig) -> ContextRow:
    """The context of a run that uses other libraries than the usual one."""
    copies = trainer_named(run.trainer).offloads_inputs and run.gradient_checkpointing
    more = library_bytes(run, copies)
    if not more:
        return context
    kernels = max(0, context.kernels_bytes + more)
    return replaced(
        context,
        kernels_bytes=kernels,
        low_bytes=max(context.first_tensor_bytes, context.low_bytes + more),
        high_bytes=context.high_bytes + more,
        why=f"{context.why}; {more >> 20:+d} MiB for the libraries of this run",
    )


def _usable_with_reason(
    gpu: GpuSpec, reserve_bytes: int, cap_bytes: int | None, context: ContextRow
) -> tuple[int, str]:
    """Device bytes that the process may reach on the card, and why; a cap limits torch, so the context comes on top."""
    usable, why = usable_bytes(gpu, reserve_bytes)
    if cap_bytes is not None:
        capped = cap_bytes + context.total_bytes
        if capped < usable:
            return capped, f"torch's limit of {format_mib(cap_bytes)} and the context"
    return usable, why


def _last(holds: Callable[[int], bool], top: int) -> int:
    low, high = 0, 2 * top
    while high - low > _FLOOR_STEP_BYTES:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
