"""Out-of-memory failures as records: what a log says of one, and nothing that it does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.record import fields_of, record

SCHEMA = "qlora-plan/oom/1"
# Who refused: torch's allocator; CUDA itself; a library that asked CUDA; the host; an engine that generates; a kernel
# that wants more on-chip memory than the card has, which is no shortage of the card's memory.
KINDS = ("torch", "cuda", "cublas", "bitsandbytes", "host", "metal", "engine", "kernel")
PHASES = (
    *("load", "prepare", "adapters", "forward", "loss", "backward", "optimizer", "eval", "save"),
    *("merge", "generate", "data"),
)
# Of what torch reserved, the idle part that is worth a setting of the allocator.
FRAGMENTED_SHARE = 0.05
# Messages print hundredths of a GiB: a sum of three of them is known to 1.5 hundredths.
ROUNDING_BYTES = 16 << 20
# No tensor of a run on one card has this size; the largest card has 0.3 TiB.
SENSELESS_BYTES = 1 << 40
SENSELESS_CARDS = 8


@record
class Frame:
    """One line of a traceback; `code` is the source line where it was printed, `line` is 0 where none was."""

    file: str
    line: int
    function: str
    code: str | None = None


@record
class OomReport:
    """One failure as its message tells it. Bytes that it does not tell are None, never 0.

    `cause` is the row of `wordings.py` that knew the words, for all but torch's own. `requested_bytes` is what torch
    asked CUDA for: above 10 MiB it is rounded up to whole 2 MiB, from 1 to 10 MiB it is 20 MiB. `process_bytes` is all
    that this process held on the card, `allocated_bytes` what torch's tensors held (on Apple's GPU with torch's
    cache), `idle_bytes` what torch had reserved and not given out, `metal_bytes` what Metal held beside it,
    `allowed_bytes` torch's own limit for the process. `processes` are others on the card that the message names;
    `own_pid` is a named one that is this process by the sums. `step` of `steps` had been made. `phase` is one of
    PHASES, or None where the traceback does not tell; `doing` says in words what was computed, `frame` where.
    """

    kind: str
    message: str
    source: str = "log"  # log or snapshot
    cause: str | None = None
    backend: str | None = None  # CUDA, HIP, XPU or MPS
    device: int | None = None
    requested_bytes: int | None = None
    capacity_bytes: int | None = None
    free_bytes: int | None = None
    process_bytes: int | None = None
    allocated_bytes: int | None = None
    idle_bytes: int | None = None
    metal_bytes: int | None = None
    private_pools_bytes: int | None = None
    allowed_bytes: int | None = None
    processes: Mapping[int, int] | None = None
    own_pid: int | None = None
    step: int | None = None
    steps: int | None = None
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
        """What was neither free nor this process's: other processes and the driver.

        Held, free and others never come to more than the card; what the printed digits cannot tell from nothing is 0.
        """
        held = max(self.process_bytes or 0, self.reserved_bytes or self.allocated_bytes or 0)
        if self.capacity_bytes is None or self.free_bytes is None:
            return sum(self.processes.values()) if self.processes else None
        rest = max(0, self.capacity_bytes - self.free_bytes - held)
        if self.process_bytes is None:
            return min(rest, sum(self.processes.values())) if self.processes else None
        return rest if rest > ROUNDING_BYTES else 0

    @property
    def unexplained_bytes(self) -> int | None:
        """Neither free nor torch's, where the message does not tell whose: CUDA's context and others together."""
        reserved = self.reserved_bytes
        if self.others_bytes is not None or self.capacity_bytes is None or self.free_bytes is None or reserved is None:
            return None
        return max(0, self.capacity_bytes - self.free_bytes - reserved)

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

    @property
    def senseless(self) -> bool | None:
        """Whether the request is so large that shapes are at fault and not the card; None where it is not told."""
        if self.requested_bytes is None:
            return None
        most = min(SENSELESS_BYTES, SENSELESS_CARDS * (self.capacity_bytes or SENSELESS_BYTES))
        return self.requested_bytes >= most

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; derived figures too."""
        document = fields_of(self)
        document["processes"] = None if self.processes is None else {str(p): n for p, n in self.processes.items()}
        document["frame"] = None if self.frame is None else fields_of(self.frame)
        return {
            "schema": SCHEMA, **document, "reserved_bytes": self.reserved_bytes, "others_bytes": self.others_bytes,
            "idle_share": self.idle_share, "fragmented": self.fragmented, "senseless": self.senseless,
        }  # fmt: skip
