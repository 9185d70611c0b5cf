"""The headless core: names in place of records, the command line's figures, and answers that show themselves."""

from __future__ import annotations

import copy
import doctest
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module, resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import qlora_planner
from qlora_planner import RunConfig, Session, estimate, load_gpu, load_model, plan
from qlora_planner.cli.main import cli
from qlora_planner.errors import InputError, MissingError
from qlora_planner.record import document as json_ready
from qlora_planner.session.workbench import Workbench
from qlora_planner.units import MIB

MODEL = "qwen2.5-7b"


@pytest.fixture(autouse=True)
def closed_forms_where_nothing_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Session().on("rtx-4090", reserve="800MiB")


def document(*words: str) -> object:
    result = CliRunner().invoke(cli, [*words, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.stderr
    return json.loads(result.stdout)


def as_json(document: object) -> object:
    return json.loads(json.dumps(document))


CARD = ("--gpu", "rtx-4090", "--reserve", "800MiB")


def test_answers_are_those_of_the_command_line(bench: Workbench) -> None:
    options = ("--seq-len", "4096", "--rank", "32")
    asked: dict[str, Any] = {"seq_len": 4096, "rank": 32}
    assert as_json(bench.estimate(MODEL, **asked).to_dict()) == document("estimate", MODEL, *CARD, *options)
    assert as_json(bench.plan(MODEL, **asked).to_dict()) == document("plan", MODEL, *CARD, *options)
    assert json_ready(bench.plan(MODEL).prices) == document("plan", MODEL, *CARD)["prices"]  # type: ignore[index]
    assert as_json(bench.audit("falcon-7b").to_dict()) == document("audit", "falcon-7b")


def test_a_survey_is_that_of_the_command_line() -> None:
    assert as_json(Session().on("8GB").survey().to_dict()) == document("--gpu", "8GB")


AXOLOTL = """base_model: meta-llama/Llama-3.1-8B
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_target_linear: true
sequence_len: 8192
micro_batch_size: 4
gradient_accumulation_steps: 4
gradient_checkpointing: true
bf16: true
optimizer: paged_adamw_8bit
"""


def test_a_config_of_another_tool_is_checked_as_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(AXOLOTL)
    answer = Session().on("12GB").check(file)
    assert as_json(answer.to_dict()) == document("check", str(file), "--gpu", "12GB")
    assert answer.verdict == "does-not-fit"
    assert answer.fixes
    assert "micro_batch_size" in str(answer)
    assert Session().on("12GB").check(str(file), model=MODEL).estimate.model.id == "Qwen/Qwen2.5-7B"


def test_of_several_cards_each_has_to_load_the_model() -> None:
    pair, single = Session().on("2x8GB"), Session().on("8GB")
    assert single.estimate("llama-3.1-70b").verdict == "does-not-fit"
    assert pair.estimate("llama-3.1-70b").verdict == pair.plan("llama-3.1-70b").verdict == "does-not-fit"
    assert Session().on("2x12GB").estimate(MODEL).verdict == "fits"


def test_names_stand_for_records() -> None:
    profile, gpu, run = load_model(MODEL), load_gpu("24GB"), RunConfig(rank=32)
    assert estimate(MODEL, run, "24GB") == estimate(profile, run, gpu)
    assert plan(MODEL, "24GB", run).to_dict() == plan(profile, gpu, run).to_dict()
    bench = Session().on(gpu)
    assert bench.estimate(profile, run) == bench.estimate(MODEL, run).__class__(
        estimate=estimate(profile, run, gpu), gpu=gpu, card=gpu.name
    )


def test_a_plan_for_data_is_that_of_the_command_line(bench: Workbench, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "word " * (40 + 9 * row)}) + "\n" for row in range(60)))
    counted = ("--data", str(file), "--chars-per-token", "4", "--compare", "t4,l4")
    answer = bench.plan(MODEL, data=file, chars_per_token=4, compare="t4, l4")
    assert as_json(answer.to_dict()) == document("plan", MODEL, *CARD, *counted)
    assert answer.plan.data is not None and answer.run.seq_len < 2048


def test_the_cheapest_card_is_that_of_the_command_line() -> None:
    said = document("plan", MODEL, "--objective", "cheapest")
    assert as_json(Session().plan(MODEL).to_dict()) == said
    with pytest.raises(InputError, match="no card with a known price"):
        Session().on("24GB").plan(MODEL, objective="cheapest")


def test_an_answer_is_worked_out_once(bench: Workbench) -> None:
    assert bench.estimate(MODEL, rank=8).estimate is bench.estimate(MODEL, RunConfig(rank=8)).estimate
    assert bench.open(MODEL).known(RunConfig(rank=8)) is bench.estimate(MODEL, rank=8).estimate
    assert bench.open(MODEL).known(RunConfig(rank=9)) is None


def test_catalogues_and_measurements_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_planner.session import models
    from qlora_planner.session import session as module
    from qlora_planner.sources import evidence

    reads: list[str] = []
    read, load = evidence.read_calibration, models.load_model

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **named: Any) -> Any:
            reads.append(name)
            return real(*args, **named)

        return called

    monkeypatch.setattr(evidence, "read_calibration", counted("calibration", read))
    monkeypatch.setattr(module, "load_model", counted("model", load))
    session = Session()
    assert reads == []
    for card in ("16GB", "24GB"):
        for rank in (8, 16):
            session.on(card).estimate(MODEL, rank=rank)
    assert sorted(reads) == ["calibration", "model"]


def test_options_that_are_given_stay_and_others_are_searched(bench: Workbench) -> None:
    best = bench.plan(MODEL, rank=16, gradient_checkpointing=True)
    assert (best.run.rank, best.run.gradient_checkpointing) == (16, True)
    assert "gradient_checkpointing" in best.asked
    assert bench.plan(MODEL).run.gradient_checkpointing is False


def test_a_reserve_is_bytes_or_a_size(bench: Workbench) -> None:
    same = Session().on("rtx-4090", reserve=800 * MIB)
    assert same.reserve_bytes == bench.reserve_bytes == 800 * MIB
    assert same.estimate(MODEL).fit == bench.estimate(MODEL).fit
    assert Session().on("rtx-4090").estimate(MODEL).fit.headroom_bytes > same.estimate(MODEL).fit.headroom_bytes
    assert Session().on("24GB", cap="8GiB").estimate(MODEL).fit.usable_bytes < 9 << 30


@pytest.mark.parametrize(
    ("reserve", "cap", "said"),
    [
        ("2GB", None, r"^reserve: .*2GiB"),
        ("30GiB", None, r"^reserve: 30,720 MiB is all of the card's"),
        (-1, None, r"^reserve: -1 is no number of bytes"),
        (True, None, r"^reserve: True is no number"),
        (None, "30GiB", r"^cap: 30,720 MiB is more than"),
        (None, 0, r"^cap: 0 is no number of bytes"),
        (None, 1.5, r"^cap: 1.5 is no number of bytes"),
    ],
)
def test_a_size_that_means_nothing_is_named(reserve: object, cap: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Session().on("24GB", reserve=reserve, cap=cap)  # type: ignore[arg-type]


def test_what_means_nothing_is_one_line(bench: Workbench) -> None:
    for ask, said in (
        (lambda: bench.estimate(MODEL, ranks=8), "unknown option ranks"),
        (lambda: bench.plan(MODEL, ranks=8), "unknown option ranks"),
        (lambda: bench.plan(MODEL, effective_batch=7, batch_size=2), "no multiple of --batch-size 2"),
        (lambda: bench.plan(MODEL, data="none.jsonl"), "none.jsonl"),
        (lambda: bench.verify(MODEL, device="cpu", floor=True), "floor needs a card"),
        (lambda: bench.estimate("no such model"), "no such model"),
        (lambda: Session().on("rtx-9999"), "rtx-9999"),
        (lambda: bench.audit(MODEL, method="full"), "quantises nothing"),
        (lambda: Session().open(MODEL).prices(RunConfig()), "no card is given"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_answers_print_as_the_screens_do(bench: Workbench) -> None:
    for answer, words in (
        (bench.estimate(MODEL), ("fits", "90 % interval", "quantised weights")),
        (bench.plan(MODEL), ("fits", "what a knob changes", "next: qlora-plan")),
        (bench.survey(recommend=False), ("longest", "next:")),
        (bench.audit("falcon-7b"), ("nothing will be 4-bit",)),
        (Session().estimate(MODEL), ("give --gpu for a verdict",)),
    ):
        assert all(word in str(answer) for word in words), str(answer)[:400]


def test_a_notebook_gets_the_memory_bar(bench: Workbench) -> None:
    for answer in (bench.estimate(MODEL), bench.plan(MODEL), Session().estimate(MODEL)):
        page = ElementTree.fromstring(answer._repr_html_())
        rects = [rect for rect in page.iter("{http://www.w3.org/2000/svg}rect") if len(rect)]
        titles = {rect[0].text or "" for rect in rects}
        estimate_of = answer.estimate if hasattr(answer, "plan") else answer
        shown = list(estimate_of.components.values())
        assert len(rects) == sum(size > 0 for size in shown)
        assert any(title.startswith("quantised weights: ") for title in titles)
    for answer in (bench.survey(recommend=False), bench.audit("falcon-7b")):
        assert len(list(ElementTree.fromstring(answer._repr_html_()).iter("tr"))) > 3


def test_style_of_a_piece_reaches_nothing_else(bench: Workbench) -> None:
    style = next(ElementTree.fromstring(bench.estimate(MODEL)._repr_html_()).iter("style")).text or ""
    rules = style.replace("@media (prefers-color-scheme: dark) {", "").split("}")
    selectors = [part.strip() for rule in rules if "{" in rule for part in rule.partition("{")[0].split(",")]
    assert len(selectors) > 10
    assert all(selector.startswith(".qlora-plan") for selector in selectors)


def test_names_of_others_are_escaped(bench: Workbench) -> None:
    from dataclasses import replace

    profile = replace(load_model(MODEL), id="<script>alert('&')</script>")
    for answer in (bench.estimate(profile), bench.plan(profile), bench.audit(profile)):
        page = answer._repr_html_()
        assert "<script" not in page
        assert "&lt;script&gt;" in page


def test_frames_keep_bytes_and_unknowns(bench: Workbench) -> None:
    answer = bench.estimate(MODEL)
    frame = answer.to_frame()
    assert frame["bytes"].sum() == answer.peak.device_bytes
    assert list(frame.columns) == ["component", "bytes", "basis", "why"]
    best = bench.plan(MODEL)
    rows = best.to_frame()
    assert (rows["table"] == "prices").sum() == len(best.prices)
    survey = Session().on("8GB").survey(recommend=False)
    table = survey.to_frame()
    assert len(table) == len(survey) == len(list(survey))
    assert str(table["longest_seq_len"].dtype) == "Int64"
    assert table["longest_seq_len"].isna().any()
    assert len(bench.audit("falcon-7b").to_frame()) == len(bench.audit("falcon-7b").rows)


def test_answers_can_be_copied_and_kept(bench: Workbench) -> None:
    for answer in (bench.estimate(MODEL), bench.plan(MODEL), bench.audit("falcon-7b")):
        assert copy.copy(answer) == answer
        assert pickle.loads(pickle.dumps(answer)).to_dict() == answer.to_dict()
        with pytest.raises(AttributeError, match="no_such_figure"):
            _ = answer.no_such_figure


@pytest.mark.parametrize("name", ["answers", "model_on_card", "session", "workbench", "views"])
def test_examples_in_docstrings_hold(name: str) -> None:
    module = import_module(f"qlora_planner.session.{name}")
    names = {"Session": Session, "estimate": estimate, "plan": plan}
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    for case in finder.find(module, extraglobs=names):
        runner.run(case)
    assert runner.failures == 0
    assert runner.tries > 0 or name in ("model_on_card", "views")


def test_asking_imports_nothing_heavy() -> None:
    script = (
        "import sys; from qlora_planner import Session; before = set(sys.modules)\n"
        "bench = Session(stored_only=True).on('24GB'); bench.estimate('qwen2.5-7b'); str(bench.plan('qwen2.5-7b'))\n"
        "bench.plan('qwen2.5-7b')._repr_html_()\n"
        "assert 'numpy' not in before\n"
        "print({'torch', 'transformers', 'pandas', 'textual', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_the_package_says_that_it_is_typed() -> None:
    assert resources.files(qlora_planner).joinpath("py.typed").is_file()


def test_a_plan_is_exported_as_the_command_line_writes_it(tmp_path: Path, bench: Workbench) -> None:
    path = tmp_path / "train.py"
    best = bench.plan(MODEL)
    text = best.export("trl", path)
    assert path.read_text("utf-8") == text == best.export("trl")
    assert "SFTTrainer(" in text
    with pytest.raises(InputError, match="is there already"):
        best.export("trl", path)
    with pytest.raises(InputError, match="--export yaml: is not known"):
        best.export("yaml")


def test_a_failed_run_is_explained_beside_its_plan(tmp_path: Path, bench: Workbench) -> None:
    log = tmp_path / "train.log"
    log.write_text(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
        " 23.99 GiB of which 1.20 GiB is free. Including non-PyTorch memory, this process has 22.70 GiB memory in use."
        " Of the allocated memory 21.30 GiB is allocated by PyTorch, and 900.00 MiB is reserved by PyTorch but"
        " unallocated.\n"
    )
    plan = bench.plan(MODEL).save(tmp_path / "plan.yaml")
    explained = bench.session.explain_oom(log, plan=plan)
    assert explained.requested_bytes == 2 << 30
    assert explained.planned is not None
    assert explained.planned.compared.excess_bytes
    assert "2.00 GiB" in str(explained)
    document = explained.to_dict()
    assert document["plan"]["verdict"] == "fits"
    assert document["plan"]["fixes"]
    assert bench.session.explain_oom(log).to_dict()["plan"] is None


def test_the_tables_are_records_markdown_and_a_frame() -> None:
    tables = Session().table(["llama-3.2-1b"], seq_len=1024)
    document = tables.to_dict()
    assert [row["model_id"] for row in document["memory"]] == ["meta-llama/Llama-3.2-1B"]
    assert "Llama-3.2-1B" in tables.to_markdown()
    assert set(tables.to_frame()["table"]) == {"memory", "card"}
    with pytest.raises(InputError, match="--models is empty"):
        Session().table([])


def test_without_verifications_nothing_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_planner.sources.locations.evidence_path", lambda: tmp_path / "none.jsonl")
    with pytest.raises(MissingError, match="there is no verification yet"):
        Session().calibrate()


def test_values_are_understood_as_people_write_them(bench: Workbench) -> None:
    typed = bench.estimate(MODEL, seq_len="4k", quant="4bit", compute_dtype="bf16", trainer="sft")
    meant = bench.estimate(MODEL, seq_len=4096, quant="nf4", compute_dtype="bfloat16", trainer="trl-sft")
    assert typed.to_dict() == meant.to_dict()
    assert bench.plan(MODEL, seq_len="1k").run.seq_len == 1024
    with pytest.raises(InputError, match="--seq-len must be int, not '4kb'"):
        bench.estimate(MODEL, seq_len="4kb")
    with pytest.raises(InputError, match="--quant must be one of nf4, fp4, int8, none, not '5bit'"):
        bench.estimate(MODEL, quant="5bit")
