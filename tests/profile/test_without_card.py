"""Where tracing ends because torch is a build for CUDA and sees no card, that is said."""

from __future__ import annotations

import pytest
import torch

from qlora_planner.errors import MissingError
from qlora_planner.profiling.refusals import traced_fault


@pytest.mark.parametrize(("build", "cards", "said"), [("13.0", 0, True), ("13.0", 1, False), (None, 0, False)])
def test_a_build_for_cuda_without_a_card_is_named(
    monkeypatch: pytest.MonkeyPatch, build: str | None, cards: int, said: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    words = "hasPrimaryContext expects a valid device index, but got device_index=0"
    with pytest.raises(RuntimeError) as ended:
        raise RuntimeError(words)
    fault = traced_fault(ended.value, "a/b")
    assert isinstance(fault, MissingError)
    assert ("sees no card" in str(fault)) == said
    assert "hasPrimaryContext" in str(fault)
