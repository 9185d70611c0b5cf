"""explain-oom as a command: the screen, the JSON, a plan beside it, and one line for what is no failure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_planner import RunConfig, Session, estimate, load_gpu, load_model
from qlora_planner.diagnose.oom.against_plan import asked_for, tensors_of
from qlora_planner.units import GIB, MIB
from tests.cli.conftest import Invoke, Process

# Llama 3.1 8B at 4,096 tokens: logits in float32 are 4,096 x 128,256 x 4 bytes, 1.96 GiB.
TEXT = (
    'Traceback (most recent call last):\n  File "/x/transformers/loss/loss_utils.py", line 47, in ForCausalLMLoss\n'
    "    logits = logits.float()\n"
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 23.52 GiB of"
    " which 1.02 GiB is free. Process 4711 has {others} GiB memory in use. Including non-PyTorch memory, this process"
    " has {process} GiB memory in use. Of the allocated memory {held} GiB is allocated by PyTorch, and 1.05 GiB is"
    " reserved by PyTorch but unallocated.\n"
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "train.log"
    path.write_text(TEXT.format(others="12.10", process="10.30", held="8.80"))
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    found = estimate(load_model("llama-3.1-8b"), RunConfig(seq_len=4096), load_gpu("rtx-4090"))
    document = {
        "schema": "qlora-plan/plan/1", "model": {"id": "llama-3.1-8b"}, "gpu": {"name": "rtx-4090"},
        "run": found.run.to_dict(), "estimate": found.to_dict(),
    }  # fmt: skip
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    return path


def test_the_screen(invoke: Invoke, log: Path) -> None:
    result = invoke("explain-oom", str(log))
    assert (result.exit_code, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    assert text.startswith("card 0 ran out of memory, while computing the loss")
    assert "1.96 GiB, 1.02 GiB was free of 23.52 GiB" in text
    assert "12.20 GiB of the card (process 4711: 12.10 GiB)" in text
    assert "1.05 GiB was reserved and idle, in pieces: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in text


def test_json_from_stdin(process: Process, log: Path) -> None:
    import subprocess

    done = subprocess.run(
        (sys.executable, "-m", "qlora_planner", "explain-oom", "-", "--json"),
        input=log.read_bytes(), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "qlora-plan/oom/1"
    assert (document["phase"], document["kind"], document["plan"]) == ("loss", "torch", None)
    assert document["others_bytes"] == pytest.approx(12.2 * GIB, abs=64)


def test_with_its_plan_it_names_the_tensor_and_a_change_that_fits(invoke: Invoke, log: Path, plan: Path) -> None:
    result = invoke("explain-oom", str(log), "--plan", str(plan), "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    beside: dict[str, Any] = json.loads(result.stdout)["plan"]
    assert "the logits in float32: batch 1 x 4,096 tokens x 128,256 x 4 bytes" in beside["tensors"]
    assert beside["tried_bytes"] == pytest.approx((8.80 + 1.96) * GIB, abs=64)
    assert beside["excess_bytes"] == beside["tried_bytes"] - beside["planned_bytes"]
    first = beside["fixes"][0]
    # The change leaves room for others and for what was more than planned.
    assert first["floor_bytes"] < 23.52 * GIB - 12.20 * GIB - beside["excess_bytes"]
    assert first["verdict"] == "fits"


def test_within_the_plan_it_blames_the_room(invoke: Invoke, log: Path, plan: Path) -> None:
    log.write_text(TEXT.format(others="17.00", process="5.40", held="4.00"))
    result = invoke("explain-oom", str(log), "--plan", str(plan), "--quiet")
    text = " ".join(result.stdout.split())
    assert "tensors were within it: 5.96 GiB of" in text
    assert "nvidia-smi shows whose" in text


@pytest.mark.parametrize(
    ("options", "planned_mib"), [({"parallel": "ddp"}, 6867), ({"parallel": "fsdp2", "load_on": "gpu"}, 8229)], ids=str
)
def test_a_plan_for_several_cards_is_compared_by_what_one_of_them_holds(
    log: Path, tmp_path: Path, options: dict[str, Any], planned_mib: int
) -> None:
    """An 8B on two cards, at wrapping, measured: 6,866.6 under DDP, 8,228.8 under FSDP2."""
    path = tmp_path / "plan.json"
    run = RunConfig(optimizer="adamw_torch_fused" if options["parallel"] == "fsdp2" else "paged_adamw_8bit", **options)
    gpu = {"name": "rtx-4090", "count": 2}
    document = {"schema": "qlora-plan/plan/1", "model": {"id": "llama-3.1-8b"}, "gpu": gpu, "run": run.to_dict()}
    path.write_text(json.dumps(document))
    answer = Session(stored_only=True).explain_oom(str(log), plan=str(path))
    beside: dict[str, Any] = answer.to_dict()["plan"]
    assert beside["planned_bytes"] / MIB == pytest.approx(planned_mib, rel=0.002)
    assert (beside["parallel"], beside["cards"]) == (options["parallel"], 2)
    label = {"ddp": "DDP", "fsdp2": "FSDP2"}[options["parallel"]]
    assert f"2 cards, {label}; the plan's figures are one card's share" in " ".join(str(answer).split())


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (4096 * 128256 * 4, "the logits in float32"),
        (4096 * 14336 * 2, "a feed-forward activation in 16 bits"),
        (32 * 4096 * 4096 * 2, "attention scores in 16 bits"),
    ],
)
def test_the_tensor_of_a_size(size: int, words: str) -> None:
    found = estimate(load_model("llama-3.1-8b"), RunConfig(seq_len=4096), load_gpu("rtx-4090"))
    dims = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    assert any(one.startswith(words) for one in tensors_of(asked_for(size), found, dims))
    assert list(tensors_of(20 * MIB, found, dims)) == []
    assert list(tensors_of(None, found, dims)) == []
    assert list(tensors_of(777 * MIB, found, dims)) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [("all is well\n", "looked for torch's"), ('{"segments": 3}', "holds no segments"), ("", "looked for torch's")],
)
def test_what_is_no_failure_is_one_line(invoke: Invoke, tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "x.log"
    path.write_text(content)
    result = invoke("explain-oom", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr
    assert invoke("explain-oom", str(tmp_path / "nowhere")).exit_code == 2
    assert invoke("explain-oom", str(tmp_path)).exit_code == 2


def test_in_a_container_the_plan_is_judged_on_an_otherwise_empty_card(
    invoke: Invoke, log: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_planner.session.check import Estimates

    monkeypatch.setattr(Estimates, "full", Estimates.quick)  # a trace would say the same of the others, later
    log.write_text(
        "CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 23.52 GiB"
        " of which 0.50 GiB is free. Process 31877 has 23.01 GiB memory in use. Of the allocated memory 3.00 GiB is"
        " allocated by PyTorch, and 19.70 GiB is reserved by PyTorch but unallocated.\n"
    )
    document = json.loads(invoke("explain-oom", str(log), "--plan", str(plan), "--json", "--quiet").stdout)
    assert (document["others_bytes"], document["own_pid"]) == (0, 31877)
    assert document["plan"]["verdict"] == "fits"
    assert not any("--reserve" in one for one in document["advice"])


@pytest.mark.parametrize("line", ["MPS backend out of memory. Tried to allocate 501.00 MB on private pool.", "Killed"])
def test_a_plan_says_nothing_of_another_machines_memory(invoke: Invoke, log: Path, plan: Path, line: str) -> None:
    log.write_text(f"{line}\n")
    result = invoke("explain-oom", str(log), "--plan", str(plan))
    assert result.exit_code == 0
    assert "a plan is for a CUDA card" in result.stderr
    assert "verdict" not in result.stdout


def test_a_log_with_another_error_is_sent_to_the_doctor(invoke: Invoke, log: Path) -> None:
    log.write_text("RuntimeError: CUDA error: device-side assert triggered\n")
    result = invoke("explain-oom", str(log))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no out-of-memory failure" in result.stderr
    assert "a token id beyond the vocabulary" in result.stderr


def test_a_fault_of_shapes_is_none_of_the_plan(
    invoke: Invoke, log: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_planner.session.check import Estimates

    monkeypatch.setattr(Estimates, "full", Estimates.quick)
    log.write_text(
        "CUDA out of memory. Tried to allocate 3145728.00 GiB. GPU 0 has a total capacity of 23.52 GiB of which 0.50"
        " GiB is free. Of the allocated memory 3.00 GiB is allocated by PyTorch, and 0.10 GiB is reserved by PyTorch"
        " but unallocated.\n"
    )
    text = " ".join(invoke("explain-oom", str(log), "--plan", str(plan), "--quiet").stdout.split())
    assert "a fault of shapes" in text
    assert "no tensor of the plan's run" in text
    assert "no plan has room for such a request" in text
    assert "needs at least" not in text
