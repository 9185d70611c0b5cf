"""What one training step makes a card do, operator by operator, counted while the real model code runs on fake tensors.

usage: speed_counts.py MODEL [option=value ...]        a table of one run: launches, bytes and operations by stage

The counts judge the closed forms of `qlora_planner/planner/speed`; none of them is read by it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from qlora_planner.profiling.tracing.recorder import Recorder  # noqa: E402
from qlora_planner.speed.work import QUANTITIES  # noqa: E402

_EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "set_"})
_WIDE = 512  # a product whose inner and outer sides are wider is bound by the multiplying units


@dataclass(slots=True)
class Count:
    """Sums over operators of one kind: calls, bytes read and written, multiply-adds twice."""

    calls: int = 0
    read: int = 0
    written: int = 0
    inside: int = 0  # of those, what a product of two wide matrices moves besides its weights
    flops: float = 0.0


class Counter(Recorder):
    """A recorder that adds up operators by stage, segment and name; those inside another one count as that one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.depth = 0
        self.counts: dict[tuple[str, str, int], dict[str, Count]] = defaultdict(lambda: defaultdict(Count))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.depth += 1
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.depth -= 1
        name = func._schema.name.partition("::")[2]
        if self.depth or name == "device":
            return result
        inputs = list(_tensors((args, kwargs or {})))
        outputs = list(_tensors(result))
        known = {one.untyped_storage()._cdata for one in inputs}
        mutable = any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments)
        fresh = [one for one in outputs if one.untyped_storage()._cdata not in known]
        opened = self._open
        where = (opened[0], opened[1], opened[2]) if opened else ("", "", -1)
        if not fresh and not mutable:
            self.counts[where]["(view)"].calls += 1
            return result
        count = self.counts[where][name]
        count.calls += 1
        if name in _EMPTY:
            return result
        count.read += sum({one.untyped_storage()._cdata: _bytes(one) for one in inputs}.values())
        count.written += sum(map(_bytes, outputs))
        count.flops += _flops(name, inputs, outputs, args)
        count.inside += _inside(name, inputs, outputs, args)
        return result


def _bytes(one: Any) -> int:
    return min(one.numel() * one.element_size(), one.untyped_storage().nbytes())


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)


def _inside(name: str, inputs: list[Any], outputs: list[Any], args: Any) -> int:
    """Bytes of a wide product that are not its weights'; a quantised one's weights are written out whole and read."""
    if name == "gemm_4bit":
        outer, inner = args[2]
        return _bytes(inputs[0]) + _bytes(outputs[0]) - 2 * outer * inner * inputs[0].element_size()
    if name in ("mm", "addmm", "linear", "_grouped_mm", "bmm"):
        a, b = inputs[-2:] if name == "addmm" else inputs[:2]
        if min(a.shape[-1], b.shape[-1], b.shape[-2], a.shape[-2]) < _WIDE:
            return 0
        return _bytes(a) + _bytes(outputs[0])
    if name.startswith("_scaled_dot_product"):
        return 0
    return 0


def _flops(name: str, inputs: list[Any], outputs: list[Any], args: Any) -> float:
    if name in ("mm", "bmm", "linear", "matmul", "_grouped_mm"):
        return 2.0 * inputs[0].numel() * inputs[1].shape[-2 if name == "linear" else -1]
    if name in ("addmm", "baddbmm"):
        return 2.0 * inputs[1].numel() * inputs[2].shape[-1]
    if name == "gemm_4bit":
        return 2.0 * inputs[0].numel() * args[2][0]
    if name in ("int8_mixed_scaled_mm", "int8_scaled_mm"):
        return 2.0 * inputs[0].numel() * outputs[0].shape[-1]
    return 0.0


@contextlib.contextmanager
def counted(config: Mapping[str, Any], spec: Any) -> Iterator[tuple[Counter, Any]]:
    """Run one step of the cut-down model and give the counter and the cut."""
    from qlora_planner.profiling.tracing import build, engine
    from qlora_planner.profiling.tracing.cuda.flash_attention import flash_attention_2
    from qlora_planner.profiling.tracing.trainers.common import module_kept

    with flash_attention_2(spec):
        meta = build.build(config, spec)
        with (
            mock.patch.object(engine, "Recorder", Counter),
            engine.recording(spec) as counter,
            module_kept(meta.base),
        ):
            build.materialise(meta)
            engine._run(meta, engine.marker_of(meta, counter))
            counter.freeze()
        assert isinstance(counter, Counter)
        yield counter, meta.cut


@dataclass(slots=True)
class Whole:
    """What a whole step does by count: launches forwards (with recompute) and by the engine, traffic, operations."""

    launches: float = 0.0
    traffic: float = 0.0
    product_flops: float = 0.0


def whole_step(counter: Counter, cut: Any) -> Whole:
    """The cut-down model's counts at the model's full depth."""
    from qlora_planner.spec.layers import represent

    copies: dict[int, int] = defaultdict(int)
    for place in represent(cut.kept, cut.order):
        copies[place] += 1
    total = Whole()
    steps = 1 + max(segment.step for segment in counter.segments)
    for (stage, name, layer), names in counter.counts.items():
        if stage not in ("forward", "backward"):
            continue
        times = (copies[layer] if name == "layer" else 1) / steps
        for operator, count in names.items():
            if operator == "(view)" or operator in _EMPTY or operator == "device":
                continue
            # A quantised product is four kernels: constants, their offset, the matrix, the product.
            total.launches += times * count.calls * (4 if operator == "gemm_4bit" else 1)
            total.traffic += times * (count.read + count.written - count.inside)
            total.product_flops += times * count.flops
    return total


def resolved(model: str, options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Profile, resolution and trace specification of a run on an H200."""
    from qlora_planner import RunConfig, load_gpu, load_model
    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.profiling.tapes import efficiency_of
    from qlora_planner.profiling.tracing.spec import TraceSpec

    profile, gpu = load_model(model), load_gpu("h200")
    resolution = resolve(profile, RunConfig(**options), gpu)
    return profile, resolution, TraceSpec(resolution=resolution, device=efficiency_of(gpu))


def compare(model: str, options: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Counted and derived totals of one step, by quantity."""
    from qlora_planner.session import config_of
    from qlora_planner.speed.step import step_work
    from qlora_planner.speed.work import evaluator, values

    profile, resolution, spec = resolved(model, options)
    run = resolution.run
    with counted(config_of(profile).config, spec) as (counter, cut):
        real = whole_step(counter, cut)
    work = step_work(profile, resolution)
    sizes = values(run.batch_size, run.seq_len, run.rank, work.head_tile_tokens, work.experts)
    derived = {name: float(evaluator(getattr(work.micro, name))(sizes)) for name in QUANTITIES}
    return {
        "launches": (real.launches, derived["launches"] + derived["engine_launches"]),
        "traffic": (real.traffic, derived["traffic"]),
        "product_flops": (
            real.product_flops, derived["half_flops"] + derived["float_flops"] + derived["int8_flops"]
        ),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Print the counts of one run, or of several models the derived beside the counted totals."""
    import yaml

    from qlora_planner.session import config_of

    models = [one for one in arguments if "=" not in one]
    options = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in arguments if "=" in one)}
    if len(models) > 1 or os.environ.get("COMPARE"):
        for model in models:
            try:
                found = compare(model, options)
            except Exception as error:
                print(f"{model:40} {type(error).__name__}: {str(error)[:100]}")
                continue
            print(
                f"{model:40}",
                *(f"{k} {r:.4g} {d / r - 1 if r else 0:+.1%};" for k, (r, d) in found.items()),
                flush=True,
            )
        return 0
    profile, resolution, spec = resolved(models[0], options)
    tokens = resolution.run.tokens
    with counted(config_of(profile).config, spec) as (counter, _):
        for where, names in counter.counts.items():
            if where[1] == "layer" and where[2] != 1:
                continue
            print(where, sum(count.calls for name, count in names.items() if name != "(view)"), "kernels")
            for name, count in sorted(names.items(), key=lambda item: -item[1].read - item[1].written):
                figures = (count.read / tokens, count.written / tokens, count.flops / tokens / 1e6)
                print(f"    {name:45} {count.calls:5}", *(f"{figure:14,.2f}" for figure in figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
