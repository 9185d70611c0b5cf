"""Polynomials of sizes, and a compiled tape against a trace at a point that was not used."""

from __future__ import annotations

import pytest

from qlora_planner.profiling.tracing.compile import Point, compile_tapes, fit
from qlora_planner.profiling.tracing.extrapolate import extrapolate
from qlora_planner.profiling.tracing.tape import Tape

SIZES = ((1, 1600, 8), (2, 1024, 16), (3, 640, 24), (2, 1536, 8), (1, 2048, 32))
POINTS = tuple(Point(batch=b, seq=s, rank=r) for b, s, r in SIZES)


def test_the_fewest_terms_are_found() -> None:
    values = [4096 * point.batch * point.seq + 64 * point.rank for point in POINTS]
    found = fit(POINTS, values)
    assert found is not None
    assert found.at(Point(batch=5, seq=1000, rank=7)) == 4096 * 5000 + 64 * 7
    assert len(found.terms) == 2


def test_what_is_no_polynomial_is_refused() -> None:
    assert fit(POINTS, [1, 2, 3, 5, 8]) is None


def test_a_compiled_tape_equals_a_trace_elsewhere() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    from qlora_planner.profiling.tracing import engine
    from qlora_planner.profiling.tracing.spec import TraceSpec

    raw = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
    }

    def traced(point: Point) -> Tape:
        # More than 1,536 tokens: bitsandbytes always dequantises; torch's AdamW has no rule by tensor size.
        sizes = {"batch_size": point.batch, "seq_len": point.seq, "rank": point.rank}
        return engine.trace(raw, TraceSpec(**sizes, optimizer="adamw_torch"))

    compiled = compile_tapes(POINTS, [traced(point) for point in POINTS])
    elsewhere = Point(batch=2, seq=1152, rank=40)
    direct = traced(elsewhere)
    assert [e.size for e in compiled.at(elsewhere).events] == [e.size for e in direct.events]
    assert extrapolate(compiled.at(elsewhere)) == extrapolate(direct)
