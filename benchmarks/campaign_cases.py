"""The runs of the campaign, decided before anything is measured: models, options, sizes, and each run's role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

# Larger models keep their widths and lose depth: a layer's memory is what is new about a family.
MOST_PARAMS = 9e9
FEWEST_LAYERS = 6
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Families whose one layer of experts is larger than other models: just enough layers to have one of each kind.
_DEPTH = {"deepseek_v3": 4, "minimax_m2": 3, "glm4_moe": 3, "llama4_text": 4, "qwen3_5_moe_text": 4, "qwen3_next": 4}

SEQ_LENS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCHES = (1, 2, 3, 4, 8, 16)
RANKS = (8, 16, 32, 64, 128, 256)
SMALL = ("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-360M")
MIXED = ("google/gemma-3-1b", "LiquidAI/LFM2-700M", "openai-community/gpt2-medium", "EleutherAI/pythia-1b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One run of the campaign as asked for: a catalogue model, options, and packages that it needs."""

    name: str
    model_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    whole: bool = False  # at full depth, however large


def role_of(model_id: str, config_sha256: str, run: Mapping[str, Any]) -> str:
    """`calibration` or `holdout`, by the parity of the hash of the run's canonical JSON."""
    text = json.dumps([model_id, config_sha256, run], sort_keys=True, separators=(",", ":"))
    return ("calibration", "holdout")[int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2]


def cut(config: Mapping[str, Any], params: int, model_type: str) -> dict[str, Any]:
    """`config` with as many layers as `MOST_PARAMS` allow, at least one of each kind that it lists."""
    found = dict(config)
    inner = found.get("text_config")
    if isinstance(inner, Mapping) and not any(name in found for name in _LAYERS):
        found["text_config"] = cut(inner, params, model_type)
        return found
    name = next(name for name in _LAYERS if isinstance(found.get(name), int))
    layers = found[name]
    kept = _DEPTH.get(model_type) or max(FEWEST_LAYERS, int(layers * MOST_PARAMS / params) // 2)
    patterns = [value for value in found.values() if isinstance(value, list | str) and len(value) == layers]
    while kept < layers and any(set(map(str, value)) - set(map(str, value[:kept])) for value in patterns):
        kept += 1
    if kept >= layers:
        return found
    found[name] = kept
    return {
        key: value[:kept] if isinstance(value, list | str) and len(value) == layers else value
        for key, value in found.items()
    }


def asked_runs(families: Mapping[str, str], optimizers: tuple[str, ...]) -> Iterator[Asked]:
    """Every run: `families` gives a model for each model type, `optimizers` are the names of the catalogue."""
    yield from _families(families)
    small, mixed = cycle(SMALL), cycle(MIXED)
    for name in optimizers:
        trainer = ("trl-sft", "hf-trainer")[len(name) % 2]
        yield Asked(name=f"optimizer-{name}", model_id=next(small), options={"optimizer": name, "trainer": trainer})
    for seq_len in SEQ_LENS:
        yield Asked(name=f"seq-{seq_len}", model_id=next(small), options={"seq_len": seq_len, "rank": 8})
        yield Asked(name=f"seq-{seq_len}-mixed", model_id=next(mixed), options={"seq_len": min(seq_len, 1024)})
    for batch in BATCHES:
        sizes = {"batch_size": batch, "seq_len": 512, "padding": False}
        yield Asked(name=f"batch-{batch}", model_id=next(small), options=sizes)
        yield Asked(name=f"batch-{batch}-hf", model_id=next(mixed), options={**sizes, "trainer": "hf-trainer"})
    for rank in RANKS:
        yield Asked(name=f"rank-{rank}", model_id=next(small), options={"rank": rank, "optimizer": "adamw_torch"})
    for name, options, needs in _OPTIONS:
        yield Asked(name=name, model_id=next(small), options=options, needs=needs)
        yield Asked(name=f"{name}-mixed", model_id=next(mixed), options={**options, "seq_len": 1024}, needs=needs)
    for name, options in _TASKS:
        yield Asked(name=name, model_id="meta-llama/Llama-3.2-1B", options=options)
    yield from _WHOLE


def _families(families: Mapping[str, str]) -> Iterator[Asked]:
    """Sizes differ from family to family, and no step has more than 4,096 tokens."""
    for index, (model_type, model_id) in enumerate(sorted(families.items())):
        batch = (1, 1, 2, 4, 1, 8)[index % 6]
        seq_len = min((512, 1024, 2048, 3072, 4096)[index % 5], 4096 // batch)
        options = {"seq_len": seq_len, "batch_size": batch, "rank": RANKS[index % len(RANKS)]}
        yield Asked(name=f"family-{model_type}", model_id=model_id, options=options)


_SHORT = {"seq_len": 1024}
_HF = {"trainer": "hf-trainer"}
_OPTIONS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("flat-constants", {**_SHORT, "double_quant": False}, ()),
    ("fp4", {**_SHORT, "quant": "fp4"}, ()),
    ("int8", {**_SHORT, "quant": "int8"}, ()),
    ("lora-16-bit", {**_SHORT, "method": "lora"}, ()),
    ("full", {**_SHORT, "method": "full", "optimizer": "adamw_torch"}, ()),
    ("full-loop-8bit", {**_SHORT, "method": "full", "trainer": "loop", "optimizer": "adamw_8bit"}, ()),
    ("eager", {**_SHORT, "attention": "eager"}, ()),
    ("eager-padded", {"seq_len": 512, "batch_size": 4, "attention": "eager"}, ()),
    ("flash", {**_SHORT, "attention": "flash_attention_2"}, ("flash_attn",)),
    ("hf", {**_SHORT, "trainer": "hf-trainer"}, ()),
    ("hf-no-upcast", {**_SHORT, "trainer": "hf-trainer", "upcast": False}, ()),
    ("loop", {**_SHORT, "trainer": "loop", "optimizer": "adamw_torch"}, ()),
    ("trl-upcast", {**_SHORT, "upcast": True}, ()),
    ("no-checkpointing", {**_SHORT, "gradient_checkpointing": False}, ()),
    ("re-entrant", {**_SHORT, "use_reentrant": True, "trainer": "hf-trainer"}, ()),
    ("padded", {"seq_len": 1024, "batch_size": 4, "padding": True}, ()),
    ("packed", {"seq_len": 1024, "batch_size": 2, "packing": True}, ()),
    ("offloaded", {"seq_len": 4096, "activation_offloading": True}, ()),
    ("liger", {**_SHORT, "liger": True}, ("liger_kernel",)),
    ("liger-hf", {**_SHORT, "liger": True, "trainer": "hf-trainer"}, ("liger_kernel",)),
    ("dora", {**_SHORT, "dora": True}, ()),
    ("float16-hf", {**_SHORT, "compute_dtype": "float16", "trainer": "hf-trainer"}, ()),
    ("float32", {**_SHORT, "compute_dtype": "float32", "trainer": "hf-trainer"}, ()),
    ("accumulated", {**_SHORT, "grad_accum": 4}, ()),
    ("expandable", {**_SHORT, "alloc_conf": "expandable_segments:True"}, ()),
    ("evaluated", {**_SHORT, "eval_batch_size": 4}, ()),
    ("evaluated-hf", {**_SHORT, "eval_batch_size": 2, "trainer": "hf-trainer"}, ()),
    ("no-dropout", {**_SHORT, "lora_dropout": 0.0}, ()),
    ("attention-only", {**_SHORT, "target_modules": "attention"}, ()),
)
_PAIRS = {"batch_size": 4, "prompt_len": 128, "completion_len": 384}
_ONLINE = {"batch_size": 8, "num_generations": 8, "prompt_len": 256, "completion_len": 256}
_TASKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dpo", {**_PAIRS, "trainer": "trl-dpo", "padding": False}),
    ("dpo-padded", {**_PAIRS, "trainer": "trl-dpo", "padding": True}),
    ("dpo-precomputed", {**_PAIRS, "trainer": "trl-dpo", "precompute_ref_log_probs": True}),
    ("kto", {**_PAIRS, "trainer": "trl-kto", "loss_type": "apo_zero_unpaired"}),
    ("reward", {"batch_size": 4, "seq_len": 512, "trainer": "trl-reward"}),
    ("classification", {"batch_size": 8, "seq_len": 256, "task": "classification", "num_labels": 4, **_HF}),
    ("grpo", {**_ONLINE, "trainer": "trl-grpo"}),
    ("grpo-compared", {**_ONLINE, "trainer": "trl-grpo", "beta": 0.04}),
    ("grpo-twice", {**_ONLINE, "trainer": "trl-grpo", "num_iterations": 2}),
    ("rloo-accumulated", {**_ONLINE, "trainer": "trl-rloo", "batch_size": 4, "grad_accum": 2, "num_generations": 4}),
)
_WHOLE = (
    Asked(name="whole-8b", model_id="meta-llama/Llama-3.1-8B", options={"seq_len": 4096, "rank": 32}),
    Asked(name="whole-8b-long", model_id="meta-llama/Llama-3.1-8B", options={"seq_len": 16384}),
    Asked(name="whole-7b-hf", model_id="Qwen/Qwen2.5-7B", options={"seq_len": 2048, "trainer": "hf-trainer"}),
    Asked(name="whole-7b-batch", model_id="mistralai/Mistral-7B-v0.1", options={"seq_len": 1024, "batch_size": 8}),
    Asked(name="whole-9b", model_id="google/gemma-2-9b", options={"seq_len": 2048}, whole=True),
    Asked(name="whole-14b", model_id="Qwen/Qwen2.5-14B", options={"seq_len": 4096}, whole=True),
    Asked(name="whole-20b-experts", model_id="openai/gpt-oss-20b", options={"seq_len": 2048}, whole=True),
    Asked(name="whole-30b-experts", model_id="Qwen/Qwen3-30B-A3B", options={"seq_len": 1024}, whole=True),
    Asked(name="whole-32b", model_id="Qwen/Qwen2.5-32B", options={"seq_len": 2048}, whole=True),
    Asked(name="whole-70b", model_id="meta-llama/Llama-3.1-70B", options={"seq_len": 1024}, whole=True),
)
