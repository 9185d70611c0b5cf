"""Versions of libraries that figures hold for: what was read, traced or measured, and what nobody looked at."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner.catalog.trainers import parse_version, trainer_named, trainer_row
from qlora_planner.record import record

_Version = tuple[int, int]
# Releases, first to last, whose difference for memory is in the code or was measured to be none. trl: the loss and the
# casts of its trainer, read in its released wheels (catalog/trainers/rows.py, tracing/older_trl.py). transformers: what
# classes lost is in catalog/attention.py, and four runs were measured with 5.24 (docs/verifications.md). torch: traced
# with 2.13 and measured with 2.11. The others: traced and measured with one release.
MODELLED: Mapping[str, tuple[_Version, _Version]] = {
    "trl": ((0, 0), (1, 16)),
    "transformers": ((5, 17), (5, 24)),
    "torch": ((2, 11), (2, 13)),
    "peft": ((0, 21), (0, 21)),
    "bitsandbytes": ((0, 50), (0, 50)),
    "accelerate": ((1, 15), (1, 15)),
    "liger-kernel": ((0, 8), (0, 8)),
}
# The first releases whose models allocate otherwise than those before: from transformers 5.19 on rotary angles are
# multiplied without cuBLAS (modeling_llama.py of wheels 5.18.0 and 5.19.0). Up to the next one trace stands for all.
CODE_SINCE: Mapping[str, tuple[_Version, ...]] = {"transformers": ((5, 19),)}


@record
class NamedVersion:
    """A version that was named, and what became of it: figures hold for it, or for `instead`."""

    package: str
    version: str
    instead: str | None  # None: they hold for the version itself


@record
class Stack:
    """`versions` are those that figures hold for; `named` the ones that somebody named."""

    versions: Mapping[str, str]
    named: tuple[NamedVersion, ...]

    @property
    def unmodelled(self) -> tuple[NamedVersion, ...]:
        """Named versions that nobody looked at."""
        return tuple(row for row in self.named if row.instead is not None)

    @property
    def modelled(self) -> tuple[NamedVersion, ...]:
        """Named versions that figures hold for."""
        return tuple(row for row in self.named if row.instead is None)


def stack_of(counted: Mapping[str, str], named: Mapping[str, str]) -> Stack:
    """The versions that a profile of `counted` versions is planned with where those of `named` are wanted."""
    rows = tuple(
        NamedVersion(package=package, version=version, instead=_instead(package, version, counted.get(package)))
        for package, version in named.items()
    )
    return Stack(versions={**counted, **{row.package: row.instead or row.version for row in rows}}, named=rows)


def _instead(package: str, version: str, counted: str | None) -> str | None:
    wanted = parse_version(version)
    if counted is not None and parse_version(counted) == wanted:
        return None
    first, last = MODELLED.get(package, ((0, 0), (-1, 0)))
    if first <= wanted <= last:
        return None
    newest = counted is None or (wanted > last > parse_version(counted))
    return ".".join(map(str, last)) if newest else counted


def same_code(versions: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether models run the same code with both, as far as traces go; a package that either leaves out is passed."""
    return all(
        _generation(package, versions[package]) == _generation(package, others[package])
        for package in CODE_SINCE
        if package in versions and package in others
    )


def _generation(package: str, version: str) -> int:
    return sum(1 for first in CODE_SINCE[package] if parse_version(version) >= first)


def changes(package: str, version: str, counted: str | None, trainer: str) -> str | None:
    """How a modelled version moves figures against the one that the profile was counted with; None: in no way."""
    if counted is not None and not same_code({package: version}, {package: counted}):
        return "rotary angles take no matrix product from 5.19 on, which moves what is reserved by some MiB"
    if trainer_named(trainer).versioned_by != package:
        return None
    (row, loss), (usual, other) = (trainer_row(trainer, {package: release}) for release in (version, counted or "999"))
    said = [] if loss == other else [loss.why]
    said += [] if row.upcasts == usual.upcasts else ["it casts 16-bit weights to float32"]
    return "; ".join(said) or None
