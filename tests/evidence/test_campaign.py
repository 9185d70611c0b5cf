"""The campaign's rules: roles, cut models, edges, and that a batch takes up where the last one ended."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import campaign, caps
from benchmarks.campaign_cases import asked_runs, cut, role_of
from qlora_planner.catalog import OPTIMIZERS
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).parents[2]
CASES = [json.loads(line) for line in (ROOT / "benchmarks/campaign-cases.jsonl").read_text().splitlines()]


# Types that came into the catalogue after the campaign ran.
NOT_MEASURED = {
    "glm_moe_dsa", "lfm2_moe", "apertus", "arcee", "cohere2", "gpt_bigcode", "gpt_neo", "granitemoe",
    "granitemoehybrid", "jamba", "olmo_hybrid", "olmoe", "recurrent_gemma",
}  # fmt: skip


def test_the_list_covers_what_it_must() -> None:
    runs = [RunConfig.from_dict(case["run"]) for case in CASES]
    assert len(CASES) >= 100
    assert {run.optimizer for run in runs} == set(OPTIMIZERS)
    assert {256, 32768} <= {run.seq_len for run in runs}
    assert {1, 16} <= {run.batch_size for run in runs}
    assert {8, 256} <= {run.rank for run in runs}
    assert {run.quant for run in runs} == {"nf4", "fp4", "int8", "none"}
    assert {run.trainer for run in runs} == {"trl-sft", "hf-trainer", "loop"}
    assert {run.attention for run in runs} == {"sdpa", "eager", "flash_attention_2"}
    for flag in ("liger", "activation_offloading", "packing", "padding", "dora", "use_reentrant"):
        assert {True, False} <= {getattr(run, flag) for run in runs}, flag
    families = json.loads((ROOT / "profiles/models.index.json").read_text())["models"]
    types = {row["family"] if "family" in row else row["model_type"] for row in families}
    listed = {case["case"].removeprefix("family-") for case in CASES if case["case"].startswith("family-")}
    assert listed == types - NOT_MEASURED


def test_roles_are_those_of_the_rule_and_neither_is_rare() -> None:
    assert all(case["role"] == role_of(case["model_id"], case["config_sha256"], case["run"]) for case in CASES)
    share = sum(case["role"] == "holdout" for case in CASES) / len(CASES)
    assert 0.35 < share < 0.65


def test_names_are_unique() -> None:
    names = [asked.name for asked in asked_runs({"llama": "meta-llama/Llama-3.1-8B"}, tuple(OPTIMIZERS))]
    assert len(names) == len(set(names))


def test_a_cut_model_keeps_every_kind_of_layer() -> None:
    kinds = ["sliding"] * 9 + ["full"] + ["sliding"] * 30
    found = cut({"num_hidden_layers": 40, "layer_types": kinds, "hidden_size": 64}, 40 * 10**9, "some")
    assert found["num_hidden_layers"] == 10
    assert found["layer_types"] == kinds[:10]
    assert found["hidden_size"] == 64
    nested = cut({"text_config": {"num_hidden_layers": 40, "pattern": "M" * 40}}, 40 * 10**9, "some")
    assert nested["text_config"] == {"num_hidden_layers": 6, "pattern": "M" * 6}
    assert cut({"num_hidden_layers": 4}, 10**11, "some") == {"num_hidden_layers": 4}


@pytest.mark.parametrize("edge", [0, 1, 2, 31, 32, 33, 64, 1000, 4097])
def test_the_edge_is_found_in_few_looks(edge: int) -> None:
    looks: list[int] = []

    def over(step: int) -> float:
        looks.append(step)
        # Nearly linear, with jumps like an allocator's.
        return float(step - edge) * 1e6 + (step // 7 - edge // 7) * 1e5 - 0.5

    assert caps.last_below(over, 32) == edge
    assert len(looks) <= 25


def test_a_batch_takes_up_where_the_last_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        {
            "case": f"c{n}", "needs": ["no_such_package"] if n == 3 else [], "expected_bytes": n, "model_id": "m",
            "config": {}, "config_sha256": str(n), "run": {"seq_len": n}, "role": "holdout", "cap_bytes": None,
        }
        for n in range(5)
    ]  # fmt: skip
    listed, out = tmp_path / "cases.jsonl", tmp_path / "out.jsonl"
    listed.write_text("".join(json.dumps(case) + "\n" for case in cases))

    class Done:
        def poll(self) -> int:
            return 0

    class FakeJob:
        seconds = 1.0

        def __init__(self, case: dict[str, Any], folder: Path, device: str, turns: bool) -> None:
            self.case, self.process = case, Done()
            ran.append(case["case"])

        def end(self) -> None: ...

        def result(self) -> dict[str, Any] | None:
            if self.case["case"] == "c2":
                return None
            return {
                "model": "m", "config_sha256": self.case["config_sha256"], "run": self.case["run"], "cap_bytes": None,
                "outcome": "ok",
            }  # fmt: skip

        def last_words(self) -> str:
            return "died"

    monkeypatch.setattr(campaign, "Job", FakeJob)
    monkeypatch.setattr("benchmarks.campaign.time.sleep", lambda _s: None)
    options = argparse.Namespace(
        cases=str(listed),
        out=str(out),
        batch="1/1",
        jobs=2,
        minutes=5,
        room_gib=128,
        only="",
        device="cuda",
        turns=False,
    )
    ran: list[str] = []
    assert campaign.run_cases(options) == 1  # c2 left nothing
    assert ran == ["c4", "c2", "c1", "c0"]  # the largest first; c3 needs what is not installed
    assert len(out.read_text().splitlines()) == 3
    ran.clear()
    campaign.run_cases(options)
    assert ran == ["c2"]
    ran.clear()
    options.batch = "2/2"
    assert campaign.run_cases(options) == 0
    assert ran == []


def test_runs_share_the_card_only_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class FakeJob:
        def __init__(self, case: dict[str, Any], folder: Path, device: str, turns: bool) -> None:
            self.case = case
            started.append(case["case"])

    monkeypatch.setattr(campaign, "Job", FakeJob)
    gib = 1 << 30
    waiting = [
        {"case": "a", "expected_bytes": 200 * gib, "cap_bytes": None},
        {"case": "b", "expected_bytes": 0, "cap_bytes": 40 * gib},
        {"case": "c", "expected_bytes": 40 * gib, "cap_bytes": None},
        {"case": "d", "expected_bytes": 60 * gib, "cap_bytes": None},
    ]
    running: list[Any] = []
    options = argparse.Namespace(jobs=3, device="cuda", turns=False)
    campaign._start(waiting, running, 100 * gib, options, float("inf"), Path())
    assert started == ["a"]  # alone on the card, however large
    running.clear()
    campaign._start(waiting, running, 100 * gib, options, float("inf"), Path())
    assert started == ["a", "b", "c"]  # 41 + 50.5 GiB; 75.5 more would not do
