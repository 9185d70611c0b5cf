"""Plans that fit, run, and are not timid: under the limit of smaller cards, the largest run said to fit, and the first
one said not to.

usage:
  caps.py cases OUT.jsonl [--only TEXT] [--jobs 1]   push each run to its edges (no GPU; a minute for each)
  campaign.py run OUT.jsonl MEASURED.jsonl           measure them on the card
  caps.py table OUT.jsonl MEASURED.jsonl             what came of it, as Markdown

A small card is torch's per-process limit on a large one: what the small card leaves after the context. A notch is 64
tokens of sequence or of prompt, or one more in the batch. The run at the edge must not run out of memory, and should
use the card; the first notch beyond `does-not-fit` should fail.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

NOTCH = {"seq_len": 64, "prompt_len": 64, "batch_size": 1}
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One model under one card's limit, and the option that is pushed."""

    card: str
    model_id: str
    options: dict[str, Any] = field(default_factory=dict)
    knob: str = "seq_len"

    @property
    def name(self) -> str:
        """Unique in the list."""
        words = "".join(
            f"-{value}" for key, value in self.options.items() if key in ("trainer", "method", "alloc_conf")
        )
        return f"cap-{self.card}-{self.model_id.rpartition('/')[2]}{words}-{self.knob}"


HF = {"trainer": "hf-trainer"}
PAIRS = {"trainer": "trl-dpo", "upcast": False}
ONLINE = {"trainer": "trl-grpo", "upcast": False, "batch_size": 8, "num_generations": 8, "completion_len": 128}
ODDS = {"trainer": "trl-orpo"}
SEEN = {"trainer": "hf-trainer", "images": 1}
EDGES = (
    Edge(card="8GB", model_id="Qwen/Qwen2.5-7B"),
    Edge(card="8GB", model_id="meta-llama/Llama-3.2-3B", options=HF),
    Edge(card="8GB", model_id="microsoft/Phi-3-mini-4k-instruct"),
    Edge(card="12GB", model_id="Qwen/Qwen2.5-14B"),
    Edge(card="12GB", model_id="meta-llama/Llama-3.1-8B", options=HF),
    Edge(card="12GB", model_id="mistralai/Mistral-Nemo-Base-2407"),
    Edge(card="16GB", model_id="Qwen/Qwen2.5-14B"),
    Edge(card="16GB", model_id="google/gemma-2-9b", options={"seq_len": 512, "padding": False}, knob="batch_size"),
    Edge(card="16GB", model_id="microsoft/phi-4"),
    Edge(card="24GB", model_id="huggyllama/llama-30b"),
    Edge(card="24GB", model_id="mistralai/Mistral-Small-24B-Base-2501"),
    Edge(card="24GB", model_id="google/gemma-2-27b", options={"alloc_conf": "expandable_segments:True"}),
    Edge(card="32GB", model_id="Qwen/Qwen2.5-32B"),
    Edge(card="32GB", model_id="google/gemma-2-27b"),
    Edge(card="32GB", model_id="huggyllama/llama-30b", options={"seq_len": 512, "padding": False}, knob="batch_size"),
    Edge(card="40GB", model_id="codellama/CodeLlama-34b-hf"),
    Edge(card="40GB", model_id="CohereForAI/c4ai-command-r-v01"),
    Edge(card="40GB", model_id="Qwen/Qwen3-32B", options=HF),
    Edge(card="48GB", model_id="huggyllama/llama-65b"),
    Edge(card="48GB", model_id="meta-llama/Llama-3.1-70B"),
    Edge(card="48GB", model_id="Qwen/Qwen2.5-72B"),
    Edge(card="80GB", model_id="Qwen/Qwen3-30B-A3B"),
    Edge(card="80GB", model_id="meta-llama/Llama-3.1-70B", options=HF),
    Edge(card="80GB", model_id="Qwen/Qwen2.5-32B", options={"method": "lora"}),
    Edge(card="16GB", model_id="meta-llama/Llama-3.1-8B", options=PAIRS),
    Edge(card="24GB", model_id="meta-llama/Llama-3.1-8B", options=PAIRS),
    Edge(card="16GB", model_id="meta-llama/Llama-3.1-8B", options=ONLINE, knob="prompt_len"),
    Edge(card="24GB", model_id="meta-llama/Llama-3.1-8B", options=ONLINE, knob="prompt_len"),
    Edge(card="16GB", model_id="meta-llama/Llama-3.2-1B", options={**ODDS, "batch_size": 4}),
    Edge(card="16GB", model_id="meta-llama/Llama-3.1-8B", options=ODDS),
    Edge(card="24GB", model_id="meta-llama/Llama-3.1-8B", options=ODDS),
    Edge(card="24GB", model_id="Qwen/Qwen2.5-7B", options={**ODDS, "batch_size": 2}),
    Edge(
        card="16GB", model_id="Qwen/Qwen2.5-VL-3B-Instruct", options={**SEEN, "image_size": "504x504", "batch_size": 2}
    ),
    Edge(card="24GB", model_id="Qwen/Qwen2.5-VL-3B-Instruct", options={**SEEN, "image_size": "784x784"}),
    Edge(card="24GB", model_id="llava-hf/llava-v1.6-mistral-7b-hf", options={**SEEN, "image_size": "1024x768"}),
)


def last_below(over: Callable[[int], float], first: int) -> int:
    """The last step from 1 on at which `over` is at most 0, found by secants inside a bracket; 0 when there is none.

    `over` rises with the step and is nearly linear in it.
    """
    low, over_low = 1, over(1)
    if over_low > 0:
        return 0
    high = max(first, 2)
    over_high = over(high)
    while over_high <= 0:
        low, over_low = high, over_high
        high *= 2
        over_high = over(high)
    looks = 0
    while high - low > 1:
        looks += 1
        guess = low + round((high - low) * -over_low / (over_high - over_low)) if over_high > over_low else low
        # Secants may creep along one side of the bracket: halve it now and then.
        guess = (low + high) // 2 if looks % 3 == 0 else guess
        step = min(max(guess, low + 1), high - 1)
        value = over(step)
        if value <= 0:
            low, over_low = step, value
            if step + 1 < high and (following := over(step + 1)) > 0:
                high, over_high = step + 1, following
        else:
            high, over_high = step, value
    return low


def push(edge: Edge) -> list[dict[str, Any]]:
    """Two cases, in the campaign's form: the largest run said to fit, and the first said not to."""
    from qlora_planner import session
    from qlora_planner.catalog.gpus import usable_bytes
    from qlora_planner.memory.budget import context_of
    from qlora_planner.memory.distribution import distribution as spread_of
    from qlora_planner.memory.estimate import estimate
    from qlora_planner.session.towers import with_tower
    from qlora_planner.sources.configs import read_config
    from qlora_planner.spec.risk import FITS_AT_MOST, TIGHT_AT_MOST
    from qlora_planner.spec.run import RunConfig

    gpu, distribution = session.load_gpu("h200"), session.calibration()
    context = context_of(gpu, distribution)
    usable = usable_bytes(session.load_gpu(edge.card))[0]
    cap_bytes = usable - context.total_bytes
    profile = with_tower(session.load_model(edge.model_id), RunConfig(**edge.options))
    notch = NOTCH[edge.knob]
    found: dict[int, Any] = {}

    def answer(step: int) -> Any:
        if step not in found:
            run = RunConfig(**{**edge.options, edge.knob: step * notch})
            tape = session.tape_for(profile, run, gpu)
            found[step] = estimate(profile, run, gpu, cap_bytes=cap_bytes, tape=tape, calibration=distribution)
            print(f"{edge.name} {step * notch}: {found[step].fit.reasons[0]} ({found[step].method})", flush=True)
        return found[step]

    def over(most: float) -> Callable[[int], float]:
        """How far the floor, at the residual that is exceeded with the chance `most`, is above what is usable."""

        def measure(step: int) -> float:
            one = answer(step)
            if one.fit.probability_oom is None:  # too short for its image
                return -1.0
            beside = context.first_tensor_bytes + context.kernels_bytes
            law = spread_of(one.floor_bytes, one.method, context, distribution).law
            gap = (one.floor_bytes - beside) * (1 + law.quantile(1 - most)) + beside - usable
            return min(gap, -1.0) if one.fit.probability_oom <= most else max(gap, 1.0)

        return measure

    fits = last_below(over(FITS_AT_MOST), 4 if edge.knob == "batch_size" else 32)
    if not fits:
        print(f"{edge.name}: not even one notch fits", flush=True)
        return []
    beyond = last_below(over(TIGHT_AT_MOST), fits + 1) + 1
    config = read_config(ROOT / "profiles/configs" / (edge.model_id.replace("/", "__") + ".json")).config
    if profile.tower is not None:
        from qlora_planner.profiling.whole import whole_config

        config = whole_config(config, edge.model_id)
    return [
        {
            "case": f"{edge.name}-{kind}",
            "needs": [],
            "expected_bytes": answer(step).peak.device_bytes,
            "model_id": edge.model_id,
            "config": dict(config),
            "config_sha256": profile.config_sha256,
            "run": answer(step).run.to_dict(),
            "role": None,
            "cap_bytes": cap_bytes,
            "edge": {
                "card": edge.card, "kind": kind, "knob": edge.knob, "usable_bytes": usable,
                "chance": answer(step).fit.probability_oom, "footing": answer(step).method,
            },
        }
        for kind, step in (("fits", fits), ("beyond", beyond))
    ]  # fmt: skip


def make_cases(out: Path, only: str, jobs: int) -> int:
    """Push every edge and write its two cases as soon as they are known; edges that OUT.jsonl has are passed over."""
    known = (
        {json.loads(line)["case"] for line in out.read_text(encoding="utf-8").splitlines()} if out.exists() else set()
    )
    edges = [edge for edge in EDGES if only in edge.name and f"{edge.name}-fits" not in known]
    with ProcessPoolExecutor(jobs) as pool:
        for cases in pool.map(push, edges):
            with out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(case, separators=(",", ":")) + "\n" for case in cases)
    return 0


def table(cases: Path, measured: Path) -> int:
    """One row for each edge: how the run at it went, how much of the card it used, and whether the next one failed."""
    from benchmarks.campaign import identity

    rows = [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines()]
    seen = {identity(row["model"], row["config_sha256"], row["run"], row["cap_bytes"]): row for row in rows}
    print("| card | model | trainer | largest run that fits | outcome | device peak / usable | first that does not | |")
    print("|---|---|---|---|---|---|---|---|")
    listed = [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()]
    ran, used, failed, judged = [], [], [], 0
    for case in (case for case in listed if case["edge"]["kind"] == "fits"):
        other = next(one for one in listed if one["case"] == case["case"].removesuffix("fits") + "beyond")
        at, past = (
            seen.get(identity(one["model_id"], one["config_sha256"], one["run"], one["cap_bytes"]))
            for one in (case, other)
        )
        share = None
        if at is not None:
            ran.append(at["outcome"] == "ok")
            peak = at["nvml"]["process_peak_bytes"]
            if at["outcome"] == "ok" and peak is not None:
                share = peak / case["edge"]["usable_bytes"]
                used.append(share)
        if past is not None:
            judged += 1
            failed.append(past["outcome"] == "out-of-memory")
        cells = (
            case["edge"]["card"], case["model_id"], case["run"]["trainer"], _size(case), at["outcome"] if at else "-",
            "-" if share is None else f"{100 * share:.1f} %", _size(other), past["outcome"] if past else "-",
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    low = min(used, default=None)
    print(f"\n{sum(ran)} of {len(ran)} runs at the edge worked; {sum(failed)} of {judged} beyond it ran out of memory.")
    print(f"Least share of the card used: {'-' if low is None else f'{100 * low:.1f} %'}.")
    return 0


def _size(case: dict[str, Any]) -> str:
    return f"{case['run']['batch_size']} x {case['run']['seq_len']}"


def main() -> int:
    """The stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    cases = stages.add_parser("cases")
    cases.add_argument("out", type=Path)
    cases.add_argument("--only", default="")
    cases.add_argument("--jobs", type=int, default=1)
    shown = stages.add_parser("table")
    shown.add_argument("cases", type=Path)
    shown.add_argument("measured", type=Path)
    options = parser.parse_args()
    if options.stage == "cases":
        return make_cases(options.out, options.only, options.jobs)
    return table(options.cases, options.measured)


if __name__ == "__main__":
    sys.exit(main())
