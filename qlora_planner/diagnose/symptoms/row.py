"""One known error line: how it is recognised, what it comes of, what to do, and where that is written."""

from __future__ import annotations

from dataclasses import dataclass

TRANSFORMERS = "https://github.com/huggingface/transformers/blob/main/src/transformers"
PEFT = "https://github.com/huggingface/peft/blob/main/src/peft"
TRL = "https://github.com/huggingface/trl/blob/main/trl"
ACCELERATE = "https://github.com/huggingface/accelerate/blob/main/src/accelerate"
DATASETS = "https://github.com/huggingface/datasets/blob/main/src/datasets"
TORCH = "https://github.com/pytorch/pytorch/blob/main"
BITSANDBYTES = "https://github.com/bitsandbytes-foundation/bitsandbytes"


@dataclass(frozen=True, slots=True)
class Symptom:
    """`pattern` is searched in the pasted text, whatever the case; it has no unbounded repetition of a wide class.

    `cause` names several where a line has several, the likeliest first. `packages` are those whose installed versions
    decide. `{name}` is the pattern's group of that name. A `fallback` counts where no other row knows the line.
    """

    code: str
    pattern: str
    cause: str
    fix: str
    source: str
    packages: tuple[str, ...] = ()
    fallback: bool = False
