"""Faults that are known before a process is started: one clear line, the exit code, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from examples.toy_model import SIZES, rows, write_rows
from qlora_planner.cli.main import cli
from qlora_planner.runs.directory import RunDirectory, write_json
from qlora_planner.runs.lock import held
from qlora_planner.runs.record import run_record
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.runs.supervise import Attempt
from qlora_planner.session import load_gpu
from qlora_planner.session.measuring.this_card import ThisCard
from tests.launch.conftest import RUN, SETTINGS

# The length of a header, and the header.
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
CONFIGS = Path(__file__).parents[2] / "profiles" / "configs"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model (its weights are not read here), data and a plan."""
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    (tmp_path / "tiny" / "model.safetensors").write_bytes(NO_TENSORS)
    write_rows(tmp_path / "train.jsonl", rows(8))
    plan("plan.yaml")
    return tmp_path


def plan(name: str, model: str = "tiny", **changes: Any) -> None:
    run = {**RUN.to_dict(), **changes}
    document = {"schema": "qlora-plan/plan/1", "model": {"id": model}, "gpu": None, "run": run}
    Path(name).write_text(json.dumps(document))


def train(*args: str, device: str = "cpu") -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, ["train", *args, "--device", device], prog_name="qlora-plan")


def refused(result: click.testing.Result, code: int, says: str) -> None:
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    line = result.stderr.strip().splitlines()[-1]
    assert says in line, result.stderr
    assert line.startswith("qlora-plan: ") and "a bug in" not in line


def begun() -> RunDirectory:
    """A run that was begun with the plan and the data that are here."""
    folder = RunDirectory(Path("begun"))
    folder.path.mkdir()
    spec = LaunchSpec(
        run=RUN, settings=SETTINGS, model_id=str(Path("tiny").absolute()), weights="tiny", data="train.jsonl",
        output="begun", device="cpu",
    )  # fmt: skip
    write_json(folder.record, run_record(spec, created="2026-01-01T00:00:00Z", versions={}))
    return folder


Change = Callable[[], object]


def _write(name: str, text: str) -> Change:
    return lambda: (Path(name).write_text(text), None)[1]


def _stored(**settings: Any) -> Change:
    def change() -> None:
        path = Path("tiny/config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))

    return change


def _stored_for_lora() -> None:
    _stored(load_in_4bit=True)()
    plan("plan.yaml", method="lora", quant="none")


def _begun_with_another_rank() -> None:
    begun()
    plan("plan.yaml", rank=4)


def _foreign() -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")


def _sharded() -> None:
    Path("tiny/model.safetensors").rename("tiny/a.safetensors")
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}
    Path("tiny/model.safetensors.index.json").write_text(json.dumps(index))


def _plan_alone() -> None:
    Path("out").mkdir()
    shutil.copy("plan.yaml", "out/plan.yaml")


def _theirs() -> None:
    Path("out/checkpoints/mine").mkdir(parents=True)
    Path("out/checkpoints/mine/w.bin").write_text("years of work")
    Path("out/run.json").write_text('{"loss": 1.0}')


def _damaged(change: dict[str, Any]) -> None:
    folder = begun()
    folder.record.write_text(json.dumps({**json.loads(folder.record.read_text()), **change}))


DAMAGES: list[tuple[str, dict[str, Any], str]] = [
    ("a list for the run", {"run": [1]}, "is damaged: run must be an object, not [1]"),
    ("no run", {"run": None}, "is damaged: run must be an object, not None"),
    ("a text as rank", {"run": {**RUN.to_dict(), "rank": "eight"}}, "must be int, not 'eight'"),
    ("an unknown option", {"run": {"colour": 1}}, "unknown option colour"),
    ("a number for settings", {"settings": 4}, "settings must be an object, not 4"),
    ("a text for steps", {"settings": {"max_steps": "many"}}, "--max-steps must be a whole number"),
    ("an object for reporters", {"settings": {"report_to": 5}}, "report_to must be a list"),
    ("a list as a reporter", {"settings": {"report_to": [[]]}}, "--report-to must be one of"),
    ("a text for a switch", {"settings": {"assistant_only_loss": "no"}}, "assistant_only_loss must be true or false"),
    ("a number as a token", {"settings": {"pad_token": 0}}, "--pad-token must be a text"),
    ("an object as a scheduler", {"settings": {"scheduler": {}}}, "--scheduler must be one of"),
    ("no `--data`", {"data": {}}, "data.path must be a text, not None"),
    ("a list for data", {"data": []}, "data must be an object, not []"),
    ("a number as model", {"model": 7}, "model must be an object, not 7"),
    ("no path of the model", {"model": {"id": "m"}}, "model.path must be a text, not None"),
    ("a number as tokenizer", {"tokenizer": 3}, "tokenizer must be a text or null, not 3"),
    ("another device", {"device": "tpu"}, "device must be cuda or cpu, not 'tpu'"),
    ("a list of versions", {"versions": ["torch"]}, "versions must be an object or null"),
    ("a text for the rung", {"rung": "smaller"}, "rung must be an object or null"),
]
_SAME = ("--max-steps", "12", "--save-steps", "4", "--learning-rate", "5e-3")

RIGHT = ("plan.yaml", "--data", "train.jsonl")
FAULTS: list[tuple[str, Change | None, tuple[str, ...], int, str]] = [
    ("no data", None, ("plan.yaml",), 2, "--data is missing"),
    ("a data file that is gone", None, ("plan.yaml", "--data", "nowhere.jsonl"), 2,
     "nowhere.jsonl: no such file or folder"),
    ("empty data", _write("none.jsonl", ""), ("plan.yaml", "--data", "none.jsonl"), 2, "none.jsonl: is empty"),
    ("a broken line", _write("bad.jsonl", '{"text": "a"}\n{"text": \n'), ("plan.yaml", "--data", "bad.jsonl"), 2,
     "line 2 is not JSON"),
    ("columns that mean nothing", _write("odd.jsonl", '{"story": "a"}\n'), ("plan.yaml", "--data", "odd.jsonl"), 2,
     "its columns are story; what is understood"),
    ("an unknown option in the plan", lambda: plan("plan.yaml", colour="red"), RIGHT, 2,
     "unknown option colour"),
    ("a file that is no plan", _write("other.yaml", "a: 1\n"), ("other.yaml", "--data", "train.jsonl"), 2,
     "schema must be"),
    ("no steps", None, (*RIGHT, "--max-steps", "0"), 2, "--max-steps must be a whole"),
    ("negative steps", None, (*RIGHT, "--save-steps", "-1"), 2, "--save-steps must be"),
    ("no learning rate", None, (*RIGHT, "--learning-rate", "0"), 2, "--learning-rate"),
    ("everything held out", None, (*RIGHT, "--eval-split", "1"), 2, "--eval-split must be"),
    ("a folder without weights", lambda: Path("tiny/model.safetensors").unlink(), RIGHT, 3,
     "holds no weights"),
    ("a weight file that is cut off", lambda: (Path("tiny/model.safetensors").write_bytes(NO_TENSORS[:-1]), None)[1],
     RIGHT, 3, "model.safetensors is cut off or damaged"),
    ("a weight file that is missing beside its index", _sharded, RIGHT, 3,
     "1 of 2 weight files are missing, as b.safetensors; fetch them"),
    ("no such model", lambda: plan("plan.yaml", model="no/such/thing"), RIGHT, 2,
     "neither a folder nor the id of a Hub repository"),
    ("weights that are not cached, network off", lambda: plan("plan.yaml", model="some/model"), RIGHT, 3,
     "HF_HUB_OFFLINE forbids asking"),
    ("weights quantised by GPTQ, AWQ and the like", _stored(quant_method="gptq"), RIGHT, 2,
     "stored in GPTQ: transformers refuses a BitsAndBytesConfig on top; use a bf16 copy of the model"),
    ("weights stored as MXFP4", _stored(quant_method="mxfp4"), RIGHT, 2,
     "use a bf16 copy of the model, saved once through Mxfp4Config(dequantize=True)"),
    ("weights stored by another tool", _stored(quant_method="hqq"), RIGHT, 2, "is stored in HQQ"),
    ("a tool unheard of", _stored(quant_method="quip3"), RIGHT, 2,
     "is stored by quip3, about which nothing is known here"),
    ("weights stored as int8, plan says nf4", _stored(load_in_8bit=True), RIGHT, 2, "wants nf4; --quant int8"),
    ("weights stored in 4-bit, `--method lora`",
     _stored_for_lora,
     RIGHT, 2, "stored as fp4, and --method lora wants them whole"),
    ("a Hub dataset that is not there, network off", None, ("plan.yaml", "--data", "some/set"), 3,
     "some/set: no data files among the cached Hub files, and HF_HUB_OFFLINE forbids asking; name a file"),
    ("a MODEL without `--yes` where nobody can answer", None, ("./tiny", "--data", "train.jsonl"), 2,
     "--yes starts it"),
    ("output folder holds something else", _foreign, (*RIGHT, "--output", "out"), 2, "is not empty"),
    ("output is a file", None, (*RIGHT, "--output", "train.jsonl"), 2, "is a file"),
    ("output that cannot be written", None, (*RIGHT, "--output", "train.jsonl/run"), 2, "cannot be written"),
    ("output folder holds a run", lambda: (begun(), None)[1], (*RIGHT, "--output", "begun"), 2,
     "--resume goes on with it"),
    ("nothing to resume", None, (*RIGHT, "--resume", "--output", "tiny"), 2,
     "holds no run (no run.json)"),
    ("a broken run.json", lambda: begun().record.write_text("{"), ("begun", "--resume"), 2, "run.json cannot be read"),
    ("output folder holds a plan alone", _plan_alone, (*RIGHT, "--output", "out"), 2,
     "out holds a plan, and no run was begun there; --force begins one"),
    ("`--force` over a run of another tool", _theirs, (*RIGHT, "--output", "out", "--force"), 2,
     "out holds checkpoints, which is no run of ours"),
    ("`--force` over something beside the checkpoints", lambda: (begun().checkpoints / "mine").mkdir(parents=True),
     (*RIGHT, "--output", "begun", "--force"), 2,
     "checkpoints/mine is not provably what the run there wrote, so nothing is removed"),
    ("`--resume` where `checkpoints` is a link", lambda: begun().checkpoints.symlink_to(Path("tiny").absolute()),
     ("begun", "--resume"), 2,
     "checkpoints is a link"),
    *(
        (f"run.json with {name}", lambda change=change: _damaged(change), ("begun", "--resume"), 2, says)
        for name, change, says in DAMAGES
    ),
    ("resumed with other data", lambda: (begun(), write_rows(Path("train.jsonl"), rows(9)), None)[2],
     ("begun", "--resume"), 2,
     "the data is not what it was"),
    ("resumed with another plan", _begun_with_another_rank,
     (*RIGHT, "--resume", "--output", "begun", *_SAME), 2, "rank was 8 and is 4"),
    ("resumed with other settings", lambda: (begun(), None)[1], ("begun", "--resume", "--seed", "7"), 2,
     "seed was 42 and is 7"),
    ("no card", None, (*RIGHT, "cuda"), 3, "NVML"),
    ("a reporter that is missing", None, (*RIGHT, "--report-to", "wandb"), 3, "pip install wandb"),
    ("`--cap` on the CPU", None, (*RIGHT, "--cap", "4GiB"), 2, "--cap needs a card"),
]  # fmt: skip


@pytest.mark.fault(
    "a run.json whose fields are of other types",
    said="is damaged: run must be an object",
    does="which, and what they must be",
    exit=2,
    part="resumed",
)
@pytest.mark.parametrize(
    ("change", "args", "code", "says"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_a_fault_is_one_line(
    change: Change | None, args: tuple[str, ...], code: int, says: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change is not None:
        change()
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    device = "cuda" if args[-1] == "cuda" else "cpu"
    if says == "NVML":
        monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    if "wandb" in says:
        monkeypatch.setattr("importlib.util.find_spec", _without("wandb"))
    refused(train(*(arg for arg in args if arg != "cuda"), device=device), code, says)
    own = ("XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME")
    after = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert {p: c for p, c in after.items() if p.relative_to(here).parts[0] not in own} == before


def _without(*names: str) -> Callable[..., Any]:
    import importlib.util

    inner = importlib.util.find_spec
    return lambda name, *rest: None if name in names else inner(name, *rest)


@pytest.mark.fault(
    "`--force` or `--resume` where another process trains",
    said="is being trained in by process",
    does="the kernel holds the lock, and lets go of it when parent and child have ended, however they did",
    exit=2,
    part="resumed",
)
def test_a_run_that_trains_is_neither_forced_nor_gone_on_with(here: Path) -> None:
    folder = begun()
    with held(folder.path):
        refused(train("begun", "--resume"), 2, "begun is being trained in by process")
        refused(
            train("plan.yaml", "--data", "train.jsonl", "--output", "begun", "--force"), 2, "is being trained in by"
        )
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("ended_at", ["run.json", "plan.yaml", "log.txt"])
@pytest.mark.fault(
    "ended while the first files of a run are written",
    does="`--resume` or the same command goes on",
    exit=130,
    part="resumed",
)
def test_a_start_that_is_ended_at_any_file_can_be_begun_again(
    ended_at: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written before the child starts: whichever file is the last, the run is gone on with or begun."""

    def ended(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if ended_at == "run.json":
            patch.setattr("os.fsync", ended)
        elif ended_at == "plan.yaml":
            patch.setattr("qlora_planner.session.training.execute._Execution._write_beside", ended)
        else:
            patch.setattr("qlora_planner.session.training.execute._Execution._watched", ended)
        assert train("plan.yaml", "--data", "train.jsonl", "--output", "out").exit_code == 130
    monkeypatch.setattr("qlora_planner.session.training.execute._Execution._watched", ended)
    if ended_at != "run.json":
        assert train("out", "--resume").exit_code == 130
        assert Path("out/plan.yaml").is_file() and Path("out/run.json").is_file()
    assert train("plan.yaml", "--data", "train.jsonl", "--output", "out", "--force").exit_code == 130
    assert sorted(path.name for path in Path("out").iterdir()) == ["plan.yaml", "run.json"]


@pytest.mark.parametrize(("outcome", "code"), [("ok", 4), ("interrupted", 130), ("out-of-memory", 1)])
@pytest.mark.parametrize("lost", ["summary.json", "report.html"])
@pytest.mark.fault(
    "the summary or the report cannot be written at the end",
    said="incomplete: the adapter is in",
    does="`--resume` writes what is missing",
    exit=4,
    part="begun",
)
def test_a_run_whose_summary_cannot_be_written_has_not_succeeded(
    lost: str, outcome: str, code: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any, **__: Any) -> Any:
        Path("out/adapter").mkdir()
        Path("out", lost).mkdir()  # in the way of the file
        says = "finished"
        return [Attempt(number=1, run=RUN, outcome=outcome, facts={}, from_step=0, says=says, checkpoint=None)], [], 1.0

    monkeypatch.setattr("qlora_planner.session.training.execute._Execution._watched", ended)
    result = train("plan.yaml", "--data", "train.jsonl", "--output", "out", "--json")
    assert result.exit_code == code, result.output
    assert f"out/{lost}" in result.stderr
    assert ("incomplete: the adapter is in out/adapter" in result.stderr) == (outcome == "ok")
    assert any(lost in note for note in json.loads(result.stdout)["notes"])
    assert not Path("out/summary.json").is_file()


@pytest.mark.fault("a package is missing", said="missing here: bitsandbytes, trl; pip install", exit=3, part="before")
def test_a_missing_package_names_the_line_that_gets_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", _without("trl", "bitsandbytes"))
    refused(train("plan.yaml", "--data", "train.jsonl"), 3, "missing here: bitsandbytes, trl; pip install")


@pytest.mark.fault("a gated model", said="gated; accept its licence at", exit=3, part="before")
def test_a_gated_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        raise errors.GatedRepoError("gated", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    plan("plan.yaml", model="meta-llama/Llama-3.1-8B")
    refused(train("plan.yaml", "--data", "train.jsonl"), 3, "gated; accept its licence at")


@pytest.fixture
def on_card(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """A plan for Llama-3.1-8B, and a card here of which others hold something."""
    shutil.copy(CONFIGS / "meta-llama__Llama-3.1-8B.json", here / "tiny" / "config.json")

    def card(name: str, others_bytes: int) -> None:
        place = ThisCard(gpu=load_gpu(name), others_bytes=others_bytes, cap_bytes=None, processes=(4711,))
        monkeypatch.setattr("qlora_planner.session.training.prepare.this_card_as", lambda *_: place)

    return card


@pytest.mark.fault("the card is taken", said="is in use by others (processes 4711)", exit=3, part="before")
def test_a_card_that_others_hold(on_card: Callable[[str, int], None]) -> None:
    on_card("24GB", 20 << 30)
    plan("plan.yaml", seq_len=2048, batch_size=1, padding=False, rank=16, alpha=32)
    refused(train("plan.yaml", "--data", "train.jsonl", device="cuda"), 3, "is in use by others (processes 4711)")


@pytest.mark.fault(
    "the run does not fit", said="does not fit", does="`--yes` tries all the same", exit=1, part="before"
)
def test_a_run_that_does_not_fit_is_not_started(on_card: Callable[[str, int], None]) -> None:
    on_card("8GB", 0)
    plan("plan.yaml", seq_len=8192, batch_size=8, rank=16, alpha=32)
    refused(train("plan.yaml", "--data", "train.jsonl", device="cuda"), 1, "does not fit")
    assert not Path("runs").exists()


@pytest.mark.fault(
    "a dtype that the card has not", said="bfloat16", does="the reason names the dtype to use", exit=1, part="before"
)
def test_a_dtype_that_the_card_has_not(on_card: Callable[[str, int], None]) -> None:
    on_card("t4", 0)
    plan("plan.yaml", compute_dtype="bfloat16")
    refused(train("plan.yaml", "--data", "train.jsonl", device="cuda"), 1, "bfloat16")


@pytest.mark.fault(
    "too little disk for checkpoints, or for the tokenised rows of large data",
    said="checkpoints need",
    exit=3,
    part="before",
)
def test_a_disk_that_is_too_small(
    on_card: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    on_card("24GB", 0)
    plan("plan.yaml", seq_len=2048, batch_size=1, padding=False, rank=16, alpha=32)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 40, 1 << 40, 100 << 20))
    refused(train("plan.yaml", "--data", "train.jsonl", device="cuda"), 3, "checkpoints need")


def test_a_model_of_the_hub_is_the_same_model_at_resume(here: Path) -> None:
    folder = begun()
    record = json.loads(folder.record.read_text())
    write_json(folder.record, record | {"model": {"id": "org/name", "path": str(here / "tiny")}})
    result = train("begun", "--resume", "--seed", "7")
    refused(result, 2, "was begun otherwise: seed was 42 and is 7; go on")
