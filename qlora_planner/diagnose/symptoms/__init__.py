"""The table of known error lines, by subject; each row says where it is from."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms import (
    arguments,
    bitsandbytes,
    cuda,
    data,
    distributed,
    dtypes,
    hub,
    loading,
    peft,
    platforms,
    tools,
    training,
)
from qlora_planner.diagnose.symptoms.row import Symptom

__all__ = ["SUBJECTS", "SYMPTOMS", "Symptom"]

# The order of the answer where several rows know a line: the more particular first.
SUBJECTS: dict[str, tuple[Symptom, ...]] = {
    "bitsandbytes": bitsandbytes.ROWS,
    "CUDA and drivers": cuda.ROWS,
    "dtypes": dtypes.ROWS,
    "PEFT": peft.ROWS,
    "arguments of transformers and trl": arguments.ROWS,
    "loading": loading.ROWS,
    "the Hub": hub.ROWS,
    "data": data.ROWS,
    "training steps": training.ROWS,
    "several cards": distributed.ROWS,
    "Windows and compilers": platforms.ROWS,
    "Unsloth, axolotl and LLaMA-Factory": tools.ROWS,
}
SYMPTOMS: tuple[Symptom, ...] = tuple(row for rows in SUBJECTS.values() for row in rows)
