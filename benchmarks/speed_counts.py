"""What one training step makes a card do, counted on fake tensors, beside what the speed model says.

usage:
  speed_counts.py MODEL ... [option=value ...]      launches, bytes and operations: derived beside counted
  speed_counts.py kinds MODEL [option=value ...]    the counts of one run by kind of kernel
  speed_counts.py classes [option=value ...]        one model of each structure: seconds of a step by either

The counts (`tools.kernels`) judge the closed forms of `qlora_planner/speed`; it does not read them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qlora_planner.speed.work import QUANTITIES  # noqa: E402
from tools.kernels.step import Counted, count_run  # noqa: E402

# What is compared, as sums of the speed model's quantities.
COMPARED = {
    "launches": ("launches", "engine_launches"),
    "traffic": ("traffic",),
    "product_flops": ("half_flops", "float_flops", "int8_flops"),
    "attention_flops": ("attention_flops",),
}


def counted(model: str, options: Mapping[str, Any]) -> tuple[Any, Any, Counted]:
    """Profile and resolution of a run on an H200, with its counts."""
    from qlora_planner import RunConfig, load_gpu, load_model
    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.profiling.tapes import efficiency_of
    from qlora_planner.profiling.tracing.spec import TraceSpec
    from qlora_planner.session import config_of

    profile, gpu = load_model(model), load_gpu("h200")
    resolution = resolve(profile, RunConfig(**options), gpu)
    spec = TraceSpec(resolution=resolution, device=efficiency_of(gpu))
    return profile, resolution, count_run(config_of(profile).config, spec)


def step_seconds(model: str, options: Mapping[str, Any]) -> tuple[float, float]:
    """A step's seconds on an H200 by counted and by derived work."""
    from qlora_planner.record import replaced
    from qlora_planner.session import calibration, load_gpu
    from qlora_planner.speed.roofline import speed_model

    profile, resolution, counts = counted(model, options)
    derived, run = speed_model(profile, resolution, load_gpu("h200"), calibration()), resolution.run
    assert derived is not None
    real = replaced(derived, work=replaced(derived.work, micro=counts.work(), masked=()))
    sizes = run.batch_size, run.seq_len, run.rank
    return float(real.step_s(*sizes)), float(derived.step_s(*sizes))


def representatives() -> list[str]:
    """A model of middling size of every structure that families hold, and of every class beside them."""
    from qlora_planner.sources.catalogue import ModelCatalogue

    profiles = ROOT / "profiles"
    structures = json.loads((profiles / "families" / "index.json").read_text("utf-8"))["configs"]
    alike: dict[str, list[tuple[int, str]]] = {}
    for profile in ModelCatalogue([profiles / "models"]).load_all(print):
        structure = structures.get(profile.config_sha256, profile.model_type)
        alike.setdefault(structure, []).append((profile.params, profile.id))
    return [sorted(models)[len(models) // 2][1] for _, models in sorted(alike.items())]


def compare_classes(options: Mapping[str, Any]) -> None:
    """Print a line a structure, and how far apart both are on average."""
    ratios = []
    for model in representatives():
        try:
            real, derived = step_seconds(model, options)
        except Exception as error:
            print(f"{model:40} {type(error).__name__}: {str(error)[:100]}", flush=True)
            continue
        ratios.append(derived / real - 1)
        print(f"{model:40} counted {real:.3f} s, derived {ratios[-1]:+.1%}", flush=True)
    near = [sum(abs(ratio) <= most for ratio in ratios) for most in (0.05, 0.1)]
    mean = sum(map(abs, ratios)) / len(ratios)
    print(f"{len(ratios)} models: {mean:.1%} apart on average, {near[0]} within 5 % and {near[1]} within 10 %")


def compare(model: str, options: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Counted and derived totals of one micro-batch, by quantity."""
    from qlora_planner.speed.step import step_work
    from qlora_planner.speed.work import evaluator, values

    profile, resolution, counts = counted(model, options)
    run, work, real = resolution.run, step_work(profile, resolution), counts.work()
    micro = work.micro
    for window, more in work.masked:
        micro = micro + more if run.seq_len >= window else micro
    batch = run.batch_size * work.sequences_per_row
    sizes = values(batch, run.seq_len, run.rank, work.head_tile_tokens, work.experts)
    derived = {name: float(evaluator(getattr(micro, name))(sizes)) for name in QUANTITIES}
    return {
        name: (sum(float(getattr(real, part)[0]) for part in parts), sum(derived[part] for part in parts))
        for name, parts in COMPARED.items()
    }


def main(arguments: list[str]) -> int:
    """Print the counts of one run by kind, or of several models the derived beside the counted totals."""
    import yaml

    models = [one for one in arguments if "=" not in one]
    options = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in arguments if "=" in one)}
    if models[0] == "classes":
        compare_classes(options)
        return 0
    if models[0] == "kinds":
        _, _, counts = counted(models[1], options)
        for kind, row in counts.whole().items():
            print(f"{kind:12}", *(f"{quantity} {value:.4g};" for quantity, value in row.items() if value))
        return 0
    for model in models:
        try:
            found = compare(model, options)
        except Exception as error:
            print(f"{model:40} {type(error).__name__}: {str(error)[:100]}")
            continue
        print(f"{model:40}", *(f"{k} {r:.4g} {d / r - 1 if r else 0:+.1%};" for k, (r, d) in found.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
