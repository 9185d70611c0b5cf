"""What starts a run on the cards of one machine or of several: torchrun, an sbatch of Slurm, a task of SkyPilot.

The ranks run the script of `--export trl`, which names the strategy nowhere: accelerate reads it from the environment.
What `accelerate launch` would put there from its config is written out, as accelerate 1.15 names it
(`utils/launch.py: prepare_multi_gpu_env`), so that torchrun starts the very same run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.catalog.parallel import DDP, FSDP1, FSDP2, strategy_row
from qlora_planner.errors import InputError
from qlora_planner.exchange.scripts import accelerate, training
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain, quoted
from qlora_planner.train.options import ALLOCATOR_VARIABLES

PORT = 29500
SCRIPT = "train.py"
_STARTED = (DDP, FSDP1, FSDP2)
# What SkyPilot calls the cards that clouds rent out.
_SKY = {
    "a10": "A10", "a10g": "A10G", "a100-40gb": "A100", "a100-80gb": "A100-80GB", "a100-80gb-pcie": "A100-80GB",
    "b200": "B200", "gh200": "GH200", "h100": "H100", "h100-pcie": "H100", "h200": "H200", "l4": "L4", "l40": "L40",
    "l40s": "L40S", "p100": "P100", "rtx-3090": "RTX3090", "rtx-4090": "RTX4090", "rtx-6000-ada": "RTX6000-Ada",
    "rtx-a5000": "RTXA5000", "rtx-a6000": "RTXA6000", "t4": "T4", "v100-16gb": "V100", "v100-32gb": "V100-32GB",
}  # fmt: skip


@record
class Cards:
    """What a run is started on: `count` cards called `name` in each of `nodes`."""

    name: str
    count: int = 1
    nodes: int = 1

    @classmethod
    def of(cls, gpu: Mapping[str, Any]) -> Cards:
        """Those that a plan names."""
        count, nodes = (number if isinstance(number := gpu.get(key), int) else 1 for key in ("count", "nodes"))
        return cls(name=str(gpu.get("name")), count=count, nodes=nodes)


def environment(run: RunConfig) -> dict[str, str]:
    """Variables that a run's ranks read their strategy from."""
    config = accelerate.config(run)
    named = {"ACCELERATE_MIXED_PRECISION": str(config["mixed_precision"])}
    if run.parallel in (FSDP1, FSDP2):
        named["ACCELERATE_USE_FSDP"] = "true"
        named |= {name.upper(): _word(value) for name, value in config["fsdp_config"].items()}
    if run.alloc_conf is not None:
        named |= dict.fromkeys(ALLOCATOR_VARIABLES, run.alloc_conf)
    return named


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def torchrun(run: RunConfig, heading: Sequence[str], cards: Cards) -> str:
    """A script for every node. Raises InputError for one card, and a strategy that torchrun cannot be told."""
    _check("torchrun", run)
    several = cards.nodes > 1
    says = [
        f"On each of {cards.nodes} nodes: HOST=ADDRESS-OF-ONE-OF-THEM bash torchrun.sh" if several
        else "bash torchrun.sh",
        *_beside(several),
        *(["The nodes find each other at HOST, which must be reachable from all on this port."] if several else []),
    ]  # fmt: skip
    lines = [*_opening(heading, says), *_exports(run, cards)]
    if several:
        lines.append(': "${HOST:?name the address of one of the nodes}"')
    return _text([*lines, "", _launch(cards, host='"$HOST"')])


def slurm(run: RunConfig, heading: Sequence[str], cards: Cards) -> str:
    """A batch script. Raises as `torchrun` does."""
    _check("slurm", run)
    directives = [
        "job-name=qlora",
        f"nodes={cards.nodes}",
        "ntasks-per-node=1",  # one torchrun a node, which starts a process a card
        f"gpus-per-node={cards.count}",
        f"cpus-per-task={8 * cards.count}",
        "time=24:00:00",
        "output=%x-%j.log",
    ]
    says = [
        "sbatch slurm.sh",
        *_beside(several=cards.nodes > 1),
        "One task a node: srun starts torchrun there, and torchrun a process a card. Partition, account, time and cores"
        " are those of your cluster.",
        f"Slurm hands out {cards.count} cards of a node; name their kind as --gpus-per-node=KIND:{cards.count} where it"
        " has several.",
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH --{directive}" for directive in directives)]
    lines += [*_opening(heading, says)[1:], *_exports(run, cards)]
    lines += [
        "# Ranks meet at the first node of the job.",
        'HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "",
        f"srun --kill-on-bad-exit=1 {_launch(cards, host='$HOST', run_id='$SLURM_JOB_ID', always=True)}",
    ]
    return _text(lines)


def skypilot(run: RunConfig, heading: Sequence[str], cards: Cards) -> str:
    """A task. Raises as `torchrun` does, and InputError for a card that SkyPilot has no name for."""
    import yaml

    _check("skypilot", run)
    card = _SKY.get(cards.name)
    if card is None:
        raise InputError(
            f"--export skypilot: {quoted(cards.name)} is no card that clouds rent out; plan for one of"
            f" {', '.join(sorted(_SKY))}, as --gpu 2xl4"
        )
    start = [f"export {name}={shlex.quote(value)}" for name, value in environment(run).items()] + _threads(run, cards)
    host = '"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"'
    start.append(_launch(cards, host=host, run_id='"$SKYPILOT_TASK_ID"', always=True))
    task = {
        "name": "qlora",
        "num_nodes": cards.nodes,
        "resources": {"accelerators": f"{card}:{cards.count}"},
        "workdir": ".",
        "setup": f"pip install {' '.join(training.packages(run))}\n",
        "run": "\n".join(start) + "\n",
    }
    says = [
        "sky launch skypilot.yaml",
        *_beside(several=False),
        f"workdir is copied to every node: {SCRIPT} and its data are taken from this folder.",
    ]
    comments = [f"# {plain(line)}" for line in [*heading, *says]]
    return _text([*comments, _dumped(yaml, task)])


def _dumped(yaml: Any, task: Mapping[str, Any]) -> str:
    """YAML with texts of several lines as they are read."""

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(task, Dumper=Dumper, sort_keys=False, width=1 << 20)).rstrip("\n")


def _check(kind: str, run: RunConfig) -> None:
    if run.parallel is None:
        raise InputError(f"--export {kind}: starts runs on several cards; plan one, as --gpu 2xrtx-4090")
    if run.parallel not in _STARTED:
        raise InputError(
            f"--export {kind}: {strategy_row(run.parallel).label} needs more than variables; --export accelerate writes"
            " its config"
        )


def _beside(several: bool) -> list[str]:
    lines = [f"{SCRIPT} is --export trl={SCRIPT}: what the ranks run; the variables below tell it the strategy."]
    return [*lines, f"Every node needs {SCRIPT}, the model and the data at the same place."] if several else lines


def _opening(heading: Sequence[str], says: Sequence[str]) -> list[str]:
    return ["#!/bin/bash", *(f"# {plain(line)}" for line in [*heading, *says]), "set -euo pipefail", ""]


def _exports(run: RunConfig, cards: Cards) -> list[str]:
    lines = []
    if run.parallel in (FSDP1, FSDP2):
        lines.append("# The dtype of bnb_4bit_quant_storage in the script, or weights are garbage.")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment(run).items()]
    return [*lines, *_threads(run, cards)]


def _threads(run: RunConfig, cards: Cards) -> list[str]:
    """The host's cores for quantising there: torchrun leaves each rank a single thread."""
    if not accelerate.quantises_on_host(run):
        return []
    each = f"$(( ($(nproc) + {cards.count - 1}) / {cards.count} ))"
    return [
        "# Weights are quantised on the host, in as many threads as each rank is given; torchrun gives it one.",
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{each}}}"',
    ]


def _launch(cards: Cards, *, host: str, run_id: str = "qlora", always: bool = False) -> str:
    """torchrun's command: alone on one node, else with a rendezvous at `host`; `always` with one."""
    words = ["torchrun", f"--nnodes {cards.nodes}", f"--nproc_per_node {cards.count}"]
    if cards.nodes > 1 or always:
        words.append(f"--rdzv_id {run_id} --rdzv_backend c10d --rdzv_endpoint {host}:{PORT}")
    else:
        words.append("--standalone")
    return " ".join([*words, SCRIPT])


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


WRITERS = {"torchrun": torchrun, "slurm": slurm, "skypilot": skypilot}
