"""check: a file of another tool in, a verdict and the smallest change out. Closed forms here: nothing is traced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner.exchange.plan_file import read_plan
from tests.cli.conftest import Invoke, Process
from tests.cli.test_light import NEVER

AXOLOTL = {
    "base_model": "meta-llama/Llama-3.1-8B", "adapter": "qlora", "load_in_4bit": True, "lora_r": 16,
    "lora_target_linear": True, "micro_batch_size": 1, "gradient_accumulation_steps": 4, "sequence_len": 1024,
    "gradient_checkpointing": True, "optimizer": "paged_adamw_8bit", "learning_rate": 2e-4, "bf16": "auto",
}  # fmt: skip
FACTORY = {
    "model_name_or_path": "meta-llama/Llama-3.1-8B", "quantization_bit": 4, "bf16": True, "cutoff_len": 1024,
    "per_device_train_batch_size": 1, "template": "llama3",
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write a config; its path."""

    def write(config: dict[str, Any], name: str = "run.yml") -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return str(path)

    return write


@pytest.mark.parametrize("config", [AXOLOTL, FACTORY])
def test_fits(invoke: Invoke, file: Any, config: dict[str, Any]) -> None:
    result = invoke("check", file(config), "--gpu", "80GB")
    assert result.exit_code == 0, result.stderr
    assert "fits: meta-llama/Llama-3.1-8B on 80GB" in result.stdout
    assert "modelled as hf-trainer" in " ".join(result.stdout.split())
    assert "smallest change" not in result.stdout
    assert result.stderr == ""


def test_does_not_fit_and_what_would(invoke: Invoke, file: Any) -> None:
    path = file(AXOLOTL | {"micro_batch_size": 16, "sequence_len": 4096, "fp32_norms": True, "sequense": 1})
    result = invoke("check", path, "--gpu", "24GB")
    assert result.exit_code == 1
    assert "smallest change that fits" in result.stdout
    assert "  micro_batch_size: " in result.stdout
    assert "partial, without fp32_norms: true: norms in float32" in " ".join(result.stdout.split())
    assert "by formulas" not in result.stdout  # by tapes that ship
    assert result.stderr.splitlines() == [
        "qlora-plan: axolotl keys that are not known here, so not in the estimate: sequense",
        "qlora-plan: not modelled, so not in the estimate: fp32_norms",
    ]
    assert invoke("check", path, "--gpu", "24GB", "--quiet").stderr == ""


def test_the_change_makes_the_file_fit(invoke: Invoke, file: Any) -> None:
    config = AXOLOTL | {"micro_batch_size": 16, "sequence_len": 4096, "optimizer": "adamw_torch", "lora_r": 128}
    answer = json.loads(invoke("check", file(config), "--gpu", "24GB", "--json").stdout)
    assert answer["estimate"]["fit"]["verdict"] == "does-not-fit"
    for fix in filter(None, answer["fix"].values()):
        after = invoke("check", file(config | fix["keys"]), "--gpu", "24GB", "--json")
        assert after.exit_code == 0
        document = json.loads(after.stdout)
        assert document["estimate"]["fit"]["verdict"] == fix["verdict"] == "fits"
        assert document["estimate"]["peak"]["device_bytes"] == fix["device_bytes"]
        assert {name: document["run"][name] for name in fix["change"]} == fix["change"]


def test_json(invoke: Invoke, file: Any) -> None:
    path = file(FACTORY | {"deepspeed": "z.json", "cutof": 1, "warmup_ratio": 0.1})
    result = invoke("check", path, "--gpu", "80GB", "--json")
    document = json.loads(result.stdout)
    assert (document["schema"], document["format"], document["file"]) == ("qlora-plan/check/1", "llama-factory", path)
    assert document["model"]["id"] == "meta-llama/Llama-3.1-8B"
    # LLaMA-Factory re-enters, and the run that does not stands in for it in the figures.
    assert document["run"] == document["estimate"]["run"] | {"use_reentrant": True}
    assert document["estimate"]["schema"] == "qlora-plan/estimate/1"
    assert document["fix"] is None
    keys = document["keys"]
    assert (keys["unknown"], keys["ignored"]) == (["cutof"], ["template", "warmup_ratio"])
    assert list(keys["not_modelled"]) == ["deepspeed"]
    assert set(keys["used"]) == set(FACTORY) - {"template"}


def test_a_saved_plan_is_checked_on_its_own_card(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    assert invoke("llama-3.1-8b", "--gpu", "24GB", "--save", str(path)).exit_code == 0
    planned = read_plan(path).document
    result = invoke("check", str(path), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["format"] == "plan"
    assert document["run"] == planned["run"]
    for part in ("peak", "components", "phases", "fit"):
        assert document["estimate"][part] == planned["estimate"][part]
    assert result.stderr == "qlora-plan: no --gpu given: taking the plan's own card, 24GB\n"
    small = invoke("check", str(path), "--gpu", "6GB")
    assert small.exit_code == 1


def test_plan_saves_and_exports(invoke: Invoke, tmp_path: Path) -> None:
    plan, script = tmp_path / "plan.yaml", tmp_path / "train.py"
    args = ["llama-3.1-8b", "--gpu", "24GB", "--save", str(plan), "--export", f"trl={script}"]
    args.append("--gradient-checkpointing")  # so that it fits as axolotl runs it too, with whole logits
    first = invoke(*args, "--export", "axolotl")
    assert first.exit_code == 0
    assert yaml.safe_load(first.stdout)["base_model"] == "meta-llama/Llama-3.1-8B"
    assert first.stderr.splitlines() == [
        f"qlora-plan: wrote {plan}, and its figures plan.figures.json beside it", f"qlora-plan: wrote {script}",
    ]  # fmt: skip
    compile(script.read_text(), "train.py", "exec")
    before = plan.read_bytes()
    again = invoke(*args)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "--force" in again.stderr
    assert plan.read_bytes() == before
    plan.unlink()
    figures = invoke(*args[:5])
    assert figures.exit_code == 2
    assert "plan.figures.json is there already" in figures.stderr
    forced = invoke(*args, "--force")
    assert forced.exit_code == 0
    assert "longest sequence" in forced.stdout


@pytest.mark.parametrize("kind", ["axolotl", "llama-factory"])
def test_an_export_states_what_check_says_of_it(invoke: Invoke, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    exported = invoke("llama-3.1-8b", "--gpu", "24GB", "--export", f"{kind}={path}")
    assert exported.exit_code == 0
    checked = invoke("check", str(path), "--gpu", "24GB", "--json")
    found = json.loads(checked.stdout)["estimate"]
    first, second = path.read_text().splitlines()[:2]
    assert f"peak {found['peak']['device_bytes'] / (1 << 30):.2f} GiB" in first
    assert f"usable, {found['fit']['verdict']}" in first
    assert "runs this file" in first
    assert second.startswith("# The plan itself: ")
    if found["fit"]["verdict"] == "does-not-fit":
        assert "does not fit" in exported.stderr


def test_a_saved_plan_holds_what_one_may_change_and_still_answers_without_the_rest(
    invoke: Invoke, tmp_path: Path
) -> None:
    path = tmp_path / "plan.yaml"
    assert invoke("llama-3.1-8b", "--gpu", "24GB", "--save", str(path)).exit_code == 0
    held = yaml.safe_load(path.read_text())
    assert list(held) == ["schema", "model", "gpu", "run", "figures"]
    whole = json.loads(invoke("check", str(path), "--json").stdout)
    (tmp_path / held["figures"]).unlink()
    alone = json.loads(invoke("check", str(path), "--json").stdout)
    assert alone["estimate"] == whole["estimate"]


@pytest.mark.parametrize("kind", ["trl", "axolotl", "llama-factory", "notebook"])
def test_exports_name_data_and_model_as_they_were_typed(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "out").mkdir()
    config = Path(__file__).parents[2] / "profiles" / "configs" / "HuggingFaceTB__SmolLM2-135M.json"
    (tmp_path / "here" / "config.json").write_bytes(config.read_bytes())
    (tmp_path / "rows.jsonl").write_text('{"text": "' + "a few words " * 60 + '"}\n' * 1)
    made = invoke(
        "./here", "--gpu", "24GB", "--data", "rows.jsonl", "--chars-per-token", "4", "--save", "out/plan.yaml",
        "--export", f"{kind}=out/x",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    text = (tmp_path / "out" / "x").read_text()
    assert str(tmp_path) not in text
    assert "rows.jsonl" in text
    assert "./here" in text
    # A plan names the folder from where the plan is, so that it can be read from everywhere.
    assert yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text())["model"]["path"] == os.path.join("..", "here")


FAULTS: list[tuple[list[str], int, str]] = [
    (["check", "nowhere.yml", "--gpu", "24GB"], 2, "no such file"),
    (["check", ".", "--gpu", "24GB"], 2, "is a folder"),
    (["check", "{file}", "--gpu", "24"], 2, "24GB"),
    (["check", "{file}"], 2, "--gpu"),
    (["check", "{file}", "--format", "unsloth"], 2, "axolotl"),
    (["check", "{file}", "--gpu", "24GB", "--model", "nobody/has-this"], 3, "nobody/has-this"),
    (["check"], 2, "FILE"),
    (["llama-3.1-8b", "--gpu", "24GB", "--export", "unsloth"], 2, "axolotl"),
    (["llama-3.1-8b", "--gpu", "24GB", "--export", "trl="], 2, "name a file"),
    (["llama-3.1-8b", "--gpu", "24GB", "--export", "trl", "--json"], 2, "one answer"),
    (["llama-3.1-8b", "--gpu", "24GB", "--export", "trl", "--export", "axolotl"], 2, "one answer"),
    (["llama-3.1-8b", "--gpu", "24GB", "--save", "."], 2, "is a folder"),
    (["llama-3.1-8b", "--gpu", "24GB", "--save", "no/such/folder/plan.yaml"], 2, "no folder"),
]


@pytest.mark.parametrize(("args", "code", "says"), FAULTS, ids=[" ".join(args) for args, _, _ in FAULTS])
def test_faults(invoke: Invoke, file: Any, args: list[str], code: int, says: str) -> None:
    result = invoke(*(arg.replace("{file}", file(AXOLOTL)) for arg in args))
    assert (result.exit_code, result.stdout) == (code, "")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_a_bad_file_is_one_line_and_runs_nothing(invoke: Invoke, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.yml", tmp_path / "mark"
    path.write_text(f"base_model: !!python/object/apply:os.system ['touch {mark}']\n")
    result = invoke("check", str(path), "--gpu", "24GB")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert not mark.exists()


def test_no_torch(python: Process, file: Any) -> None:
    done = python(
        "import sys\nfrom qlora_planner.cli.main import cli\n"
        f"try:\n    cli.main(['check', {file(AXOLOTL)!r}, '--gpu', '6GB'], prog_name='qlora-plan')\n"
        "except SystemExit as done:\n    print('CODE', done.code, *{name.partition('.')[0] for name in sys.modules})"
    )
    words = done.stdout.splitlines()[-1].split()
    assert words[:2] == ["CODE", "1"]
    assert not set(words) & set(NEVER)


def test_without_the_training_packages_closed_forms_answer(
    invoke: Invoke, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_planner.session import packages

    monkeypatch.delenv("QLORA_PLANNER_TRACE", raising=False)
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    whole = {"lora_modules_to_save": ["embed_tokens", "lm_head"]}  # of which no tape ships
    result = invoke("check", file(AXOLOTL | whole), "--gpu", "80GB", "--json")
    assert result.exit_code == 0
    assert "this answer is by formulas" in result.stderr
    document = json.loads(result.stdout)
    assert document["estimate"]["footing"] != "traced"
    assert "not-traced" in [problem["code"] for problem in document["estimate"]["problems"]]


def test_will_not_run_names_the_fix_of_its_cause(invoke: Invoke, file: Any) -> None:
    result = invoke("check", file(AXOLOTL | {"attn_implementation": "flash_attention_2"}), "--gpu", "t4", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["estimate"]["fit"]["verdict"] == "will-not-run"
    assert document["fix"] is None
