"""A training's summary and a model's audit as screens: every figure that they were given, in its unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_planner.memory.audit.audit import audit
from qlora_planner.report.audit import render_audit
from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.training import render_training
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import GIB
from tests.report.records import RUN

THEME = Theme(unicode=True)
MODELS = ModelCatalogue([Path(__file__).parents[2] / "profiles" / "models"])
ATTEMPT = {"rung": None, "says": "", "outcome": "ok"}


def flat(text: str) -> str:
    return " ".join(text.split())


def summary(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "outcome": "ok", "message": None, "model": {"id": "/models/llama-8b"}, "run": RUN.to_dict(),
        "settings": {"max_steps": None, "epochs": 2.0, "learning_rate": 2e-4, "scheduler": "cosine", "warmup": 0.03,
                     "save_steps": 50, "seed": 42},
        "data": {"rows": 1200, "rows_given": 4096, "eval_rows": 64, "longest": 1948},
        "steps": 150, "of": 200, "loss": {"first": 2.5, "last": 1.25, "least": 1.2, "evaluation": 1.375},
        "trainable_params": 41_943_040, "params": 8_030_261_248,
        "speed": {"step_s": 1.5, "tokens_per_s": 2731.0, "predicted": {"tokens_per_s": 3000.0}},
        "memory": {
            "predicted": {"device_bytes": 10 * GIB, "low_bytes": 9 * GIB, "high_bytes": 11 * GIB},
            "device_bytes": 10 * GIB + GIB // 2, "allocated_bytes": 8 * GIB, "host_bytes": 3 * GIB,
            "phases": {"load": {"device_bytes": 6 * GIB, "predicted_bytes": 7 * GIB},
                       "training": {"device_bytes": 10 * GIB, "predicted_bytes": None},
                       "no phase": {"device_bytes": 99 * GIB, "predicted_bytes": None}},
        },
        "attempts": [ATTEMPT], "notes": ["the disk is nearly full"], "adapter": {"path": "runs/a/adapter"},
        "checkpoint": "checkpoint-150", "wall_s": 312.4,
    }  # fmt: skip
    return {**made, **changes}


def test_a_training_has_every_figure_of_its_summary() -> None:
    text = flat(render_training(summary(), THEME, folder="runs/a"))
    assert text.startswith("✓ trained: llama-8b: 150 of 200 steps, loss 2.500 to 1.250")
    for part in (
        "epochs 2, learning rate 0.0002, cosine, warm-up 0.03, a checkpoint every 50 steps, seed 42",
        "1,200 rows, 64 held out, the longest batch 1,948 tokens wide",
        "42M of 8.03B parameters",
        "held out loss 1.375",
        "2,731 tokens/s, 3,000 predicted; 1.50 s per step",
        "peak 10.50 GiB measured, 10.00 GiB predicted (+5.0 %), inside the interval of 9.00 GiB to 11.00 GiB",
        "loading 6.00 of 7.00, training 10.00 GiB at the most",
        "time 312 s",
        "the disk is nearly full",
        "the adapter and its tokenizer are in runs/a/adapter",
    ):
        assert part in text, part
    assert "99.00" not in text and "--resume" not in text
    assert max(map(len, render_training(summary(), THEME, folder="runs/a").splitlines())) <= 80
    assert render_training(summary(), Theme(), folder="runs/a").isascii()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"outcome": "out-of-memory", "message": "nothing smaller is left"},
         ("✗ out of memory: llama-8b", "; nothing smaller is left", "the last good checkpoint is checkpoint-150",
          "qlora-plan train 'runs/a b' --resume")),
        ({"outcome": "interrupted", "message": "SIGTERM", "checkpoint": None},
         ("≈ interrupted: llama-8b: 150 of 200 steps, loss 2.500 to 1.250 run ", "no checkpoint was written yet")),
        ({"attempts": [{"rung": "micro-batch 1", "says": "out of memory at step 3"}]},
         ("recovered out of memory at step 3; went on with micro-batch 1",)),
        ({"run": {**RUN.to_dict(), "packing": True}}, ("4,096 rows packed into 1,200, 64 held out",)),
        ({"loss": {"first": None, "last": None, "least": None, "evaluation": None}, "of": None},
         ("150 of ? steps run",)),
    ],
)  # fmt: skip
def test_how_a_training_ended_is_said_with_what_to_do_next(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    text = flat(render_training(summary(**changes), THEME, folder="runs/a b"))
    for part in parts:
        assert part in text, part


@pytest.mark.parametrize(
    ("measured", "said"),
    [(8 * GIB, "(-20.0 %), OUTSIDE"), (9 * GIB, "inside"), (11 * GIB, "inside"), (12 * GIB, "OUT")],
)
def test_a_peak_outside_its_interval_is_called_so(measured: int, said: str) -> None:
    memory = {**summary()["memory"], "device_bytes": measured}
    assert said in flat(render_training(summary(memory=memory), THEME, folder="r"))


def test_a_training_on_the_cpu_has_host_memory() -> None:
    memory = {**summary()["memory"], "device_bytes": None}
    text = flat(render_training(summary(memory=memory), THEME, folder="r"))
    assert "8.00 GiB allocated; 3.00 GiB of host memory at the most" in text


def test_an_audit_adds_up_on_the_screen() -> None:
    """Llama-3.1-8B by its config: 224 linears of 6.98B parameters in 4 bits; embedding and head of 128,256 x 4,096
    in 16 bits, 0.979 GiB each; 65 norms and two buffers."""
    text = render_audit(audit(MODELS.load("meta-llama/Llama-3.1-8B"), RunConfig(quant="nf4")), THEME)
    for row in (
        "4-bit linear layers 224 6.98B 3.35 3.35 3.35",
        "kept embeddings 1 525M 0.979 0.252 1.96",
        "kept output head 1 525M 0.979 0.252 1.96",
        "everything else 67 266K 0.000 - 0.001",
        "all 293 8.03B 5.31 3.86 7.27",
        "5.31 GiB becomes 7.27 GiB, 1.96 GiB more. Trainers of today",
    ):
        assert row in flat(text), row
    assert flat(text).startswith("Llama-3.1-8B: 6.98B of 8.03B parameters (87 %) will be 4-bit")
    explained = render_audit(audit(MODELS.load("meta-llama/Llama-3.1-8B"), RunConfig(quant="nf4")), THEME, explain=True)
    assert "everything else" not in explained and "model.layers.*.self_attn.q_proj" in explained
