"""FSDP1 and DeepSpeed through `train`, on two processes of the CPU: what they save is whole, and is gone on with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import click.testing
import pytest

from qlora_planner.cli.main import cli
from qlora_planner.runs.checkpoints import fault_of
from qlora_planner.spec.run import RunConfig
from tests.launch.conftest import RUN, Home, Start, same, tensors
from tests.launch.test_command_line import _WHEN_IMPORTED
from tests.launch.test_ranks import FSDP2, KILLED_RANK, OPTIONS, SAVED, STEPS, Ended, ended, plan_of_two
from tests.wide import WIDE

FSDP1 = FSDP2.with_(parallel="fsdp1", reshard_after_forward=None)
ZERO2 = RUN.with_(parallel="zero2", quant_storage="uint8", load_on="gpu", optimizer="adamw_torch_fused")
ZERO3 = ZERO2.with_(parallel="zero3")
# DeepSpeed would compile its own shared memory for ranks of a CPU, which need none.
UNCOMPILED = (
    _WHEN_IMPORTED.replace("transformers.trainer", "deepspeed.comm.torch")
    .replace("patch(module.Trainer)", "module.build_shm_op = lambda: None")
    .replace("Finder()", "Compiled()")
    .replace("class Finder", "class Compiled")
)
deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
wide = pytest.mark.skipif(not WIDE, reason="one run more on two ranks; the weekly job takes it")


def on_engine(home: Home, start: Start, name: str, run: RunConfig, *more: str, hook: str = "") -> Ended:
    """Run a plan of two ranks to its end, with DeepSpeed, where it is asked for, on the CPU."""
    own = {"DS_ACCELERATOR": "cpu"} if run.parallel in ("zero2", "zero3") else {}
    return ended(home, start, name, run, *more, hook=hook + (UNCOMPILED if own else ""), **own)


@pytest.fixture(
    scope="module",
    params=[
        ("fsdp1", FSDP1),
        pytest.param(("zero2", ZERO2), marks=deepspeed),
        pytest.param(("zero3", ZERO3), marks=deepspeed),
    ],
    ids=lambda param: param[0],
)
def engine(request: pytest.FixtureRequest) -> tuple[str, RunConfig]:
    """A name and a run."""
    chosen: tuple[str, RunConfig] = request.param
    return chosen


@pytest.fixture(scope="module")
def killed(home: Home, start: Start, engine: tuple[str, RunConfig]) -> Ended:
    """A run whose second rank is killed after a checkpoint."""
    return on_engine(home, start, *engine, hook=KILLED_RANK)


@pytest.fixture(scope="module")
def resumed(home: Home, start: Start, engine: tuple[str, RunConfig], killed: Ended) -> Ended:
    """The same, gone on with to its end."""
    assert killed.code == 4
    return on_engine(home, start, *engine, "--resume")


def test_a_rank_that_is_killed_ends_all_with_one_line(killed: Ended) -> None:
    assert killed.code == 4 and "Traceback" not in killed.said
    assert str(killed.summary["message"]).startswith("rank 1 of 2 was ended by SIGKILL")


def test_the_run_is_gone_on_with_from_its_checkpoint(resumed: Ended) -> None:
    assert resumed.code == 0, resumed.said
    assert f"going on from checkpoint-{SAVED}" in resumed.said and resumed.summary["steps"] == STEPS
    assert resumed.summary["loss"]["last"] < resumed.summary["loss"]["first"]


def test_the_adapter_is_whole_as_its_checkpoint_is_and_loads(resumed: Ended, home: Home) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    adapter, newest = resumed.folder / "adapter", resumed.folder / "checkpoints" / f"checkpoint-{STEPS}"
    assert same(adapter, newest) and fault_of(newest) is None
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(home.model("llama")), str(adapter))
    loaded, saved = peft.get_peft_model_state_dict(model), tensors(adapter)
    assert loaded.keys() == saved.keys() and len(saved) > 0
    assert all((loaded[name] == saved[name].to(loaded[name].dtype)).all() for name in saved)
    assert any(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)


def test_each_rank_counts_what_it_holds(resumed: Ended) -> None:
    first, second = (rank["parameter_bytes"] for rank in resumed.summary["memory"]["ranks"])
    assert first == second > 0


@wide
def test_it_ends_as_a_run_that_nobody_ended(
    resumed: Ended, home: Home, start: Start, engine: tuple[str, RunConfig]
) -> None:
    whole = on_engine(home, start, f"{engine[0]}-whole", engine[1])
    assert whole.code == 0 and same(whole.folder / "adapter", resumed.folder / "adapter")


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
@pytest.mark.parametrize("run", [ZERO2, ZERO3], ids=lambda run: run.parallel)
def test_without_deepspeed_one_line_says_what_to_install(
    run: RunConfig, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.path)
    plan = plan_of_two(home, "without", run)
    given = ["train", plan.name, "--data", home.data.name, "--output", "without", *OPTIONS, home.model("llama").name]
    result: Any = click.testing.CliRunner().invoke(cli, given, prog_name="qlora-plan")
    assert result.exit_code == 3 and len(result.stderr.strip().splitlines()) == 1
    assert "missing here: deepspeed; " in result.stderr and "deepspeed" in result.stderr.partition("pip install")[2]
