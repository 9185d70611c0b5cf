"""Checkpoints that are quantised already: counted as they are loaded, planned and trained as they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.profiling.build import build_profile
from qlora_planner.runs.weights import check_stored
from qlora_planner.session import estimate, load_gpu, plan
from qlora_planner.sources.configs import read_config
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.model import load_folder
from tests.launch.conftest import RUN, SETTINGS, Home, Make, trained

# As they are saved by others: bitsandbytes' own defaults, double quantisation, and modules that were spared.
STORED: dict[str, dict[str, Any]] = {
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4-double": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp"],
    },
    "int8": {"load_in_8bit": True},
}  # fmt: skip


@pytest.fixture(scope="module", params=list(STORED))
def stored(request: pytest.FixtureRequest, home: Home) -> tuple[str, Path]:
    """The tiny Llama in that form, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    plain, folder = home.model("llama"), home.path / f"stored-{request.param}"
    config = BitsAndBytesConfig(**STORED[request.param])
    loaded = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return request.param, folder


def profile_of(folder: Path) -> ModelProfile:
    return build_profile(read_config(folder))


def held_bytes(model: Any) -> int:
    """What the card would hold: every tensor in blocks of 512 bytes, as torch's allocator rounds."""
    from qlora_planner.measure.meters import tensor_owners

    found = {}
    for parameter in model.parameters():
        for tensor in filter(lambda one: one is not None, (parameter, *tensor_owners.constants(parameter))):
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
    for buffer in model.buffers():
        found[buffer.data_ptr()] = buffer.untyped_storage().nbytes()
    return sum(-(-size // 512) * 512 for size in found.values())


def test_the_plan_counts_what_is_loaded(stored: tuple[str, Path]) -> None:
    name, folder = stored
    profile = profile_of(folder)
    run = resolve(profile, RunConfig()).run
    assert (run.method, run.quant) == ("qlora", name.partition("-")[0])
    model = load_folder(folder, json.loads((folder / "config.json").read_text()), run, "cpu")
    packed = [p for p in model.parameters() if type(p).__name__ in ("Params4bit", "Int8Params")]
    spared = 3 if name == "nf4-double" else 0
    assert len(packed) == 14 - spared == sum(group.count for group in profile.tensors if group.quantized)
    found = estimate(profile, run).components
    weights = sum(found[part] for part in ("quantized_weights", "quantization_constants", "unquantized_weights"))
    assert weights == held_bytes(model)


@pytest.mark.fault(
    "weights stored in 4 or 8 bits, `--method lora`, in `plan` and `estimate`",
    said="is stored as",
    does="will not run: `--method qlora`",
    exit=1,
    part="before",
)
def test_a_plan_keeps_what_is_stored(stored: tuple[str, Path]) -> None:
    name, folder = stored
    profile, card = profile_of(folder), load_gpu("24GB")
    run = plan(profile, card, RunConfig(seq_len=64), fixed={"seq_len"}).run
    assert (run.method, run.quant) == ("qlora", name.partition("-")[0])
    if run.quant != "int8":
        assert run.double_quant is (name == "nf4-double")
    (problem,) = resolve(profile, RunConfig(method="lora", seq_len=64)).problems
    assert (problem.code, problem.blocking, problem.fix) == ("stored-otherwise", True, "--method qlora")
    assert "is stored as" in (check_stored(folder, RunConfig(), "m") or "")


@pytest.mark.fault(
    "a checkpoint that brings another compute dtype (bitsandbytes' own default is float32)",
    does="it is loaded as stored and computes in the run's dtype",
    exit=0,
    part="begun",
)
def test_it_trains_in_the_dtype_of_the_run(stored: tuple[str, Path], make: Make) -> None:
    """The folders say float32, as BitsAndBytesConfig does where nobody says otherwise."""
    name, folder = stored
    run = RUN.with_(quant=name.partition("-")[0], double_quant=name == "nf4-double")
    facts, told = trained(make(weights=str(folder), run=run, quantized=14 - (3 if name == "nf4-double" else 0)))
    assert facts["outcome"] == "ok", facts["message"]
    losses = [facts["loss"] for event, facts in told if event == "step"]
    assert losses[-1] < losses[0] and len(losses) == SETTINGS.max_steps
    assert not [facts for event, facts in told if event == "note"]
