"""Derived operations of a step against torch's own counter, on real classes that really compute on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from qlora_planner import session  # noqa: E402
from qlora_planner.memory.options.resolve import Resolution, resolve  # noqa: E402
from qlora_planner.sources.configs import RawConfig, config_sha256  # noqa: E402
from qlora_planner.spec.model import ModelProfile  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from qlora_planner.speed.step import step_work  # noqa: E402
from qlora_planner.speed.work import evaluator, values  # noqa: E402

BATCH, SEQ, RANK = 2, 48, 4
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 320,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "tie_word_embeddings": False}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32, **SIZES},
    "gpt_neox": {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], **SIZES},
    "qwen3_moe": {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **SIZES, "head_dim": 16,
                  "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
                  "decoder_sparse_step": 1, "mlp_only_layers": []},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def profile_of(name: str) -> ModelProfile:
    config = dict(CONFIGS[name])
    raw = RawConfig(id=f"toy/{name}", config=config, sha256=config_sha256(config), origin="test")
    return session.profile_of(raw)


def counted(config: Mapping[str, Any], run: RunConfig) -> int:
    """What torch counts over one forward and backward of the real model in float32, attention written out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    made = AutoConfig.for_model(str(config["model_type"]), **fields)
    model: Any = AutoModelForCausalLM.from_config(
        made, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    base = model
    if run.method == "lora":
        import peft

        wanted = run.target_modules or "all-linear"
        targets: Any = wanted if wanted == "all-linear" else wanted.split(",")
        lora = peft.LoraConfig(r=RANK, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
        model = peft.get_peft_model(base, lora)
        base.enable_input_require_grads()
    if run.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.randint(0, 320, (BATCH, SEQ))
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore")
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"method": "full", "gradient_checkpointing": True}),
        ("llama", {"method": "lora", "gradient_checkpointing": False}),
        ("llama", {"method": "lora", "gradient_checkpointing": True}),
        ("qwen3", {"method": "lora", "gradient_checkpointing": True, "target_modules": "q_proj,v_proj"}),
        ("gpt_neox", {"method": "lora", "gradient_checkpointing": True}),
        ("qwen3_moe", {"method": "full", "gradient_checkpointing": True}),
    ],
)
def test_operations_are_those_that_torch_counts(name: str, options: dict[str, Any]) -> None:
    asked = RunConfig(
        quant="none", trainer="loop", compute_dtype="float32", attention="eager", batch_size=BATCH, seq_len=SEQ,
        rank=RANK, lora_dropout=0.0, padding=False, optimizer="adamw_torch",
        **{"target_modules": "all-linear" if options["method"] == "lora" else None, **options},
    )  # fmt: skip
    profile = profile_of(name)
    resolution = resolve(profile, asked)
    work = step_work(profile, resolution)
    sizes = values(BATCH, SEQ, RANK, work.head_tile_tokens, work.experts)
    derived = sum(
        evaluator(getattr(work.micro, f"{unit}_flops"))(sizes) for unit in ("half", "float", "int8", "attention")
    )
    assert derived == pytest.approx(counted(CONFIGS[name], resolution.run), rel=0.01)


@pytest.mark.parametrize("upcast", [False, True])
def test_launches_and_bytes_are_those_of_the_traced_operators(upcast: bool) -> None:
    """The tracer runs the installed transformers, PEFT, bitsandbytes and trl on fake CUDA tensors."""
    from benchmarks.speed_counts import compare

    found = compare("HuggingFaceTB/SmolLM2-1.7B", {"batch_size": 2, "padding": False, "upcast": upcast})
    for quantity in ("launches", "traffic"):
        real, derived = found[quantity]
        assert derived == pytest.approx(real, rel=0.03), quantity


@pytest.mark.parametrize(
    "model",
    [
        "deepseek-ai/DeepSeek-V2-Lite",  # values narrower than queries
        "google/gemma-4-E4B",  # heads of two widths
        "Qwen/Qwen3-30B-A3B",  # both halves of a gate in one stack, whose adapter has twice the rank
        "Qwen/Qwen3.5-4B",  # queries beside gates of their own width
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",  # attention that is called a mixer
    ],
)
def test_operations_of_other_classes_are_those_of_the_traced_operators(model: str) -> None:
    from benchmarks.speed_counts import compare

    found = compare(model, {"seq_len": 1024})
    for quantity in ("product_flops", "attention_flops"):
        real, derived = found[quantity]
        assert derived == pytest.approx(real, rel=0.04), quantity


@pytest.mark.parametrize(
    ("model", "quantity"),
    [
        ("swiss-ai/Apertus-8B-2509", "traffic"),  # an activation of many operators, which makes the stream float32
        ("nvidia/Nemotron-Mini-4B-Instruct", "launches"),  # a norm that is one kernel and casts the stream back
        ("ibm-granite/granite-4.0-h-micro", "traffic"),  # a scan of one group, in chunks of 256
        ("google/recurrentgemma-2b", "launches"),  # a recurrence that goes position by position
        ("meta-llama/Llama-4-Scout-17B-16E", "product_flops"),  # experts that are given every token
        ("google/gemma-4-26B-A4B", "product_flops"),  # eight experts a token, under a name of its own
        ("tiiuae/falcon-40b", "attention_flops"),  # keys of eight heads beside queries and values, and always a mask
        ("nvidia/Nemotron-H-8B-Base-8K", "attention_flops"),  # mixers that only feed forward
    ],
)
def test_what_no_tensor_shows_of_a_class_is_as_in_its_trace(model: str, quantity: str) -> None:
    from benchmarks.speed_counts import compare

    real, derived = compare(model, {"seq_len": 512})[quantity]
    assert derived == pytest.approx(real, rel=0.15)


def test_a_norm_for_each_head_moves_a_head() -> None:
    """stablelm-2-12b has a list of 32 norms for its queries and of 8 for its keys."""
    from benchmarks.speed_counts import compare

    real, derived = compare("stabilityai/stablelm-2-12b", {"seq_len": 1024})["traffic"]
    assert derived == pytest.approx(real, rel=0.05)


def test_a_reference_is_one_forward_more_and_a_pair_twice_the_tokens() -> None:
    profile = profile_of(next(iter(CONFIGS)))
    asked = RunConfig(quant="none", method="lora", trainer="loop", batch_size=BATCH, seq_len=SEQ, rank=RANK)
    alone = resolve(profile, asked)
    beside = replace(alone, trainer=replace(alone.trainer, passes=("policy", "reference")))
    paired = replace(alone, trainer=replace(alone.trainer, sequences_per_row=2))

    def flops(resolution: Resolution, batch: int = BATCH) -> float:
        work = step_work(profile, resolution)
        sizes = values(batch * work.sequences_per_row, SEQ, RANK, work.head_tile_tokens, work.experts)
        return float(evaluator(work.micro.half_flops)(sizes) + evaluator(work.micro.float_flops)(sizes))

    assert flops(paired) == flops(alone, 2 * BATCH)
    # Checkpointed LoRA: forward, forward again and backward through the weights are three parts, adapters aside.
    assert flops(beside) / flops(alone) == pytest.approx(4 / 3, rel=0.06)
