"""Option values that need more than click's own types: sizes, cards, versions of the stack."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qlora_planner.cli.streams import patience, say, theme_for_stdout
from qlora_planner.errors import InputError
from qlora_planner.report.parts.theme import Theme
from qlora_planner.spec.risk import TIGHT_AT_MOST, parse_risk
from qlora_planner.text import quoted
from qlora_planner.units import parse_memory

if TYPE_CHECKING:
    from qlora_planner.session import Session
    from qlora_planner.session.cards import PlannedCard

STACK_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "trl", "liger-kernel")
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.dev|\.post)\d+)?(\+[\w.]+)?")
_ALLOC_CONF = re.compile(r"[a-z_]+:[\w.\[\]:>;]+(,[a-z_]+:[\w.\[\]:>;]+)*")


@dataclass(frozen=True, kw_only=True)
class Output:
    """How the answer is wanted."""

    json: bool
    csv: bool
    every: bool
    explain: bool
    quiet: bool
    profiles: str | None
    theme: Theme
    risk: float = TIGHT_AT_MOST

    def warn(self, text: str) -> None:
        """A note on stderr, unless it is to be quiet."""
        if not self.quiet:
            say(text)

    @cached_property
    def session(self) -> Session:
        """What every answer starts from; notes go where the output's do."""
        from qlora_planner.session import Session

        return Session(self.profiles, tell=self.warn, waiting=lambda text: patience(text, self.quiet), risk=self.risk)


def output_from(given: Mapping[str, Any]) -> Output:
    """Raises InputError for --json and --csv together, and for a --risk that is no chance."""
    if given.get("json") and given.get("csv"):
        raise InputError("--json and --csv: one answer has one form; leave one of them out")
    return Output(
        json=bool(given.get("json")),
        csv=bool(given.get("csv")),
        every=bool(given.get("all")),
        explain=bool(given.get("explain")),
        quiet=bool(given.get("quiet")),
        profiles=given.get("profiles"),
        risk=TIGHT_AT_MOST if given.get("risk") is None else parse_risk(given["risk"], "--risk"),
        theme=theme_for_stdout(bool(given.get("no_color"))),
    )


def parse_stack(texts: Sequence[str], tools: Sequence[str] = ()) -> dict[str, str]:
    """`trl=1.13,transformers=5.17` by package; `tools` are named beside the libraries.

    Raises InputError for what is not PACKAGE=VERSION, for an unknown package and for one that is given twice.
    """
    versions: dict[str, str] = {}
    for item in (part.strip() for text in texts for part in text.split(",")):
        name, equals, version = item.partition("=")
        name, version = name.strip().lower().replace("_", "-"), version.removeprefix("=").strip()
        if not equals or not _VERSION.fullmatch(version):
            raise InputError(f"--stack: {quoted(item)} is not PACKAGE=VERSION, as trl=1.13,transformers=5.17")
        if name not in (*STACK_PACKAGES, *tools):
            names = ", ".join((*STACK_PACKAGES, *tools))
            raise InputError(f"--stack: {quoted(name)} is not a package that memory depends on; known: {names}")
        if versions.setdefault(name, version) != version:
            raise InputError(f"--stack: {name} is given twice, as {versions[name]} and {version}")
    return versions


def check_alloc_conf(text: str) -> None:
    """Raises InputError for what torch could not read as its allocator settings."""
    if not _ALLOC_CONF.fullmatch(text):
        raise InputError(f"--alloc-conf: {quoted(text)} is not KEY:VALUE, as expandable_segments:True")


def card_from(given: Mapping[str, Any], output: Output, *, required: bool) -> PlannedCard | None:
    """The card that was asked for; without --gpu the one in this machine where `required`, else None.

    Raises InputError for a card, a reserve or a cap that means nothing, MissingError for `local` without a card.
    """
    text, reserve_bytes, cap_bytes = card_asked(given)
    if text is None and not required:
        of_cards = ("reserve", "cap", "risk", "nodes", "node_network")
        given_alone = [name for name in of_cards if given.get(name) is not None]
        if given_alone:
            raise InputError(f"--{given_alone[0].replace('_', '-')} needs a card: add --gpu, as --gpu 24GB")
        return None
    from qlora_planner.session.cards import card_typed

    return card_typed(
        output.session, text, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, nodes=given.get("nodes") or 1,
        node_network=given.get("node_network"),
    )  # fmt: skip


def stand_in_from(given: Mapping[str, Any], output: Output) -> tuple[PlannedCard | None, int | None, int | None]:
    """The card that those in this machine are to behave like, where one was named, with their number; --reserve and
    --cap in bytes.

    Raises InputError for a card, a reserve or a cap that means nothing, and for several nodes.
    """
    text, reserve_bytes, cap_bytes = card_asked(given)
    if text is None:
        return None, reserve_bytes, cap_bytes
    from qlora_planner.session.cards import card_typed

    nodes = given.get("nodes") or 1
    card = card_typed(output.session, text, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, nodes=nodes)
    if card.nodes > 1:
        raise InputError(
            f"--nodes {card.nodes}: the cards of one machine are started here; `qlora-plan plan` with --export slurm,"
            " torchrun or skypilot writes what starts several"
        )
    return card, reserve_bytes, cap_bytes


def card_asked(given: Mapping[str, Any]) -> tuple[str | None, int | None, int | None]:
    """--gpu as it was typed, --reserve and --cap in bytes. Raises InputError for a size that means nothing."""
    reserve, cap = given.get("reserve"), given.get("cap")
    return (
        given.get("gpu"),
        None if reserve is None else parse_memory(str(reserve), "--reserve", zero=True),
        None if cap is None else parse_memory(str(cap), "--cap"),
    )
