"""What a search rests on: the steps of its sizes, and what is traced of a model."""

from __future__ import annotations

from qlora_planner.memory.closed_form.static_peaks import StaticPeaks
from qlora_planner.memory.sweep.polynomials import FixedBytes, PeakPolynomials
from qlora_planner.memory.sweep.validity import ValidityRange
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

SEQ_STEP = 64
MAX_SEQ_LEN = 1 << 20
MAX_BATCH = 1 << 12
_BEFORE = ("load", "prepare", "adapters")  # phases before the first step
# What segments in use came to over what was allocated, at its highest: 1.00 to 1.18 with a median of 1.05 over 75
# played runs of 25 models. It ranks runs; an answer is played itself.
PINNED_OVER_ALLOCATED = 1.05


@record
class SweptRange:
    """The traced moments of one model that can be the highest, and the variant and sizes they hold for."""

    variant: str
    region: ValidityRange
    moments: PeakPolynomials


@record
class Sweep:
    """What is traced of one model, region by region."""

    parts: tuple[SweptRange, ...]

    def find(self, variant: str, batch_size: int, seq_len: int) -> PeakPolynomials | None:
        """The moments for a run of this variant and these sizes; None where they lie outside every region."""
        for part in self.parts:
            if part.variant == variant and part.region.holds(batch_size, seq_len):
                return part.moments
        return None


def fixed_of(ground: StaticPeaks, run: RunConfig) -> FixedBytes:
    """What a run holds whatever its batch and sequence, for a sweep; `ground` must name what is trained."""
    weights = ground.static.buffers if run.method == "full" else ground.static.after_prepare
    return FixedBytes.of(weights, ground.state, sum(tensor.count for tensor in ground.static.trainable), run)
