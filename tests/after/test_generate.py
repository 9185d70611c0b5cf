"""Trying a prompt on a real 4-bit toy with real adapters, and the memory that is said before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.cli.main import cli
from qlora_planner.errors import MissingError
from qlora_planner.measure.nvml import DeviceReading, LocalGpu
from qlora_planner.runs.after.forecast import adapter_bytes, cache_bytes
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import MIB
from tests.after.conftest import LLAMA, Make, llama, peft, torch, transformers

click_testing = pytest.importorskip("click.testing")
pytest.importorskip("bitsandbytes")

END = 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for this file: the toy is profiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def trained(make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a tokenizer of words and a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    base, adapter = make(llama())
    words = Tokenizer(
        WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, 256)}}, unk_token="<unk>")
    )
    words.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}w9 {{ m.content }} {% endfor %}w8"
    tokenizer.save_pretrained(adapter)
    run = {"quant": "nf4", "compute_dtype": "bfloat16"}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"model": {"folder": str(base)}, "run": run}))
    return tmp_path / "run"


def run(*args: object, **more: Any) -> Any:
    return click_testing.CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="qlora-plan", **more)


def expected(folder: Path, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens up to the end token, each from a forward over everything so far, without a cache."""
    base = json.loads((folder / "run.json").read_text())["model"]["folder"]
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    )
    model = peft.PeftModel.from_pretrained(loaded, folder / "adapter").eval()
    found = list(ids)
    with torch.no_grad():
        for _ in range(count):
            found.append(int(model(input_ids=torch.tensor([found])).logits[0, -1].argmax()))
            if found[-1] == END:
                break
    return found[len(ids) :]


def test_the_answer_alone_on_stdout_through_the_chat_template(trained: Path) -> None:
    result = run("generate", trained, "--prompt", "w20 w30", "--max-new-tokens", 5, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    wanted = expected(trained, [9, 20, 30, 8], 5)
    assert result.stdout.split() == [f"w{n}" for n in wanted if n > 2]
    assert any(line.startswith("qlora-plan: estimate: ") for line in result.stderr.splitlines())


def test_an_answer_ends_where_the_positions_of_the_model_do(trained: Path) -> None:
    folder = json.loads((trained / "run.json").read_text())["model"]["folder"]
    config = Path(folder) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 12}))
    result = run("generate", trained, "--prompt", "w20 w30", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["prompt_tokens"] + document["new_tokens"] <= 12
    assert "positions" not in result.stderr
    asked = run("generate", trained, "--prompt", "w20 w30", "--max-new-tokens", 20, "--device", "cpu")
    assert "may reach 24 tokens; the model knows 12 positions" in asked.stderr


def test_raw_json_from_stdin(trained: Path) -> None:
    result = run("generate", trained, "--prompt", "-", "--raw", "--max-new-tokens", 3, "--device", "cpu", "--json",
                 "--quiet", input="w20 w30 w40\n")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["schema"] == "qlora-plan/generation/1"
    assert (document["prompt_tokens"], document["new_tokens"], document["chat"]) == (3, 3, False)
    assert document["text"].split() == [f"w{n}" for n in expected(trained, [20, 30, 40], 3) if n > 2]
    parts = document["memory"]["forecast"]
    assert parts["peak_bytes"] >= parts["weights_bytes"] + parts["adapter_bytes"] + parts["cache_bytes"]


def test_a_run_of_the_cpu_is_tried_there_without_being_told(trained: Path) -> None:
    folder = trained
    record = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    (folder / "run.json").write_text(json.dumps(record | {"device": "cpu"}))
    result = run("generate", folder, "--prompt", "w20 w30", "--max-new-tokens", 2)
    assert result.exit_code == 0, result.stderr
    assert "trained on the CPU" in result.stderr
    (folder / "run.json").write_text(json.dumps(record | {"device": "cuda"}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("qlora_planner.measure.nvml.local_gpu", no_card)
        result = run("generate", folder, "--prompt", "w20 w30")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "--device cpu" in result.stderr


def no_card() -> LocalGpu:
    raise MissingError("no card here")


def test_faults_are_one_line(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = GpuSpec(name="x", label="Tiny card", memory_bytes=300 * MIB, form="local", bf16=True)
    reading = DeviceReading(index=0, name="x", uuid=None, total_bytes=None, free_bytes=None, used_bytes=None)
    there = LocalGpu(spec=small, reserve_bytes=0, reading=reading)
    with monkeypatch.context() as patched:
        patched.setattr("qlora_planner.measure.nvml.local_gpu", lambda: there)
        result = run("generate", trained, "--prompt", "w20", "--quiet")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "does not fit" in result.stderr
        assert "Tiny card has" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    for args, code, says in (
        (("--prompt", " "), 2, "is empty"),
        (("--prompt", "w20", "--max-new-tokens", "0"), 2, "max-new-tokens"),
        (("--prompt", "w20", "--device", "cpu", "--base", "./nowhere"), 2, "no folder here"),
    ):
        result = run("generate", trained, *args)
        assert (result.exit_code, result.stdout) == (code, ""), result.stderr
        assert says in result.stderr


def held(model: Any, tokens: int) -> int:
    """What a real cache of a real forward holds."""
    with torch.no_grad():
        kept = model(input_ids=torch.zeros((1, tokens), dtype=torch.long), use_cache=True).past_key_values
    return sum(t.numel() * t.element_size() for layer in kept.layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize("tokens", [1, 40, 100])
def test_the_cache_is_what_the_class_keeps(tokens: int) -> None:
    raw = {"model_type": "llama", **LLAMA}
    assert cache_bytes(raw, tokens) == held(llama(), tokens)
    sizes = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    sliding = {
        **sizes,
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
    }
    gemma = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sliding)).to(torch.bfloat16)
    assert cache_bytes({"model_type": "gemma3_text", **sliding}, tokens) == held(gemma, tokens)


def test_adapters_are_loaded_in_float32(make: Make) -> None:
    base, adapter = make(llama())
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    loaded = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)
    assert adapter_bytes(adapter) == loaded
