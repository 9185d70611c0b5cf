"""The compiled allocator and replay, beside their Python twins: the same figures to the byte."""

from __future__ import annotations

import inspect
import random
import re
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_planner.memory.allocator.caching import CachingAllocator, OutOfMemory
from qlora_planner.memory.allocator.expandable import ExpandableAllocator
from qlora_planner.memory.allocator.native import fresh, native_memory, native_module
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay import simulate
from qlora_planner.memory.sweep import segments
from qlora_planner.session import Session
from qlora_planner.sources.locations import tapes_dirs
from qlora_planner.sources.tapes import stored_tapes
from qlora_planner.spec.run import RunConfig

if native_memory(None) is None:
    pytest.skip(
        "nothing is compiled here: `pip install .` or `make native` does, with a C compiler", allow_module_level=True
    )

MIB = 1 << 20
EXPANDABLE = "expandable_segments:True"
COUNTERS = (
    "allocated", "peak_allocated", "reserved", "peak_reserved", "non_releasable_bytes", "peak_non_releasable_bytes",
)  # fmt: skip


def test_what_newer_pythons_compile_keeps_the_none_of_3_11() -> None:
    sources = [path.read_text("utf-8") for path in Path(inspect.getfile(fresh)).parent.glob("*.[ch]")]
    used = sorted({word for text in sources for word in re.findall(r"\bPy_RETURN_\w+", text)})
    assert not used, f"{used}: from 3.12 on these count no reference"


def test_what_was_compiled_of_other_c_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "arena.c").write_text("int other;\n")
    assert not fresh(native_module(), tmp_path)
    assert not fresh(object(), tmp_path)  # made before modules said what they were made of
    (tmp_path / "arena.c").unlink()
    assert fresh(native_module(), tmp_path)  # a wheel may leave its C behind


def counters(memory: CachingAllocator) -> tuple[int, ...]:
    return tuple(getattr(memory, name) for name in COUNTERS)


def some_size(draw: random.Random) -> int:
    return draw.choice([0, 1, 512, 513, 40_000, MIB, MIB + 1, draw.randint(1, 9 * MIB), draw.randint(1, 90 * MIB)])


@pytest.mark.parametrize("limit_bytes", [None, 900 * MIB], ids=["unlimited", "limited"])
@pytest.mark.parametrize("kind", ["segments", "expandable", "apart"])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_calls_leaves_the_same_counters(kind: str, limit_bytes: int | None, seed: int) -> None:
    draw = random.Random(seed)
    expandable, apart = kind != "segments", kind == "apart"
    ours = (
        ExpandableAllocator(limit_bytes=limit_bytes, apart=apart)
        if expandable
        else CachingAllocator(limit_bytes=limit_bytes)
    )
    theirs = native_memory(limit_bytes, expandable=expandable, apart=apart)
    assert theirs is not None
    alive: list[tuple[Any, Any]] = []
    refused = 0
    for _ in range(3_000):
        what = draw.random()
        if what < 0.55 or not alive:
            size, stream = some_size(draw), draw.choice([0, 0, 0, 1, 2])
            try:
                block = ours.malloc(size, stream)
            except OutOfMemory as error:
                refused += 1
                with pytest.raises(OutOfMemory) as raised:
                    theirs.malloc(size, stream)
                assert vars(raised.value) == vars(error)
                continue
            twin = theirs.malloc(size, stream)
            assert (block and (block.address, block.size)) == (twin and (twin.address, twin.size))
            alive.append((block, twin))
        elif what < 0.97:
            block, twin = alive.pop(draw.randrange(len(alive)))
            ours.free(block)
            theirs.free(twin)
        elif what < 0.99:
            ours.empty_cache()
            theirs.empty_cache()
        else:
            ours.reset_peaks()
            theirs.reset_peaks()
        assert counters(ours) == counters(theirs)
    assert bool(refused) == (limit_bytes is not None)


RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "usual": ("meta-llama/Llama-3.2-1B", "h200", {}),
    "accumulated": ("Qwen/Qwen2.5-0.5B", "h200", {"grad_accum": 4}),
    "expandable": ("google/gemma-2-2b", "h200", {"alloc_conf": EXPANDABLE}),
    "capped": ("meta-llama/Llama-3.2-1B", "rtx-3060", {"seq_len": 8192}),
    "capped-expandable": ("meta-llama/Llama-3.2-1B", "rtx-3060", {"seq_len": 8192, "alloc_conf": EXPANDABLE}),
    "transformers": ("Qwen/Qwen2.5-0.5B", "h200", {"trainer": "hf-trainer", "padding": False}),
    "whole-layers": ("Qwen/Qwen2.5-7B", "h200", {"gradient_checkpointing": False}),
    "full": ("Qwen/Qwen2.5-0.5B", "h200", {"method": "full"}),
    "conv1d": ("openai-community/gpt2", "h200", {"seq_len": 512}),
    "fsdp2": ("meta-llama/Llama-3.2-1B", "2xh200", {"parallel": "fsdp2", "optimizer": "adamw_torch"}),
    "fsdp2-from-host": (
        "meta-llama/Llama-3.2-1B",
        "4xh200",
        {"parallel": "fsdp2", "optimizer": "adamw_torch", "load_on": "cpu", "grad_accum": 2},
    ),
    "fsdp2-expandable": (
        "Qwen/Qwen2.5-0.5B",
        "2xrtx-3060",
        {"parallel": "fsdp2", "optimizer": "adamw_torch", "alloc_conf": EXPANDABLE, "seq_len": 4096},
    ),
    "ddp": ("meta-llama/Llama-3.2-1B", "2xh200", {"trainer": "hf-trainer", "padding": False, "upcast": False}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_estimated_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, card, options = RUNS[name]
    run = RunConfig(**({"seq_len": 2048, "batch_size": 1} | options))
    answers = []
    for native in ("auto", "never"):
        monkeypatch.setenv("QLORA_PLANNER_NATIVE", native)
        monkeypatch.setattr(simulate, "_remembered", {})
        answers.append(Session(stored_only=True).open(model, card).estimate(run))
    compiled, plain = answers
    assert compiled.method == "traced"
    assert compiled == plain


def test_batches_of_other_widths_before_are_played_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(seq_len=2048, batch_size=1)
    answers = []
    for native in ("auto", "never"):
        monkeypatch.setenv("QLORA_PLANNER_NATIVE", native)
        monkeypatch.setattr(simulate, "_remembered", {})
        opened = Session(stored_only=True).open("Qwen/Qwen2.5-0.5B", "h200")
        answers.append(opened.estimate(replace(run, padding=False), widths=[[700, 2048, 1300], [1999, 40]]))
    assert answers[0] == answers[1]
    assert answers[0].peak.reserved_bytes > answers[0].peak.allocated_bytes


def test_what_moves_to_the_host_is_played_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Session(stored_only=True).open("Qwen/Qwen2.5-0.5B", "h200")
    resolution = resolve(opened.profile, RunConfig(), opened.gpu)
    tape = opened.tape(resolution.run)
    assert tape is not None
    layers = [part for part in tape.segments if (part.stage, part.name) == ("forward", "layer")]
    born = {storage for part in layers for storage, size in tape.events[part.start : part.stop] if size}
    moved = replace(tape, on_host=frozenset(sorted(born)[::3]))
    played = []
    for native in ("auto", "never"):
        monkeypatch.setenv("QLORA_PLANNER_NATIVE", native)
        played.append(simulate.simulate_run(opened.profile, resolution, moved, 32 * MIB))
    assert played[0] == played[1]
    assert played[0].offloaded > 0


TAPES = (
    ("meta-llama/Llama-3.2-1B", "single"),
    ("google/gemma-2-2b", "single"),
    ("Qwen/Qwen2.5-0.5B", "batched"),
    ("openai-community/gpt2", "single"),
)


WEIGHTS = np.random.default_rng(1)


def by_phase(moments: segments.Moments, table: Any) -> dict[str, list[float]]:
    """The most blocks of each run in each phase."""
    levels, phases = moments.levels(table), np.array(moments.phases)
    return {phase: levels[phases == phase].max(axis=0).tolist() for phase in sorted(set(moments.phases))}


@pytest.mark.parametrize(("model", "kind"), TAPES, ids=lambda word: word.rpartition("/")[2])
def test_the_moments_of_a_tape_are_counted_alike(model: str, kind: str) -> None:
    profile = Session(stored_only=True).open(model, "h200").profile
    for stored in stored_tapes(profile, kind, tapes_dirs()):
        table = WEIGHTS.integers(1, 1 << 20, (40, len(stored.tape.sizes) + 3)).astype(float)
        for ours, theirs in zip(segments._counted(stored.tape), segments._counted_natively(stored.tape), strict=True):
            assert by_phase(ours, table) == by_phase(theirs, table)


def test_a_tape_with_a_storage_beyond_those_it_knows_is_refused() -> None:
    compiled = native_module()
    assert compiled is not None
    with pytest.raises(ValueError, match="not a tape"):
        compiled.pack(array("q", (5, 512)).tobytes(), b"", b"", b"", bytes(5), bytes(56))


def test_a_copy_of_a_device_goes_its_own_way() -> None:
    memory: Any = native_memory(None)
    kept = memory.malloc(3 * MIB)
    before = counters(memory)
    copy = memory.copy()
    copy.free(kept)
    copy.empty_cache()
    assert (copy.allocated, copy.reserved) == (0, 0)
    assert counters(memory) == before
    memory.free(kept)
    assert memory.allocated == 0


def test_a_copy_under_a_limit_runs_out_where_a_device_of_that_limit_does() -> None:
    whole: Any = native_memory(None)
    whole.malloc(30 * MIB)
    copy = whole.copy(60 * MIB)
    assert copy.limit_bytes == 60 * MIB
    copy.malloc(30 * MIB)
    with pytest.raises(OutOfMemory):
        copy.malloc(30 * MIB)
    whole.malloc(30 * MIB)
    whole.malloc(30 * MIB)  # whose own limit stays what it was
    assert whole.copy().limit_bytes is None
