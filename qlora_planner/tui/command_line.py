"""A run as somebody would type it: options that are no default, and whole command lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qlora_planner.spec.risk import TIGHT_AT_MOST
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard

_DEFAULT = RunConfig()
# What a plan would search if it were not typed: with these it is of exactly this run.
SEARCHED = (
    "method", "quant", "double_quant", "seq_len", "batch_size", "grad_accum", "rank", "gradient_checkpointing",
    "optimizer", "attention", "packing",
)  # fmt: skip


# A CPU steps through so much of a toy in a few seconds.
_TOY_TOKENS, _TOY_BATCH = 128, 2


def toy_sized(run: RunConfig) -> RunConfig:
    """The run at a length and a batch that a CPU takes with a toy of the model; everything else stays."""
    return run.with_(
        seq_len=min(run.seq_len, _TOY_TOKENS), batch_size=min(run.batch_size, _TOY_BATCH),
        grad_accum=min(run.grad_accum, _TOY_BATCH),
    )  # fmt: skip


def typed_options(run: RunConfig) -> dict[str, Any]:
    """What of a run must be typed: all that is no default."""
    return {
        name: value
        for name, value in run.to_dict().items()
        if value != getattr(_DEFAULT, name) and value is not None and value != {}
    }


def command_line(model: str, card: PlannedCard, run: RunConfig, verb: str = "estimate") -> str:
    """The command that gives the same figures."""
    return shlex.join(["qlora-plan", *command_words(model, card, run, verb)])


def command_words(
    model: str, card: PlannedCard | None, run: RunConfig, verb: str, typed: Sequence[str] = ()
) -> list[str]:
    """The words after `qlora-plan`; `card` None leaves the card out, `typed` are options to give though default."""
    from qlora_planner.catalog.gpus.several import nodes_of
    from qlora_planner.report.parts.labels import option
    from qlora_planner.units import MIB

    words = [verb, model]
    if card is not None:
        words += nodes_of(card.asked).words
        if card.reserve_bytes:
            words += ["--reserve", f"{-(-card.reserve_bytes // MIB)}MiB"]
        if card.cap_bytes is not None:
            words += ["--cap", f"{card.cap_bytes // MIB}MiB"]
        if card.risk != TIGHT_AT_MOST:
            words += ["--risk", f"{100 * card.risk:g}%"]
    options = typed_options(run)
    options |= {name: getattr(run, name) for name in typed if getattr(run, name) is not None}
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(option(name) if value else option(name).replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            words += [option(name), ",".join(f"{package}={version}" for package, version in value.items())]
        else:
            words += [option(name), str(value)]
    return words
