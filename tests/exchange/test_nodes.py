"""What starts a run on several cards or nodes: read by the tools' own parsers, the same run as accelerate's config."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner.errors import InputError
from qlora_planner.exchange.export import NODES, export
from qlora_planner.exchange.scripts.nodes import environment
from qlora_planner.spec.run import RunConfig

RUN = RunConfig(
    quant="nf4", compute_dtype="bfloat16", trainer="trl-sft", parallel="fsdp2", quant_storage="bfloat16",
    load_on="cpu", optimizer="adamw_torch_fused", alloc_conf="expandable_segments:True",
)  # fmt: skip
DDP = RUN.with_(parallel="ddp", quant_storage="uint8", load_on="gpu")


def plan(run: RunConfig = RUN, *, name: str = "a100-80gb", count: int = 8, nodes: int = 2) -> dict[str, Any]:
    gpu = {"name": name, "label": name, "memory_bytes": 81920 << 20, "count": count, "nodes": nodes}
    return {"schema": "qlora-plan/plan/1", "model": {"id": "m/8b"}, "gpu": gpu, "run": run.to_dict()}


def checked_by_bash(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def read_by_torchrun(text: str) -> Any:
    """The command as torchrun's own parser reads it."""
    run = pytest.importorskip("torch.distributed.run")
    (command,) = re.findall(r"^.*\btorchrun (.*)$", re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE), re.MULTILINE)
    return run.get_args_parser().parse_args(shlex.split(command.replace("$(", "").replace(")", ""), comments=True))


@pytest.mark.parametrize("run", [RUN, RUN.with_(parallel="fsdp1"), DDP], ids=["fsdp2", "fsdp1", "ddp"])
def test_the_environment_is_what_accelerate_launch_makes_of_its_config(run: RunConfig, tmp_path: Path) -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = tmp_path / "accelerate.yaml"
    path.write_text(export("accelerate", plan(run, nodes=1)))
    given = ["--config_file", str(path), "--main_process_port", "0", "train.py"]
    args, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(given))
    theirs = prepare_multi_gpu_env(args)
    ours = environment(run.with_(alloc_conf=None))
    assert ours == {name: theirs.get(name) for name in ours}
    assert ("FSDP_STATE_DICT_TYPE" in ours) is ("ACCELERATE_USE_FSDP" in theirs) is (run.parallel != "ddp")


@pytest.mark.parametrize(("count", "nodes"), [(2, 1), (8, 2)])
@pytest.mark.parametrize("kind", NODES)
def test_every_way_starts_a_process_a_card(kind: str, count: int, nodes: int) -> None:
    text = export(kind, plan(count=count, nodes=nodes))
    script = text
    if kind == "skypilot":
        task = yaml.safe_load(text)
        assert set(task) <= {"name", "num_nodes", "resources", "workdir", "setup", "run", "envs"}
        assert task["num_nodes"] == nodes and task["resources"] == {"accelerators": f"A100-80GB:{count}"}
        script = task["run"]
        checked_by_bash(task["setup"])
    checked_by_bash(script)
    read = read_by_torchrun(script)
    assert (read.nnodes, read.nproc_per_node, read.training_script) == (str(nodes), str(count), "train.py")
    if nodes > 1:
        assert read.rdzv_backend == "c10d" and read.rdzv_endpoint.endswith(":29500")
    assert "export FSDP_STATE_DICT_TYPE=FULL_STATE_DICT" in script
    assert "export PYTORCH_ALLOC_CONF=expandable_segments:True" in script
    assert "--export trl=train.py" in text  # what the ranks run is named


@pytest.mark.parametrize(("set_already", "threads"), [("", "4"), ("export OMP_NUM_THREADS=3", "3")])
def test_ranks_that_quantise_on_the_host_share_its_cores(set_already: str, threads: str) -> None:
    (line,) = re.findall("^export OMP_NUM_THREADS=.*$", export("torchrun", plan()), re.MULTILINE)
    shell = f"unset OMP_NUM_THREADS; nproc() {{ echo 30; }}\n{set_already}\n{line}\necho $OMP_NUM_THREADS"
    done = subprocess.run(["bash", "-c", shell], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == threads  # of 30 cores and 8 ranks
    assert line in yaml.safe_load(export("skypilot", plan()))["run"]
    assert "cores of a node / 8" in export("accelerate", plan(nodes=1))


def test_ranks_that_load_on_their_cards_are_told_nothing_of_threads() -> None:
    for run in (DDP, RUN.with_(load_on="gpu"), RUN.with_(method="lora", quant="none", quant_storage=None)):
        assert all("OMP_NUM_THREADS" not in export(kind, plan(run)) for kind in ("torchrun", "slurm", "accelerate"))


def test_slurm_reads_every_directive_before_the_first_command() -> None:
    lines = export("slurm", plan()).splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    rows = [(number, re.fullmatch(r"#SBATCH --([a-z-]+)=(\S+)", line)) for number, line in enumerate(lines)]
    directives = {match[1]: match[2] for number, match in rows if match and number < first}
    assert len(directives) == sum(line.startswith("#SBATCH") for line in lines)
    assert (directives["nodes"], directives["ntasks-per-node"], directives["gpus-per-node"]) == ("2", "1", "8")


@pytest.mark.parametrize(
    ("kind", "document", "says"),
    [
        ("slurm", plan(RUN.with_(parallel=None, quant_storage=None, load_on=None)), "as --gpu 2xrtx-4090"),
        ("torchrun", plan(RUN.with_(parallel="zero3", load_on="gpu")), "--export accelerate writes its config"),
        ("skypilot", plan(name="24GB"), "is no card that clouds rent out"),
    ],
)
def test_what_cannot_be_started_so_is_said(kind: str, document: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        export(kind, document)
