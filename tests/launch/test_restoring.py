"""A run that goes on ends as if it had never stopped, whichever optimizer it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_planner.catalog.optimizers import OPTIMIZERS
from qlora_planner.errors import InputError
from qlora_planner.runs.child.restoring import restore_states
from qlora_planner.train.settings import Settings
from tests.launch.conftest import RUN, Make, same, trained

FOUR = Settings(max_steps=4, save_steps=2, learning_rate=5e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_to_the_same_bits(optimizer: str, make: Make, tmp_path: Path) -> None:
    """bitsandbytes' optimizers run on its CPU backend; what it pages on a card is ordinary memory there."""
    run = RUN.with_(optimizer=optimizer)
    whole, _ = trained(make(run=run, settings=FOUR))
    reference = Path(make().output).rename(tmp_path / "whole")
    resumed, _ = trained(make(run=run, settings=FOUR, resume=str(reference / "checkpoints" / "checkpoint-2")))
    assert (whole["outcome"], resumed["outcome"], resumed["message"]) == ("ok", "ok", None)
    assert same(reference / "adapter", Path(make().output) / "adapter")


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> list[set[torch.dtype]]:
    """Dtypes of trained parameters when a model is wrapped: DDP adds up their gradients by hooks that are lost where a
    dtype changes afterwards."""
    from accelerate import Accelerator

    seen: list[set[torch.dtype]] = []
    prepare = Accelerator.prepare_model

    def prepared(self: Any, model: Any, *rest: Any, **more: Any) -> Any:
        seen.append({parameter.dtype for parameter in model.parameters() if parameter.requires_grad})
        return prepare(self, model, *rest, **more)

    monkeypatch.setattr(Accelerator, "prepare_model", prepared)
    return seen


@pytest.mark.parametrize(
    "changes",
    [{"dora": True}, {"trainer": "hf-trainer"}, {"upcast": True}, {"quant": "none", "method": "lora"}],
    ids=str,
)
def test_every_kind_of_adapter_goes_on_to_the_same_bits(
    changes: dict[str, Any], make: Make, tmp_path: Path, wrapped: list[set[torch.dtype]]
) -> None:
    run = RUN.with_(optimizer="adamw_torch", **changes)
    trained(make(run=run, settings=FOUR))
    reference = Path(make().output).rename(tmp_path / "whole")
    resumed, _ = trained(make(run=run, settings=FOUR, resume=str(reference / "checkpoints" / "checkpoint-2")))
    assert (resumed["outcome"], resumed["message"]) == ("ok", None)
    assert same(reference / "adapter", Path(make().output) / "adapter")
    assert wrapped[0] == wrapped[-1] and len(wrapped) >= 2


@pytest.mark.fault(
    "killed between the last step and the adapter", does="resuming only saves: no step more", exit=0, part="resumed"
)
@pytest.mark.fault(
    "fewer `--max-steps` than are done",
    said="4 steps are done and 3 are asked for; give at least --max-steps 4",
    exit=2,
    part="resumed",
)
def test_a_run_that_was_ended_before_its_adapter_only_saves(make: Make, tmp_path: Path) -> None:
    """The trainer takes a step before it looks whether any is left; a constant rate would move the adapter by it."""
    settings = dataclasses.replace(FOUR, scheduler="constant")
    trained(make(settings=settings))
    reference = Path(make().output).rename(tmp_path / "whole")
    last = reference / "checkpoints" / "checkpoint-4"
    resumed, told = trained(make(settings=settings, resume=str(last)))
    assert (resumed["outcome"], resumed["steps"], resumed["of"]) == ("ok", 4, 4)
    assert not [event for event, _ in told if event in ("step", "checkpoint", "rehearsed")]
    assert same(reference / "adapter", Path(make().output) / "adapter")
    with pytest.raises(InputError, match="4 steps are done and 3 are asked for; give at least --max-steps 4"):
        trained(make(settings=dataclasses.replace(settings, max_steps=3), resume=str(last)))


class Paged(torch.optim.AdamW):
    """As bitsandbytes' optimizers page on a card, without one."""

    is_paged = True

    def get_state_buffer(self, parameter: Any, dtype: Any) -> Any:
        buffer = torch.zeros(parameter.shape, dtype=dtype)
        buffer.is_paged = True  # type: ignore[attr-defined]
        return buffer


class Trainer:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def test_states_come_back_in_managed_memory_and_in_their_own_dtype(tmp_path: Path) -> None:
    """The parameter stands in for one on a card, where bitsandbytes pages states of 8 bits."""
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16, device="meta"))
    optimizer = Paged([parameter])
    third = torch.full((1,), 1 / 3)
    saved = {
        "param_groups": [{"params": [0]}],
        "state": {0: {"step": 7, "bnb": {"state1": torch.arange(4, dtype=torch.uint8), "absmax1": third}}},
    }
    torch.save(saved, tmp_path / "optimizer.pt")
    optimizer.state[parameter] = {
        "state1": torch.zeros(4), "absmax1": third.bfloat16(), "step": 7,
    }  # fmt: skip
    restore_states(Trainer(optimizer), tmp_path / "optimizer.pt")
    state = optimizer.state[parameter]
    assert state["state1"].is_paged and state["state1"].tolist() == [0, 1, 2, 3] and state["step"] == 7
    assert torch.equal(state["absmax1"], third)
