"""Merging by shards against PEFT's own merge of the whole model: the same bits, the same files, nothing half-done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.cli.main import cli
from qlora_planner.runs.after import merge as merging
from tests.after.conftest import Make, gpt2, llama, mixtral, peft, torch, transformers

click_testing = pytest.importorskip("click.testing")


def run(*args: object) -> Any:
    return click_testing.CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="qlora-plan")


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval().float()(input_ids=torch.arange(24).reshape(2, 12)).logits


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (llama, {}),
    "rslora, ranks by name": (
        llama,
        {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 5}},
    ),
    "dora": (llama, {"use_dora": True}),
    "head trained whole": (llama, {"modules_to_save": ["lm_head"]}),
    "embedding adapted": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "biases": (lambda: llama(attention_bias=True), {"bias": "all"}),
    "tied": (lambda: llama(tie_word_embeddings=True), {}),
    "Conv1D": (gpt2, {"fan_in_fan_out": True}),
    "experts left alone": (mixtral, {"target_modules": ["q_proj", "v_proj"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_as_peft(make: Make, tmp_path: Path, case: str) -> None:
    build, options = CASES[case]
    base, adapter = make(build(), shard="40KB", **options)
    result = run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "merged", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["tensors"]["merge"] > 0
    assert document["untied"] == []
    ours = loaded(tmp_path / "merged")
    theirs = peft.PeftModel.from_pretrained(loaded(base), adapter).merge_and_unload()
    expected = dict(theirs.named_parameters())
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []
    untouched = dict(loaded(base).named_parameters())
    assert any(not torch.equal(found[name], untouched[name]) for name in found)
    if (base / "model.safetensors.index.json").exists():
        before, after = (
            json.loads((f / "model.safetensors.index.json").read_text()) for f in (base, tmp_path / "merged")
        )
        assert after["weight_map"] == before["weight_map"]
        assert after["metadata"]["total_size"] == before["metadata"]["total_size"]


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head", "q_proj"]}, {"modules_to_save": ["embed_tokens"]}])
def test_a_head_that_shares_its_weight_gets_its_own(make: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    """PEFT's own merge adds to the shared tensor, which changes the other end of the model as well."""
    base, adapter = make(llama(tie_word_embeddings=True), **options)
    with_adapter = logits(peft.PeftModel.from_pretrained(loaded(base), adapter))
    result = run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert "no longer tied" in result.stdout
    ours = loaded(tmp_path / "merged")
    assert ours.config.tie_word_embeddings is False
    assert not torch.equal(ours.lm_head.weight, ours.model.embed_tokens.weight)
    torch.testing.assert_close(logits(ours), with_adapter, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("build", [llama, lambda: llama(tie_word_embeddings=True), gpt2], ids=["llama", "tied", "gpt2"])
def test_the_merged_model_answers_as_base_and_adapter(make: Make, tmp_path: Path, build: Any) -> None:
    base, adapter = make(build())
    with_adapter = logits(peft.PeftModel.from_pretrained(loaded(base), adapter))
    alone = logits(loaded(base))
    assert run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "merged").exit_code == 0
    found = logits(loaded(tmp_path / "merged"))
    # bfloat16 has eight bits; the adapters move the logits by far more than rounding the sum does.
    assert (found - with_adapter).abs().max() < 0.05 * (alone - with_adapter).abs().max()


def test_float16_and_the_config_says_so(make: Make, tmp_path: Path) -> None:
    base, _ = make(llama())
    assert (
        run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "m", "--dtype", "float16").exit_code == 0
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.float16}


def test_run_json_names_the_base_and_the_tokenizer_of_the_run_counts(make: Make, tmp_path: Path) -> None:
    base, adapter = make(llama())
    (tmp_path / "run" / "run.json").write_text(json.dumps({"model": {"id": "x/y", "folder": str(base)}, "run": {}}))
    (base / "tokenizer_config.json").write_text('{"from": "base"}')
    (base / "special_tokens_map.json").write_text("{}")
    (adapter / "tokenizer_config.json").write_text('{"from": "run"}')
    result = run("merge", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    merged = tmp_path / "run-merged"
    assert json.loads((merged / "tokenizer_config.json").read_text()) == {"from": "run"}
    assert not (merged / "special_tokens_map.json").exists()
    assert not (merged / "adapter_config.json").exists()


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_refusals_are_one_line_and_leave_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = make(llama())
    target = tmp_path / "m"

    def refused(code: int, says: str, *more: object) -> None:
        result = run("merge", tmp_path / "run", "--output", target, *more)
        assert result.exit_code == code, result.stderr
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert says in result.stderr
        assert not list(tmp_path.glob("m*"))

    four = tmp_path / "llama-bnb-4bit"
    shutil.copytree(base, four)
    _edit(four / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(2, f"by its name that is {tmp_path / 'llama'}", "--base", four)
    refused(2, "no folder here and no Hub id", "--base", "./nowhere")
    refused(3, "HF_HUB_OFFLINE", "--base", "nobody/nothing")
    wider = tmp_path / "wider"
    llama(hidden_size=96).save_pretrained(wider)
    refused(2, "size mismatch", "--base", wider)
    (tmp_path / "empty").mkdir()
    shutil.copy(base / "config.json", tmp_path / "empty")
    refused(3, "holds no weights", "--base", tmp_path / "empty")
    with monkeypatch.context() as patched:
        patched.setattr("qlora_planner.runs.after.host.available_bytes", lambda: 1000)
        refused(1, "does not fit: merging works with", "--base", base)
    with monkeypatch.context() as patched:
        patched.setattr("qlora_planner.runs.after.host.free_disk_bytes", lambda folder: 1000)
        refused(1, "the disk has", "--base", base)
    for changes, says in (
        ({"target_parameters": ["experts.gate_up_proj"]}, "fused experts"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"init_lora_weights": "pissa"}, "changes the base too"),
        ({"peft_type": "IA3"}, "LoRA alone"),
    ):
        before = (adapter / "adapter_config.json").read_text()
        _edit(adapter / "adapter_config.json", **changes)
        refused(2, says, "--base", base)
        (adapter / "adapter_config.json").write_text(before)


@pytest.mark.fault(
    "`merge` into a folder that is there",
    said="--force writes over it",
    does="with it, what a merge did not write stays in `DIR.old`",
    exit=2,
    part="after",
)
def test_what_is_there_is_kept_unless_forced_and_is_a_model(make: Make, tmp_path: Path) -> None:
    base, _ = make(llama())
    target = tmp_path / "m"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    args = ("merge", tmp_path / "run", "--base", base, "--output", target)
    assert "--force writes over it" in run(*args).stderr
    assert "is no model folder" in run(*args, "--force").stderr
    assert (target / "thesis.txt").exists()
    shutil.rmtree(target)
    assert run(*args).exit_code == 0
    (target / "thesis.txt").write_text("years of work")
    assert run(*args, "--force").exit_code == 0
    assert run(*args, "--force").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("m*")) == ["m", "m.old"]
    assert [path.name for path in (tmp_path / "m.old").iterdir()] == ["thesis.txt"]  # a merge did not write it


@pytest.mark.fault(
    "`merge --force` over a model that no merge wrote",
    said="merge did not write model.safetensors",
    exit=2,
    part="after",
)
def test_a_model_that_no_merge_wrote_is_not_written_over(make: Make, tmp_path: Path) -> None:
    base, _ = make(llama())
    target = tmp_path / "m"
    shutil.copytree(base, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    args = ("merge", tmp_path / "run", "--base", base, "--output")
    assert "merge did not write model.safetensors" in run(*args, target, "--force").stderr
    (tmp_path / "link").symlink_to(target)
    assert "is a link; name the folder itself" in run(*args, tmp_path / "link", "--force").stderr
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


@pytest.mark.fault("`merge` is interrupted", does="nothing is left", exit=130, part="after")
def test_an_interrupt_leaves_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = make(llama(), shard="40KB")
    real = merging._write_shard
    done: list[Path] = []

    def interrupted(*args: Any) -> None:
        if done:
            raise KeyboardInterrupt
        real(*args)
        done.append(args[1])
        assert done[0].exists()

    monkeypatch.setattr(merging, "_write_shard", interrupted)
    result = run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "m")
    assert result.exit_code == 130
    assert not list(tmp_path.glob("m*"))


def test_a_broken_adapter_is_named(make: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, adapter = make(llama())
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"].fill_(float("nan"))
    save_file(tensors, path)
    result = run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "m")
    assert result.exit_code == 2
    assert "model.layers.1.mlp.up_proj.weight: not finite" in result.stderr


def test_keys_without_the_prefix_of_the_class(make: Make, tmp_path: Path) -> None:
    """As GPT-2 lies on the Hub; the merged file keeps the names of the base's."""
    from safetensors.torch import load_file, save_file

    base, adapter = make(gpt2())
    path = base / "model.safetensors"
    bare = {key.removeprefix("transformer."): tensor for key, tensor in load_file(path).items()}
    save_file(bare, path, metadata={"format": "pt"})
    result = run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "m")
    assert result.exit_code == 0, result.stderr
    assert load_file(tmp_path / "m" / "model.safetensors").keys() == bare.keys()
    theirs = dict(peft.PeftModel.from_pretrained(loaded(base), adapter).merge_and_unload().named_parameters())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded(tmp_path / "m").named_parameters())


def test_adapted_experts_are_refused_by_name(make: Make, tmp_path: Path) -> None:
    base, _ = make(mixtral(), target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    result = run("merge", tmp_path / "run", "--base", base, "--output", tmp_path / "m")
    assert result.exit_code == 2
    assert "fused experts" in result.stderr
