"""Out-of-memory failures as records: what a log says of one, and nothing that it does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.record import fields_of, record

SCHEMA = "qlora-plan/oom/1"
# Who refused: torch's allocator; CUDA itself; a library that asked CUDA; the host.
KINDS = ("torch", "cuda", "cublas", "bitsandbytes", "host")
PHASES = (
    *("load", "prepare", "adapters", "forward", "loss", "backward", "optimizer", "eval", "save"),
    *("merge", "generate", "data"),
)
# Of what torch reserved, the idle part that is worth a setting of the allocator.
FRAGMENTED_SHARE = 0.05


@record
class Frame:
    """One line of a traceback; `code` is the source line where it was printed."""

    file: str
    line: int
    function: str
    code: str | None = None


@record
class OomReport:
    """One failure as its message tells it. Bytes that it does not tell are None, never 0.

    `requested_bytes` is what torch asked CUDA for: above 10 MiB it is rounded up to whole 2 MiB, from 1 to 10 MiB it is
    20 MiB. `process_bytes` is all that this process held on the card, `allocated_bytes` what torch's tensors held,
    `idle_bytes` what torch had reserved and not given out, `allowed_bytes` torch's own limit for the process.
    `processes` are others on the card that the message names. `phase` is one of PHASES, or None where the traceback
    does not tell; `doing` says in words what was computed, `frame` where.
    """

    kind: str
    message: str
    source: str = "log"  # log or snapshot
    backend: str | None = None  # CUDA, HIP, XPU or MPS
    device: int | None = None
    requested_bytes: int | None = None
    capacity_bytes: int | None = None
    free_bytes: int | None = None
    process_bytes: int | None = None
    allocated_bytes: int | None = None
    idle_bytes: int | None = None
    private_pools_bytes: int | None = None
    allowed_bytes: int | None = None
    processes: Mapping[int, int] | None = None
    phase: str | None = None
    doing: str | None = None
    recomputing: bool = False
    frame: Frame | None = None
    times: int = 1

    @property
    def reserved_bytes(self) -> int | None:
        """What torch held of the card."""
        if self.allocated_bytes is None or self.idle_bytes is None:
            return None
        return self.allocated_bytes + self.idle_bytes

    @property
    def others_bytes(self) -> int | None:
        """What was neither free nor this process's: other processes and the driver."""
        if self.capacity_bytes is None or self.free_bytes is None or self.process_bytes is None:
            return sum(self.processes.values()) if self.processes else None
        return max(0, self.capacity_bytes - self.free_bytes - self.process_bytes)

    @property
    def idle_share(self) -> float | None:
        """The idle part of what torch held."""
        reserved = self.reserved_bytes
        return None if not reserved or self.idle_bytes is None else self.idle_bytes / reserved

    @property
    def fragmented(self) -> bool | None:
        """Whether idle memory would have sufficed, had it been in one piece, or is a noticeable part.

        None where the message does not tell.
        """
        share = self.idle_share
        if share is None or self.idle_bytes is None:
            return None
        enough = self.requested_bytes is not None and self.idle_bytes + (self.free_bytes or 0) >= self.requested_bytes
        return share >= FRAGMENTED_SHARE and (enough or share >= 2 * FRAGMENTED_SHARE)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; derived figures too."""
        found = fields_of(self)
        found["processes"] = None if self.processes is None else {str(p): size for p, size in self.processes.items()}
        found["frame"] = None if self.frame is None else fields_of(self.frame)
        return {
            "schema": SCHEMA, **found, "reserved_bytes": self.reserved_bytes, "others_bytes": self.others_bytes,
            "idle_share": self.idle_share, "fragmented": self.fragmented,
        }  # fmt: skip


def explain(text: str) -> OomReport:
    """The first out-of-memory failure in a log or traceback: later ones are mostly its echoes from other processes.

    Raises InputError where no form of one is found.
    """
    from qlora_planner.evidence.oom_frames import frames_before, told_by
    from qlora_planner.evidence.oom_messages import find

    found = find(text)
    if found is None:
        raise InputError(
            "no out-of-memory failure in it; looked for torch's 'out of memory. Tried to allocate', 'CUDA error: out of"
            " memory', CUBLAS_STATUS_ALLOC_FAILED, bitsandbytes' 'Error out of memory at line', a killed process"
        )
    fields_of, start, times = found
    return OomReport(**fields_of, **told_by(frames_before(text, start), fields_of["kind"]), times=times)
