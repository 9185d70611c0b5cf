"""`make tables`: write the figures of docs/several-cards.md between their markers, by the estimates of now."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qlora_planner.catalog.parallel import BOUNDED, DDP, FSDP1, FSDP2, ZERO2, ZERO3, strategy_row
from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, Sharding
from qlora_planner.memory.records import WRAP
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.session import Session
from qlora_planner.session.cards import card_of
from qlora_planner.spec.run import RunConfig
from tools import two_cards
from tools.readme import regenerated

WORLDS = (2, 8, 64, 512)
NETWORKS = ("10Gb", "100Gb", "400Gb", "8x400Gb")
MODEL = "meta-llama/Llama-3.1-8B"
BOUNDED_ROWS = two_cards.ROOT / "tests" / "data" / "truth" / "bounds-open.jsonl"
_MODELS = (MODEL, "meta-llama/Llama-2-70b-hf", "Qwen/Qwen3-30B-A3B")
_IN_A_NODE, _MIB = 8, 1 << 20
_BEFORE = ("load", "prepare", "adapters", WRAP)


def estimate_on(session: Session, strategy: str, world: int) -> MemoryEstimate:
    """The 8B of the page on so many A100s of 80 GB, eight in a node."""
    nodes = max(1, world // _IN_A_NODE)
    card = card_of(session, f"{world // nodes}xa100-80gb", nodes=nodes)
    run = RunConfig(parallel=strategy, optimizer="adamw_torch_fused", padding=False)
    return session.on(card).open(MODEL).estimate(run)


def cell(answer: MemoryEstimate) -> str:
    """The most that tensors take before the first step and in training; of an interval its ends, with the context."""
    if answer.run.parallel in BOUNDED:
        return f"{answer.peak.low_bytes // _MIB:,} to {answer.floor_bytes // _MIB:,}"
    sizes = {phase.name: phase.allocated_bytes or 0 for phase in answer.phases}
    before = max(size for name, size in sizes.items() if name in _BEFORE)
    training = max(size for name, size in sizes.items() if name not in _BEFORE)
    return f"{before // _MIB:,} · {training // _MIB:,}"


def strategies() -> str:
    """A row a strategy, a column a number of cards."""
    session = Session(stored_only=True)
    heads = ("strategy", *(f"{world} cards" for world in WORLDS))
    rows = [
        (strategy_row(name).label, *(cell(estimate_on(session, name, world)) for world in WORLDS))
        for name in (DDP, FSDP2, FSDP1, ZERO2, ZERO3)
    ]
    return _table(heads, rows)


def shards() -> str:
    """What a card keeps of each model after `fully_shard`, with constants; one card holds it whole."""
    session = Session(stored_only=True)
    rows = []
    for name in _MODELS:
        profile = session.model(name)
        resolution = resolve(profile, RunConfig(parallel=FSDP2))
        placement = Placement(profile, resolution.run)
        sizes = []
        for world in (1, *WORLDS):
            model = ShardedModel(placement, resolution.trainer, Sharding(world=world))
            sizes.append((sum(unit.shard_bytes for unit in model.units) + model.constant_bytes) // _MIB)
        rows.append((name.partition("/")[2], *(f"{size:,}" for size in sizes)))
    return _table(("cards", "1", *map(str, WORLDS)), rows)


def nodes() -> str:
    """Seconds of a step and tokens per second of all cards, a row a network between two nodes."""
    session = Session(stored_only=True)
    rows = []
    for network in NETWORKS:
        cells = []
        for strategy in (DDP, FSDP2):
            run = RunConfig(parallel=strategy, optimizer="adamw_torch_fused", batch_size=2, padding=False)
            speed = session.on("8xh200", nodes=2, node_network=network).open(MODEL).estimate(run).speed
            assert speed.step_s is not None and speed.tokens_per_s is not None
            cells.append(f"{speed.step_s:.2f} s · {speed.tokens_per_s:,.0f}")
        rows.append((network, *cells))
    return _table(("a node's network", "DDP, tokens/s of 16", "FSDP2"), rows)


def bounded() -> str:
    """Runs of strategies that are answered by an interval: what tensors, torch's pool and the process took of a card of
    two, each with the bounds."""
    session = Session(stored_only=True)
    rows = []
    for line in BOUNDED_ROWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["rank"] == 0 and row["layers"] is None and row["how"].startswith("NCCL"):
            run = RunConfig(
                seq_len=row["seq_len"], batch_size=row["batch_size"], trainer=row["trainer"], padding=False,
                upcast=False, parallel=row["strategy"], load_on=row["load_on"],
            )  # fmt: skip
            peak = session.on("2xh200").open(MODEL).estimate(run).peak
            most = [f"at most {size // _MIB:,}" for size in (peak.allocated_bytes or 0, peak.reserved_bytes or 0)]
            figures = (*most, f"{peak.low_bytes // _MIB:,} to {peak.high_bytes // _MIB:,}")
            measured = (f"{row[name] // _MIB:,}" for name in ("peak", "max_reserved", "nvml_peak"))
            own = ", engine's own buckets" if row["id"].endswith("-json") else ""
            label = f"{row['batch_size']} x {row['seq_len']:,}, {row['trainer']}{own}"
            pairs = (f"{ours} · {theirs}" for ours, theirs in zip(figures, measured, strict=True))
            rows.append((label, strategy_row(row["strategy"]).label, *pairs))
    return _table(("an 8B, a card", "strategy", "tensors", "reserved", "device"), rows)


def sections() -> dict[str, str]:
    """Marker -> what stands between it and its end."""
    return {"strategies": strategies(), "shards": shards(), "nodes": nodes(), "bounded": bounded()}


def measured_sections() -> dict[str, str]:
    """The same of the runs that were measured on two cards; what does not ship is traced for them."""
    return {"two-cards": two_cards.table(), "two-cards-times": two_cards.times()}


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(path: Path) -> int:
    """Rewrite `path`; says whether anything changed."""
    old = path.read_text(encoding="utf-8")
    new = regenerated(old, sections() | measured_sections())
    path.write_text(new, encoding="utf-8")
    print("rewritten" if new != old else "as it was")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/several-cards.md")))
