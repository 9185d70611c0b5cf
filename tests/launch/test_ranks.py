"""Several ranks through `train`: accelerate launches two processes of the CPU, which talk over gloo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import pytest

from qlora_planner.cli.main import cli
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, Sharding
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.runs.checkpoints import checkpoints, fault_of
from qlora_planner.spec.run import RunConfig
from tests.launch.conftest import RUN, Home, Start, finished, same, tensors
from tests.launch.test_command_line import _WHEN_IMPORTED
from tests.profiles import toy_profile
from tests.wide import WIDE

STEPS, SAVED, KILLED = 4, 2, 3
OPTIONS = (
    "--device", "cpu", "--max-steps", str(STEPS), "--save-steps", str(SAVED), "--learning-rate", "5e-3", "--model",
)  # fmt: skip
DDP = RUN.with_(parallel="ddp", quant_storage="uint8", load_on="gpu")
FSDP2 = RUN.with_(
    parallel="fsdp2", quant_storage="bfloat16", load_on="cpu", reshard_after_forward=True,
    optimizer="adamw_torch_fused",
)  # fmt: skip
# The second rank is ended by the kernel, as one is that takes the last of the host's memory.
KILLED_RANK = (
    _WHEN_IMPORTED
    + f"""
    def patch(trainer):
        import os, signal
        inner = trainer.training_step
        def step(self, *rest, **more):
            if os.environ["RANK"] == "1" and self.state.global_step == {KILLED}:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(self, *rest, **more)
        trainer.training_step = step
"""
)


@dataclass(frozen=True)
class Ended:
    """A run on two ranks: its folder, exit code, summary and what it said."""

    folder: Path
    code: int
    summary: dict[str, Any]
    said: str


def plan_of_two(home: Home, name: str, run: RunConfig) -> Path:
    """A plan of two cards beside the model."""
    path = home.path / f"{name}-two.yaml"
    gpu = {"name": "24GB", "label": "24 GB card", "memory_bytes": 24564 << 20, "count": 2, "nodes": 1}
    document = {"schema": "qlora-plan/plan/1", "model": {"id": "llama"}, "gpu": gpu, "run": run.to_dict()}
    path.write_text(json.dumps(document))
    return path


def ended(
    home: Home, start: Start, name: str, run: RunConfig, *more: str, hook: str | None = None, **environment: str
) -> Ended:
    """Run a plan of two ranks to its end."""
    plan = plan_of_two(home, name, run)
    given = (
        plan.name,
        "--data",
        home.data.name,
        "--output",
        f"{name}-two",
        "--json",
        *OPTIONS,
        home.model("llama").name,
    )
    code, out, err = finished(start(*given, *more, hook=hook, **environment))
    return Ended(home.path / f"{name}-two", code, json.loads(out) if out else {}, err)


@pytest.fixture(scope="module")
def killed(home: Home, start: Start) -> Ended:
    """A sharded run whose second rank is killed after a checkpoint."""
    return ended(home, start, "fsdp2", FSDP2, hook=KILLED_RANK)


@pytest.fixture(scope="module")
def sharded(home: Home, start: Start, killed: Ended) -> Ended:
    """The same, gone on with to its end."""
    return ended(home, start, "fsdp2", FSDP2, "--resume")


@pytest.fixture(scope="module")
def copied(home: Home, start: Start) -> Ended:
    """A run of which every rank holds all."""
    return ended(home, start, "ddp", DDP)


def test_a_killed_rank_ends_the_run_with_one_line_that_names_it(killed: Ended) -> None:
    assert killed.code == 4 and killed.summary["outcome"] == "killed"
    assert killed.summary["message"] == (
        "rank 1 of 2 was ended by SIGKILL (the system ends processes so when host memory runs out); the other was ended"
        " with it"
    )
    assert "Traceback" not in killed.said
    newest, *_ = checkpoints(killed.folder / "checkpoints")
    assert newest.name == f"checkpoint-{SAVED}" and fault_of(newest) is None


def test_a_sharded_4_bit_model_is_trained_on_from_its_checkpoint(sharded: Ended) -> None:
    assert sharded.code == 0, sharded.said
    assert f"going on from checkpoint-{SAVED}" in sharded.said
    assert sharded.summary["steps"] == STEPS
    assert sharded.summary["loss"]["last"] < sharded.summary["loss"]["first"]


@pytest.mark.skipif(not WIDE, reason="one run more on two ranks; the weekly job takes it")
@pytest.mark.parametrize(("name", "run"), [("fsdp2", FSDP2), ("ddp", DDP)])
def test_a_run_that_was_gone_on_with_ends_as_one_that_nobody_ended(
    name: str, run: RunConfig, home: Home, start: Start
) -> None:
    again, whole = f"{name}-again", f"{name}-whole"
    assert ended(home, start, again, run, hook=KILLED_RANK).code == 4
    resumed = ended(home, start, again, run, "--resume")
    uninterrupted = ended(home, start, whole, run)
    assert resumed.code == uninterrupted.code == 0
    assert same(resumed.folder / "adapter", uninterrupted.folder / "adapter")


def test_each_rank_holds_the_bytes_that_the_plan_counts(sharded: Ended, copied: Ended, home: Home) -> None:
    profile = toy_profile(json.loads((home.model("llama") / "config.json").read_text()))
    resolution = resolve(profile, FSDP2)
    placement = Placement(profile, resolution.run)
    model = ShardedModel(placement, resolution.trainer, Sharding(world=2))
    shards = sum(tensor.shard for unit in model.units for tensor in unit.tensors)
    assert [rank["parameter_bytes"] for rank in sharded.summary["memory"]["ranks"]] == [shards, shards]
    whole = sum(tensor.whole for unit in model.units for tensor in unit.tensors)
    assert [rank["parameter_bytes"] for rank in copied.summary["memory"]["ranks"]] == [whole, whole]


def test_the_saved_adapter_is_the_gathered_one_to_the_bit_and_loads(sharded: Ended, home: Home) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    adapter, gathered = sharded.folder / "adapter", sharded.folder / "checkpoints" / f"checkpoint-{STEPS}"
    assert same(adapter, gathered)  # accelerate gathers what is in its checkpoints
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(home.model("llama")), str(adapter))
    loaded = peft.get_peft_model_state_dict(model)
    saved = tensors(adapter)
    assert loaded.keys() == saved.keys()
    assert all((loaded[name] == saved[name].to(loaded[name].dtype)).all() for name in saved)
    assert any(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)


def test_every_rank_takes_part_where_each_holds_all(copied: Ended) -> None:
    assert copied.code == 0, copied.said
    assert copied.summary["loss"]["last"] < copied.summary["loss"]["first"]
    assert copied.summary["epochs"] == pytest.approx(STEPS * 2 * RUN.batch_size / 64)  # both take rows of their own
    assert [rank["rank"] for rank in copied.summary["memory"]["ranks"]] == [0, 1]
    newest, *_ = checkpoints(copied.folder / "checkpoints")
    assert same(copied.folder / "adapter", newest) and fault_of(newest) is None
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {path.name for path in newest.iterdir()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quant_storage": "float16"}, "trains on garbage without a word; use --quant-storage bfloat16"),
        ({"optimizer": "paged_adamw_8bit"}, "its kernels take no DTensor; use --optimizer adamw_torch_fused"),
        ({"parallel": "fsdp1", "quant_storage": "uint8"}, "FSDP1 cannot flatten weights stored as uint8"),
    ],
)
def test_what_breaks_or_misleads_on_several_cards_never_starts(
    changes: dict[str, Any], says: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.path)
    plan = plan_of_two(home, "refused", FSDP2.with_(**changes))
    given = ["train", plan.name, "--data", home.data.name, "--output", "refused", *OPTIONS, home.model("llama").name]
    result = click.testing.CliRunner().invoke(cli, given, prog_name="qlora-plan")
    assert result.exit_code in (1, 2) and says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not (home.path / "refused").exists()
