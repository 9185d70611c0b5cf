"""Runs with images, really taken on the CPU at toy size, through the model's own tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.measure.execution import Execution  # noqa: E402
from qlora_planner.measure.spec import ChildSpec  # noqa: E402
from qlora_planner.profiling.whole import whole_config  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from tests.tracing.test_images import QWEN25  # noqa: E402
from tests.wide import some  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "profiles" / "configs"


def measured(raw: dict[str, Any], **options: Any) -> Any:
    run = RunConfig(**{"seq_len": 96, "rank": 4, "lora_dropout": 0.0, "image_size": "140x112", **options})
    spec = ChildSpec(run=run, config=whole_config(raw, "toy"), device="cpu", steps=1)
    return Execution(spec, lambda *_: None).measure()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What the tower was given."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower

    seen: list[tuple[int, ...]] = []
    forward = Tower.forward

    def watched(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(hidden_states.shape))
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(Tower, "forward", watched)
    return seen


@pytest.mark.parametrize("trainer", some(["hf-trainer", "trl-sft", "loop"], 2))
def test_each_trainer_takes_a_step_through_the_tower(trainer: str, shown: list[tuple[int, ...]]) -> None:
    found = measured(QWEN25, trainer=trainer, batch_size=2, images=2)
    assert found.outcome == "ok", found.message
    # 140x112 pixels are 10 x 8 patches of 3 channels, twice over 14 x 14 pixels; two images in each of two rows.
    assert set(shown) == {(2 * 2 * 80, 3 * 2 * 14 * 14)}
    assert found.components["quantized_weights"] > 0


def test_a_published_config_is_cut_to_a_toy_whose_words_hold_its_image_tokens(shown: list[tuple[int, ...]]) -> None:
    raw = json.loads((CONFIGS / "Qwen__Qwen2.5-VL-3B-Instruct.json").read_text(encoding="utf-8"))
    assert whole_config(raw, "toy")["image_token_id"] > 512
    found = measured(raw, trainer="hf-trainer", image_size="56x56", seq_len=40)
    assert found.outcome == "ok", found.message
    assert set(shown) == {(16, 3 * 2 * 14 * 14)}
