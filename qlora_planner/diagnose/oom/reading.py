"""From the text of a log to the record of its failure."""

from __future__ import annotations

from typing import Any

from qlora_planner.diagnose.oom.records import OomReport
from qlora_planner.errors import InputError


def explain(text: str) -> OomReport:
    """The first out-of-memory failure in a log or traceback: later ones are mostly its echoes from other processes.

    Raises InputError where no form of one is there.
    """
    from qlora_planner.diagnose.oom.frames import frames_before
    from qlora_planner.diagnose.oom.moments import moment_of
    from qlora_planner.diagnose.oom.progress import progress_at
    from qlora_planner.diagnose.oom.text import cleaned
    from qlora_planner.diagnose.oom.torch_messages import find_torch
    from qlora_planner.diagnose.oom.wordings import find_other

    text = cleaned(text)
    failure = find_torch(text) or find_other(text)
    if failure is None:
        raise InputError(
            "no out-of-memory failure in it; looked for torch's 'out of memory. Tried to allocate', 'CUDA error: out of"
            " memory', CUBLAS_STATUS_ALLOC_FAILED, bitsandbytes' 'Error out of memory at line', a killed process, and"
            " what hosts, engines and Apple's GPU say instead"
        )
    fields: dict[str, Any] = dict(failure.fields)
    fields |= moment_of(frames_before(text, failure.start))
    progress = progress_at(text, failure.start, evaluating=fields["phase"] == "eval")
    if progress is not None:
        fields |= {"step": progress.step, "steps": progress.steps}
        if fields["phase"] is None and (progress.phase != "data" or fields["kind"] == "host"):
            fields["phase"] = progress.phase
    return OomReport(**fields, times=failure.times)
