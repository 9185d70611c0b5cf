"""The knobs of a run, each with what turning it would make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlora_planner.catalog import TRAINER_ROWS, TrainerRow
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig


@record
class Knob:
    """A knob, and what turning it would make of a run; None where it is there already."""

    name: str
    turn: Callable[[RunConfig], dict[str, Any] | None]
    note: str = ""


def _halved(run: RunConfig) -> dict[str, Any] | None:
    if run.batch_size == 1:
        return None
    return {
        "batch_size": run.batch_size // 2,
        "grad_accum": -(-run.batch_size * run.grad_accum // (run.batch_size // 2)),
    }


def _doubled(run: RunConfig) -> dict[str, Any] | None:
    return {"batch_size": 2 * run.batch_size, "grad_accum": max(1, run.grad_accum // 2)}


def _set(**options: Any) -> Callable[[RunConfig], dict[str, Any] | None]:
    def turn(run: RunConfig) -> dict[str, Any] | None:
        changed = {name: value for name, value in options.items() if getattr(run, name) != value}
        return changed or None

    return turn


def _trainer(row: TrainerRow) -> Callable[[RunConfig], dict[str, Any] | None]:
    """Another trainer of the same task: none stands in for one that has to be named."""
    plain = _set(trainer=row.name, **row.without_others())
    return lambda run: plain(run) if trainer_named(run.trainer).automatic else None


def _base(**options: Any) -> Callable[[RunConfig], dict[str, Any] | None]:
    plain = _set(**options)

    def turn(run: RunConfig) -> dict[str, Any] | None:
        return None if run.method == "full" or run.quant == options["quant"] else plain(run)

    return turn


KNOBS = (
    Knob(name="batch_size", turn=_halved, note="the same effective batch"),
    Knob(name="batch_size", turn=_doubled, note="the same effective batch while there is accumulation to halve"),
    Knob(name="seq_len", turn=lambda run: {"seq_len": 2 * run.seq_len}),
    Knob(name="seq_len", turn=lambda run: {"seq_len": max(1, run.seq_len // 2)} if run.seq_len > 1 else None),
    Knob(name="rank", turn=lambda run: None if run.method == "full" else {"rank": 2 * run.rank, "alpha": None}),
    Knob(
        name="target_modules",
        turn=lambda run: None if run.method == "full" else _set(target_modules="attention")(run),
    ),
    Knob(name="quant", turn=_base(method="qlora", quant="nf4", double_quant=True)),
    Knob(name="quant", turn=_base(method="qlora", quant="int8"), note="outliers of real activations cost more"),
    Knob(name="quant", turn=_base(method="lora", quant="none")),
    Knob(
        name="double_quant",
        turn=lambda run: {"double_quant": not run.double_quant} if run.quant in ("nf4", "fp4") else None,
    ),
    Knob(name="gradient_checkpointing", turn=lambda run: {"gradient_checkpointing": not run.gradient_checkpointing}),
    Knob(name="attention", turn=_set(attention="eager")),
    Knob(name="optimizer", turn=_set(optimizer="paged_adamw_8bit")),
    Knob(name="optimizer", turn=_set(optimizer="adamw_torch")),
    *(
        Knob(name="trainer", turn=_trainer(row))
        for row in sorted(TRAINER_ROWS.values(), key=lambda row: len(row.own_options))
        if row.launches and row.automatic
    ),
    Knob(name="upcast", turn=lambda run: {"upcast": not run.upcast}, note="prepare_model_for_kbit_training"),
    Knob(
        name="activation_offloading",
        turn=_set(activation_offloading=True),
        note="needs host RAM; its speed is not modelled",
    ),
    Knob(
        name="alloc_conf", turn=_set(alloc_conf="expandable_segments:True"),
        note="less slack between what is reserved and what is used",
    ),
)  # fmt: skip
