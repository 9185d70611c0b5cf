"""The doctor's rules on packages: what of `[train]` is missing, and which versions have known traps."""

from __future__ import annotations

from qlora_planner.diagnose.facts import PINNING_TOOLS, TRAIN_PACKAGES, Facts, Finding, Status, within
from qlora_planner.installing import install_line
from qlora_planner.record import record

_ANY = "9999"


@record
class Trap:
    """Versions `low` (included) to `below` (excluded) of a package do this."""

    code: str
    package: str
    low: str
    below: str
    status: Status
    message: str
    fix: str
    source: str
    cured_by: str | None = None  # an environment variable that turns it off


TRAPS = (
    Trap(
        code="loads-16-bit",
        package="transformers",
        low="5.0",
        below="5.4",
        status="warning",
        message="loads 4-bit models through 16-bit ones: the whole 16-bit model can be on the GPU while loading "
        "(13.5 GB for a 7B), an out-of-memory error before training starts",
        fix="pip install -U 'transformers>=5.4'   (or export HF_DEACTIVATE_ASYNC_LOAD=1)",
        source="https://github.com/huggingface/transformers/pull/44576",
        cured_by="HF_DEACTIVATE_ASYNC_LOAD",
    ),
    Trap(
        code="experts",
        package="transformers",
        low="5.0",
        below=_ANY,
        status="ok",
        message="leaves fused experts (Mixtral, Qwen3-30B-A3B, gpt-oss) in 16 bits; `qlora-plan audit MODEL` "
        "shows them",
        fix="",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1849",
    ),
    Trap(
        code="experts",
        package="transformers",
        low="4.0",
        below="5.0",
        status="warning",
        message="quantises the experts of most mixture models, which 5.x leaves in 16 bits, and reserves half of the "
        "16-bit model while loading: profiles built with 5.x do not hold here",
        fix="pip install -U 'transformers>=5.4', or build the model's profile with this version",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1849",
    ),
    Trap(
        code="trl-upcast",
        package="trl",
        low="0",
        below="0.25",
        status="warning",
        message="casts everything that is not 4-bit to float32 (embedding, head, norms): 2 bytes more for each such "
        "parameter, 2 GiB on Llama-3.1-8B",
        fix="pip install -U 'trl>=1.15'",
        source="https://github.com/huggingface/trl/pull/4457",
    ),
    Trap(
        code="trl-logits",
        package="trl",
        low="0",
        below="1.7",
        status="warning",
        message="keeps full logits: 12 bytes for each token and vocabulary entry at the loss (3 GiB for 2,048 tokens "
        "of Llama-3)",
        fix="pip install -U 'trl>=1.15'",
        source="https://github.com/huggingface/trl/pull/5575",
    ),
    Trap(
        code="trl-head-copy",
        package="trl",
        low="1.7",
        below="1.14",
        status="warning",
        message="copies the whole lm_head to float32 at the loss: 4 bytes for each of its weights (2 GiB on "
        "Llama-3.1-8B)",
        fix="pip install -U 'trl>=1.15'",
        source="https://github.com/huggingface/trl/pull/6858",
    ),
    Trap(
        code="peft-prepare",
        package="peft",
        low="0",
        below="0.20",
        status="warning",
        message="prepare_model_for_kbit_training leaves the cast parameters' old blocks reserved (820 MB on "
        "Mistral-7B)",
        fix="pip install -U 'peft>=0.20'   (or torch.cuda.empty_cache() after preparing)",
        source="https://github.com/huggingface/peft/pull/3293",
    ),
    Trap(
        code="bitsandbytes-activations",
        package="bitsandbytes",
        low="0",
        below="0.43.2",
        status="warning",
        message="keeps a second copy of each 4-bit layer's input for backward: QLoRA takes more than LoRA on "
        "long sequences",
        fix="pip install -U bitsandbytes",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1270",
    ),
)


def packages(host: Facts) -> list[Finding]:
    """What of `[train]` is missing."""
    missing = [name for name in TRAIN_PACKAGES if host.packages.get(name) is None]
    if not missing:
        names = ", ".join(f"{name} {host.packages[name]}" for name in TRAIN_PACKAGES)
        return [Finding(code="packages", status="ok", message=names)]
    message = f"not installed: {', '.join(missing)}; planning works without, profiling and training do not"
    fix = f"pip install {' '.join(missing)}   (all at once: {install_line('train')})"
    return [Finding(code="packages", status="problem", message=message, fix=fix)]


def own_environment(host: Facts) -> list[Finding]:
    """Another trainer in this environment, whose pins and those of [train] exclude each other."""
    tools = {name: host.packages[name] for name in PINNING_TOOLS if host.packages.get(name)}
    if not tools:
        return []
    names = " and ".join(f"{name} {version}" for name, version in tools.items())
    pins = " and ".join(PINNING_TOOLS[name] for name in tools)
    broken = [name for name in TRAIN_PACKAGES if host.packages.get(name) is None]
    message = f"{names} is installed here and pins other versions of {pins} than [train] needs: installing one breaks"
    message += " the other. The base install lives beside it: planning and `check` need none of them"
    line = install_line("train").removeprefix("pip ")
    return [
        Finding(
            code="own-environment",
            status="ok" if broken else "warning",
            message=message,
            fix=f"to verify or train: python -m venv ~/qlora-planner && ~/qlora-planner/bin/pip {line}",
        )
    ]


def traps(host: Facts) -> list[Finding]:
    """Installed versions that are known to take more memory, or to do something else than planned."""
    return [
        Finding(
            code=trap.code,
            status=trap.status,
            message=f"{trap.package} {host.packages[trap.package]} {trap.message}",
            fix=trap.fix or None,
            source=trap.source,
        )
        for trap in TRAPS
        if within(host.version(trap.package), trap.low, trap.below)
        and not (trap.cured_by and host.environment.get(trap.cured_by))
    ]


def bitsandbytes_version(host: Facts) -> list[Finding]:
    """transformers 5 refuses old bitsandbytes, and trips over some that it accepts."""
    installed, transformers = host.version("bitsandbytes"), host.version("transformers")
    if not within(transformers, "5.0", _ANY):
        return []
    fix = "pip install -U 'bitsandbytes>=0.50'"
    if within(installed, "0", "0.46.1"):
        message = (
            f"transformers 5 needs bitsandbytes 0.46.1, here is {host.packages['bitsandbytes']}; seen as 'Using "
            "`bitsandbytes` 4-bit quantization requires bitsandbytes'"
        )
        source = "https://github.com/huggingface/transformers/pull/41283"
        return [Finding(code="bitsandbytes-version", status="problem", message=message, fix=fix, source=source)]
    if within(installed, "0.46.1", "0.50"):
        message = (
            f"bitsandbytes {host.packages['bitsandbytes']} with transformers 5 and device_map='auto' can fail with "
            "\"unexpected keyword argument '_is_hf_initialized'\""
        )
        source = "https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1900"
        return [Finding(code="bitsandbytes-version", status="warning", message=message, fix=fix, source=source)]
    return []
