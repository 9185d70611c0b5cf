"""What of the training packages is installed here, without importing any of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qlora_planner.catalog.parallel import DEEPSPEED
from qlora_planner.errors import InputError, MissingError
from qlora_planner.installing import install_packages

if TYPE_CHECKING:
    from qlora_planner.spec.run import RunConfig

Warn = Callable[[str], None]

# What building a profile imports.
TRAIN_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft")
TRACE_VARIABLE = "QLORA_PLANNER_TRACE"


def silent(_text: str) -> None:
    """Say nothing."""


def missing_for(run: RunConfig) -> list[str]:
    """The packages that this run would import and that are not installed here."""
    from qlora_planner.catalog.trainers import trainer_named

    needed = [*TRAIN_PACKAGES]
    needed += trainer_named(run.trainer).packages
    needed += ["liger_kernel"] if run.liger or run.loss_kernel == "liger-fused" else []
    needed += ["cut_cross_entropy"] if run.loss_kernel == "cut-cross-entropy" else []
    needed += ["kernels"] if run.attention is not None and "/" in run.attention else []
    needed += ["flash_attn"] if run.attention == "flash_attention_2" else []
    needed += ["deepspeed"] if run.parallel in DEEPSPEED else []
    needed += ["vllm"] if run.vllm not in (None, "none") else []
    return missing_packages(needed)


def check_executable(run: RunConfig, device: str) -> None:
    """Raises InputError for a run that is planned here and cannot be executed on this device."""
    from qlora_planner.catalog.trainers import trainer_named

    if run.expert_quant == "nf4":
        raise InputError(
            "--expert-quant nf4: transformers loads fused experts in 16 bits, so such a run is planned and not executed"
            " here; --export axolotl=FILE writes it for axolotl, which stores them in NF4"
        )
    if run.shows_images and trainer_named(run.trainer).patches_libraries:
        raise InputError(
            f"--trainer {run.trainer} with images is planned and not executed here: its rows are texts; leave the"
            " images out, or --trainer trl-sft trains on them"
        )
    if run.vllm not in (None, "none") and device == "cpu":
        raise InputError(
            f"--device cpu: vLLM generates on a card; leave --vllm {run.vllm} out, as transformers does then"
        )
    if run.loss_kernel in ("cut-cross-entropy", "liger-fused") and device == "cpu":
        raise InputError(f"--device cpu: --loss-kernel {run.loss_kernel} runs Triton's kernels, which need a card")
    if run.checkpoint_offload and device == "cpu":
        raise InputError("--device cpu: --checkpoint-offload needs a card, whose pinned memory it fills; leave it out")


def without_card(run: RunConfig) -> str | None:
    """What to know of a run that is executed on the CPU; None where it runs the very code that a card runs."""
    from qlora_planner.catalog.trainers import trainer_named

    row = trainer_named(run.trainer)
    if not row.patches_libraries:
        return None
    return (
        f"without a card {row.name} trains by its CPU backend, the libraries' plain code: this shows that the run"
        " works, and nothing of what its kernels take"
    )


def missing_packages(needed: Sequence[str] = TRAIN_PACKAGES) -> list[str]:
    """Those of `needed` that are not installed."""
    from importlib.util import find_spec

    return [package for package in needed if find_spec(package) is None]


def can_trace() -> bool:
    """Whether a run whose trace does not ship can be traced here."""
    return os.environ.get(TRACE_VARIABLE) != "never" and not missing_packages()


def check_installed(needed: Sequence[str]) -> None:
    """Raises MissingError with the line that installs those of `needed` that are not there."""
    from qlora_planner.hub_address import check_endpoint

    check_endpoint()  # before transformers imports the Hub library
    missing = missing_packages(needed)
    if missing:
        raise MissingError(f"missing here: {', '.join(missing)}; {install_packages(missing)}")
