"""The audit against real classes: small configs, built as loading would build them."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.memory.audit.audit import Audit, AuditRow, audit
from qlora_planner.memory.options.stored_checkpoint import checkpoint_of
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.report.audit import render_audit
from qlora_planner.report.parts.theme import Theme
from qlora_planner.sources.configs import RawConfig, config_sha256
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

pytest.importorskip("torch")

_SIZES = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 4096}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "model_type": "llama", "intermediate_size": 512, "num_key_value_heads": 2},
    "tied": {**_SIZES, "model_type": "llama", "intermediate_size": 512, "tie_word_embeddings": True},
    "falcon": {**_SIZES, "model_type": "falcon", "architectures": ["FalconForCausalLM"]},
    "experts": {
        **_SIZES, "model_type": "qwen3_moe", "intermediate_size": 512, "moe_intermediate_size": 128, "num_experts": 16,
        "num_experts_per_tok": 2, "num_key_value_heads": 2, "head_dim": 64,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 3, "n_head": 4, "vocab_size": 4096, "n_positions": 128},
}  # fmt: skip
RUNS = [RunConfig(quant=quant, double_quant=double) for quant in ("nf4", "int8") for double in (True, False)]


def profile_of(name: str, **extra: Any) -> ModelProfile:
    from tests.profiles import unprobed

    raw = {**CONFIGS[name], **extra}
    return unprobed(RawConfig(id=f"test/{name}", config=raw, sha256=config_sha256(raw), origin="file"))


@pytest.fixture(scope="module")
def profiles() -> dict[str, ModelProfile]:
    return {name: profile_of(name) for name in CONFIGS}


def row_of(found: Audit, role: str, reason: str) -> AuditRow:
    (row,) = (row for row in found.rows if row.role == role and row.reason.partition(":")[0] == reason)
    return row


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.quant}-{run.double_quant}")
def test_totals_are_those_of_static_memory(profiles: dict[str, ModelProfile], name: str, run: RunConfig) -> None:
    profile = profiles[name]
    found = audit(profile, run)
    plain, upcast = (
        static_memory(Placement(profile, run.with_(compute_dtype="bfloat16", upcast=cast))) for cast in (False, True)
    )
    assert found.loaded_bytes == plain.after_load
    assert found.prepared_bytes == upcast.after_prepare
    assert sum(row.params for row in found.rows) == profile.params
    assert sum(row.tensors for row in found.rows) == sum(group.count for group in profile.tensors)
    assert all(row.cost_bytes >= 0 and row.prepare_cost_bytes >= 0 for row in found.rows)


def test_llama(profiles: dict[str, ModelProfile]) -> None:
    found = audit(profiles["llama"], RunConfig())
    linear = row_of(found, "linear", "quantized")
    assert linear.tensors == 7 * 3
    assert "4 bits" in linear.why
    head = row_of(found, "output_head", "output_head")
    assert head.loaded_bytes == 2 * 256 * 4096
    assert head.prepared_bytes == 4 * 256 * 4096
    assert head.quantized_bytes is not None
    assert head.cost_bytes == head.loaded_bytes - head.quantized_bytes
    assert "will be 4-bit; embeddings and output head stay 16-bit" in found.headline
    assert "8-bit" in audit(profiles["llama"], RunConfig(quant="int8")).headline


def test_falcon_gets_nothing(profiles: dict[str, ModelProfile]) -> None:
    found = audit(profiles["falcon"], RunConfig())
    assert found.headline == "falcon: nothing will be 4-bit"
    assert found.quantized_params == 0
    row = row_of(found, "linear", "linear_subclass")
    assert "FalconLinear is a subclass of nn.Linear" in row.why
    assert "replaces only nn.Linear itself" in row.why
    assert row.cost_bytes > row.loaded_bytes / 2


def test_fused_experts_are_named(profiles: dict[str, ModelProfile]) -> None:
    found = audit(profiles["experts"], RunConfig())
    row = row_of(found, "experts", "fused_experts")
    assert "3-D parameters" in row.why
    assert row.names[0].endswith("experts.gate_up_proj")
    assert "only " in found.headline
    assert "fused experts" in found.headline


def test_a_tied_head_costs_nothing(profiles: dict[str, ModelProfile]) -> None:
    row = row_of(audit(profiles["tied"], RunConfig()), "output_head", "tied")
    assert (row.params, row.loaded_bytes, row.prepared_bytes, row.cost_bytes) == (0, 0, 0, 0)
    assert "tied with model.embed_tokens.weight" in row.why


def test_conv1d_is_quantised(profiles: dict[str, ModelProfile]) -> None:
    row = row_of(audit(profiles["gpt2"], RunConfig()), "linear", "quantized")
    assert row.tensors == 4 * 3
    assert "Conv1D" in row.why


@pytest.mark.parametrize("options", [{"quant": "none", "method": "lora"}, {"method": "lora"}, {"method": "full"}])
def test_a_run_that_quantises_nothing_is_no_question(
    profiles: dict[str, ModelProfile], options: dict[str, str]
) -> None:
    with pytest.raises(InputError, match="quantises nothing"):
        audit(profiles["llama"], RunConfig(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "works", "says"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, True, "already 4-bit by bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, True, "already 8-bit by bitsandbytes"),
        ({"quant_method": "mxfp4"}, False, "MXFP4"),
        ({"quant_method": "fp8"}, False, "FP8"),
        ({"quant_method": "gptq", "bits": 4}, False, "GPTQ"),
        ({"quant_method": "awq", "bits": 4}, False, "AWQ"),
        ({"quant_method": "quip3"}, False, "quip3"),
        (None, None, ""),
    ],
)
def test_checkpoints_that_are_already_quantised(stored: dict[str, Any] | None, works: bool | None, says: str) -> None:
    profile = profile_of("llama", **({"quantization_config": stored} if stored else {}))
    found = audit(profile, RunConfig())
    checkpoint = checkpoint_of(profile)
    assert found.checkpoint == checkpoint
    if works is None:
        assert checkpoint is None
        return
    assert checkpoint is not None
    assert checkpoint.works is works
    assert says in checkpoint.message
    assert works or checkpoint.fix
    assert works or "bitsandbytes cannot be put on top" in found.headline
    screen = render_audit(found, Theme())
    assert says in " ".join(screen.split())
    assert max(map(len, screen.splitlines())) <= 80


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("explain", [False, True])
def test_the_screen(profiles: dict[str, ModelProfile], name: str, explain: bool) -> None:
    found = audit(profiles[name], RunConfig())
    text = render_audit(found, Theme(unicode=True), explain=explain)
    assert " ".join(text.split()).startswith(found.headline)
    assert max(map(len, text.splitlines())) <= 80
    assert "prepare_model_for_kbit_training" in text
    if explain:
        assert all(row.names[0] in text for row in found.rows)


def test_json(profiles: dict[str, ModelProfile]) -> None:
    document = audit(profiles["experts"], RunConfig()).to_dict()
    assert document["schema"] == "qlora-plan/audit/1"
    assert document["totals"]["cost_bytes"] == sum(row["cost_bytes"] for row in document["rows"])
    assert document["checkpoint"] is None
