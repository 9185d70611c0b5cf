"""The builder on a CPU: real classes, real 4-bit weights, real trainers, a toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError, MissingError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import adapters, model
from qlora_planner.train.cpu_fallbacks import with_cpu_fallbacks
from qlora_planner.train.data import synthetic_rows
from qlora_planner.train.toy import toy_config
from qlora_planner.train.trainers import build_trainer

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

LLAMA = json.loads((Path(__file__).parents[1] / "data/truth/configs/llama-3.2-1b.json").read_text(encoding="utf-8"))
EXPERTS: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": None,
}  # fmt: skip


class Silent:
    """A watcher that does not care."""

    def generation_begins(self) -> None: ...

    def forward_begins(self) -> None: ...

    def backward_begins(self) -> None: ...

    def backward_ended(self) -> None: ...

    def optimizer_begins(self, model: Any) -> None: ...

    def optimizer_ended(self) -> None: ...

    def step_ended(self) -> None: ...


class Counting(Silent):
    """Counts what it hears, and looks at gradients when they are complete."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.with_gradient: set[str] = set()

    def forward_begins(self) -> None:
        self.heard.append("forward")

    def backward_begins(self) -> None:
        self.heard.append("backward")

    def optimizer_begins(self, model: Any) -> None:
        self.heard.append("optimizer")
        self.with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}

    def step_ended(self) -> None:
        self.heard.append("end")


def build(raw: dict[str, Any], **options: Any) -> tuple[Any, RunConfig]:
    """A toy model with adapters, and its settled run."""
    toy = toy_config(raw)
    run = with_cpu_fallbacks(RunConfig(seq_len=48, rank=4, **options), toy, {})
    loaded = model.load_random(toy, run, "cpu", model.random_weights(toy, "cpu"))
    return adapters.add_adapters(adapters.prepare(loaded, run), run), run


def trained(adapted: Any, run: RunConfig, folder: Path, steps: int = 1) -> Counting:
    watcher = Counting()
    rows = synthetic_rows(run, steps, model.vocabulary(adapted))
    trainer = build_trainer(adapted, run, rows=rows, steps=steps, folder=str(folder), device="cpu")
    trainer.train(steps, watcher)
    return watcher


@pytest.mark.parametrize("trainer", ["trl-sft", "hf-trainer", "loop"])
def test_a_4bit_step_of_a_llama(trainer: str, tmp_path: Path) -> None:
    adapted, run = build(LLAMA, trainer=trainer, grad_accum=2, lora_dropout=0.0)
    kinds = {type(p).__name__ for p in adapted.parameters()}
    assert "Params4bit" in kinds
    trained_names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    watcher = trained(adapted, run, tmp_path)
    once = [word for word in watcher.heard if word != "forward"]
    assert once == ["backward", "backward", "optimizer", "end"]
    assert watcher.heard[0] == "forward"
    assert watcher.with_gradient == trained_names
    # B starts at zero and moves in the first step; A then has no gradient yet to move it.
    moved = {name for name, p in adapted.named_parameters() if name in before and not torch.equal(before[name], p)}
    assert {name for name in before if "lora_B" in name} <= moved


def test_trl_casts_adapters_and_the_others_do_not(tmp_path: Path) -> None:
    for trainer, dtype in (("trl-sft", torch.bfloat16), ("hf-trainer", torch.float32)):
        adapted, run = build(LLAMA, trainer=trainer)
        trained(adapted, run, tmp_path)
        assert {p.dtype for n, p in adapted.named_parameters() if "lora_" in n} == {dtype}


def test_preparing_upcasts_what_is_not_quantised() -> None:
    plain, _ = build(LLAMA, upcast=False)
    upcast, _ = build(LLAMA, upcast=True)
    assert model.base_of(plain).model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.base_of(upcast).model.embed_tokens.weight.dtype == torch.float32


def test_an_expert_model_keeps_its_experts_in_16_bit(tmp_path: Path) -> None:
    adapted, run = build(EXPERTS, lora_dropout=0.0)
    experts = {type(p).__name__: p.dtype for n, p in adapted.named_parameters() if "experts" in n and "lora" not in n}
    assert set(experts.values()) == {torch.bfloat16} and "Params4bit" not in experts
    watcher = trained(adapted, run, tmp_path)
    assert any("experts" in name for name in watcher.with_gradient)


def test_a_tied_head_is_tied_and_weights_are_not_aliases() -> None:
    adapted, _ = build(LLAMA)
    base = model.base_of(adapted)
    assert base.config.tie_word_embeddings
    assert base.lm_head.weight.data_ptr() == base.model.embed_tokens.weight.data_ptr()
    pointers = [p.data_ptr() for p in adapted.parameters() if p.numel()]
    assert len(pointers) == len(set(pointers))


def test_a_checkpoint_holds_a_tied_head_where_it_is_said_to() -> None:
    toy = toy_config(LLAMA)
    assert ["lm_head.weight" in model.random_weights(toy, "cpu", tied_stored=stored) for stored in (False, True)] == [
        False,
        True,
    ]


def test_total_params_count_what_packing_stands_for() -> None:
    packed, _ = build(LLAMA)
    whole, _ = build(LLAMA, method="lora")
    assert adapters.total_params(packed) == adapters.total_params(whole) > 300_000
    assert adapters.trainable_params(packed) == adapters.trainable_params(whole)


def test_evaluation_and_saving(tmp_path: Path) -> None:
    for name in ("trl-sft", "loop"):
        adapted, run = build(LLAMA, trainer=name, eval_batch_size=3)
        rows = synthetic_rows(run, 1, 512)
        trainer = build_trainer(adapted, run, rows=rows, steps=1, folder=str(tmp_path / name), device="cpu")
        trainer.train(1, Silent())
        trainer.evaluate()
        trainer.save()
        assert (tmp_path / name / "saved" / "adapter_model.safetensors").stat().st_size > 1000


def test_packing_fills_rows_from_two_documents(tmp_path: Path) -> None:
    adapted, run = build(LLAMA, packing=True, batch_size=2)
    seen: list[tuple[int, ...]] = []
    adapted.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(
            (*kwargs["input_ids"].shape, int((kwargs["position_ids"] == 0).sum()))
        ),
        with_kwargs=True,
    )
    trained(adapted, run, tmp_path)
    assert seen == [(1, 2 * run.seq_len, 4)]


@pytest.mark.parametrize("option", ["activation_offloading", "packing"])
def test_an_option_that_a_trainer_lacks_is_refused(option: str, tmp_path: Path) -> None:
    adapted, run = build(LLAMA, trainer="loop", **{option: True})
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')}"):
        trained(adapted, run, tmp_path)


def test_a_full_fine_tune_trains_every_weight(tmp_path: Path) -> None:
    adapted, run = build(LLAMA, method="full", trainer="loop", optimizer="sgd")
    assert trained(adapted, run, tmp_path).with_gradient == {name for name, _ in adapted.named_parameters()}


def test_an_unknown_model_type_is_named() -> None:
    with pytest.raises(MissingError, match="'never-heard-of'"):
        model.model_config({"model_type": "never-heard-of"})
    with pytest.raises(InputError, match="model_type"):
        model.model_config({})


def test_importing_the_package_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from qlora_planner.train import adapters, data, model, options, cpu_fallbacks, toy, trainers;"
        "print(sorted({'torch', 'transformers', 'peft', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
