"""Closed forms against shipped traces of the real classes, which know nothing of them: what a token more costs."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.closed_form.activations import Activations, activations, model_shape
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import stored_tape
from qlora_planner.spec.run import RunConfig
from tests.memory.test_estimate import H200

PROFILES = Path(__file__).parents[2] / "profiles"
CATALOGUE = ModelCatalogue([PROFILES / "models"])
WORKSPACE_BYTES = 32 << 20
# How far off the bytes of one more token were when they were written down, rounded up. Without the term of its
# query-key norms each Qwen3 is off by more than 6 %, without that of their extra norms the gemmas by more than 12 %.
BYTES_PER_TOKEN_BOUNDS = {
    "meta-llama/Llama-3.2-1B": 0.002,
    "Qwen/Qwen2.5-1.5B": 0.04,
    "Qwen/Qwen3-0.6B": 0.015,
    "Qwen/Qwen3-4B": 0.02,
    "Qwen/Qwen3-8B": 0.015,
    "google/gemma-2-2b": 0.11,
    "google/gemma-3-1b": 0.09,
}


def backward_bytes(estimated: MemoryEstimate) -> int:
    return next(phase.allocated_bytes or 0 for phase in estimated.phases if phase.name == "backward")


@cache
def traced_and_closed(model: str, batch_size: int, seq_len: int) -> tuple[int, int]:
    """Allocated bytes of backward, by the trace of the default recipe and by closed forms."""
    profile, run = CATALOGUE.load(model), RunConfig(batch_size=batch_size, seq_len=seq_len)
    stored = stored_tape(profile, [PROFILES / "tapes"], batch_size, seq_len)
    assert stored is not None
    tape = stored.tape.at(batch_size, seq_len, run.rank, WORKSPACE_BYTES)
    traced, closed = estimate(profile, run, H200, tape=tape), estimate(profile, run, H200)
    assert (traced.method == "traced") != (closed.method == "traced")
    return backward_bytes(traced), backward_bytes(closed)


@pytest.mark.parametrize("model", BYTES_PER_TOKEN_BOUNDS)
def test_a_token_more_costs_what_it_costs_the_traced_class(model: str) -> None:
    shorter, longer = traced_and_closed(model, 1, 2112), traced_and_closed(model, 1, 4096)
    traced, closed = (after - before for before, after in zip(shorter, longer, strict=True))
    assert abs(closed / traced - 1) < BYTES_PER_TOKEN_BOUNDS[model]


@pytest.mark.parametrize(
    ("model", "batch_size"), [("meta-llama/Llama-3.1-8B", 8), ("Qwen/Qwen2.5-1.5B", 8), ("Qwen/Qwen3-0.6B", 16)]
)
def test_padding_costs_for_every_pair_of_positions_what_it_costs_the_traced_class(model: str, batch_size: int) -> None:
    """Nothing else grows with the square of the length, so the second difference is that of the masks."""
    first, second, third = (traced_and_closed(model, batch_size, seq_len) for seq_len in (1024, 2048, 3072))
    traced, closed = (a - 2 * b + c for a, b, c in zip(first, second, third, strict=True))
    assert traced > 0
    assert closed == pytest.approx(traced, rel=0.05)


def layers_alone(model: str, run: RunConfig) -> Activations:
    profile = CATALOGUE.load(model)
    resolution = resolve(profile, run)
    shape = model_shape(profile, resolution.run)
    return activations(shape, resolution.run, resolution.trainer, resolution.loss)


def test_as_many_layer_inputs_wait_for_their_copy_to_the_host_as_the_library_lets() -> None:
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        pytest.skip("needs the source of trl")
    source = (Path(trl.origin).parent / "models" / "activation_offloading.py").read_text(encoding="utf-8")
    (waiting,) = {
        ast.literal_eval(default)
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        for argument, default in zip(function.args.args[::-1], function.args.defaults[::-1], strict=False)
        if argument.arg == "max_fwd_stash_size"
    }
    acts = layers_alone("meta-llama/Llama-3.2-1B", RunConfig(seq_len=1024, activation_offloading=True))
    layer_input_bytes = 2 * 2048 * 1024  # bfloat16, of the published config
    assert acts.checkpoints == waiting * layer_input_bytes
    assert acts.offloaded == 16 * layer_input_bytes


@pytest.mark.parametrize(
    ("model", "options", "batch_size", "seq_len", "grad_accum"),
    [
        (model, options, *sizes)
        for (model, options), sizes in product(
            [
                # Whole logits lead, then layers: gradients of earlier micro-batches count in the first alone.
                ("Qwen/Qwen2.5-0.5B", {"trainer": "hf-trainer", "rank": 64}),
                ("meta-llama/Llama-3.1-8B", {"upcast": True, "rank": 256}),
                ("meta-llama/Llama-3.2-1B", {"method": "full", "quant": "none"}),
            ],
            [(1, 2048, 1), (1, 2048, 2), (4, 1024, 1), (4, 1024, 8)],
        )
    ],
)
def test_a_candidate_works_from_as_many_bytes_on_as_the_estimate_of_its_run(
    model: str, options: dict[str, object], batch_size: int, seq_len: int, grad_accum: int
) -> None:
    profile = CATALOGUE.load(model)
    run = RunConfig(batch_size=batch_size, seq_len=seq_len, grad_accum=grad_accum, **options)  # type: ignore[arg-type]
    resolution, budget = resolve(profile, run, H200), Budget.of(H200)
    memory = CandidateFactory.of(profile, budget).make(resolution)
    floors, traced = memory.floors(*(np.array([size], dtype=np.int64) for size in (batch_size, seq_len)))
    assert not traced.any()
    assert floors.tolist() == [estimate(profile, run, H200).floor_bytes]
    # The same, where the run at hand accumulates otherwise than the candidate.
    other = CandidateFactory.of(profile, budget).make(resolve(profile, run.with_(grad_accum=3 - min(grad_accum, 2))))
    floors, _ = other.floors(
        *(np.array([size], dtype=np.int64) for size in (batch_size, seq_len)), accumulated=grad_accum > 1
    )
    assert floors.tolist() == [estimate(profile, run, H200).floor_bytes]
