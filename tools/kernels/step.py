"""The kernels of a whole step from a trace of a few of its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any
from unittest import mock

from qlora_planner.profiling.tracing import build, engine
from qlora_planner.profiling.tracing.cuda.flash_attention import flash_attention_2
from qlora_planner.profiling.tracing.layers import Cut
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import module_kept
from qlora_planner.record import record
from qlora_planner.spec.layers import represent
from qlora_planner.speed.work import QUANTITIES, Work, terms
from tools.kernels.classes import Tally
from tools.kernels.counter import KernelCounter, Place, launched_kernels

# Stages that are no part of a micro-batch.
_BESIDE = frozenset({"", "prepare", "after", "optimizer", "zero_grad", "eval"})


@record
class Counted:
    """Kernels of one micro-batch of a cut-down model, by segment and kind, and its layers."""

    tallies: Mapping[Place, Mapping[str, Tally]]
    cut: Cut
    micro_batches: int  # that were traced, and are added up in `tallies`

    def whole(self) -> dict[str, dict[str, float]]:
        """One micro-batch at the model's full depth: the quantities of `speed.work` by kind of kernel."""
        copies = Counter(represent(self.cut.kept, self.cut.order))
        total: dict[str, dict[str, float]] = {}
        for (stage, name, layer), kinds in self.tallies.items():
            if stage in _BESIDE:
                continue
            times = (copies[layer] if name == "layer" else 1) / self.micro_batches
            for kind, tally in kinds.items():
                row = total.setdefault(kind, dict.fromkeys(QUANTITIES, 0.0))
                for quantity, value in quantities_of(tally).items():
                    row[quantity] += times * value
        return total

    def work(self) -> Work:
        """One micro-batch at these sizes alone, as the speed model takes it."""
        sums = dict.fromkeys(QUANTITIES, 0.0)
        for row in self.whole().values():
            for quantity, value in row.items():
                sums[quantity] += value
        return Work(**{quantity: terms(one=value) for quantity, value in sums.items()})


def quantities_of(tally: Tally) -> dict[str, float]:
    """A tally by the names of `speed.work.QUANTITIES`."""
    flops = {f"{unit}_flops": value for unit, value in tally.flops.items()}
    return {
        **flops, "traffic": tally.read + tally.written, "launches": tally.launches,
        "engine_launches": tally.engine_launches,
    }  # fmt: skip


def count_run(raw: Mapping[str, Any], spec: TraceSpec) -> Counted:
    """Count one run of the model with this config.json. Raises what tracing raises."""
    with flash_attention_2(spec):
        meta = build.build(raw, spec)
        with (
            mock.patch.object(engine, "Recorder", KernelCounter),
            engine.recording(spec) as counter,
            module_kept(meta.base),
        ):
            assert isinstance(counter, KernelCounter)
            build.materialise(meta)
            counter.keep_weights([*meta.model.parameters(), *meta.model.buffers()])
            with launched_kernels(counter):
                engine._run(meta, engine.marker_of(meta, counter))
            counter.freeze()
        steps = 2 if spec.trainer.micro_batches_stay else 1
        return Counted(tallies=counter.tallies, cut=meta.cut, micro_batches=steps * min(spec.run.grad_accum, 2))
