"""What an H200 refused, and what it ran, against what is predicted from the shipped profiles.

tests/data/refusals/h200-toys.json: two training steps of a small model of each type, real libraries (torch 2.11,
transformers 5.17, peft 0.21, bitsandbytes 0.50.2, trl 1.16), per option: null where it ran, else the exception.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.session import load_gpu
from qlora_planner.spec.codec import profile_from_dict
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).parents[2]
SEEN: dict[str, dict[str, str | None]] = json.loads(
    (ROOT / "tests/data/refusals/h200-toys.json").read_text(encoding="utf-8")
)
HF, LOOP, TRL = {"trainer": "hf-trainer"}, {"trainer": "loop"}, {"trainer": "trl-sft"}
PLAIN: dict[str, Any] = {"lora_dropout": 0.0}
RUNS: dict[str, dict[str, Any]] = {
    "base": TRL, "drop0": TRL | PLAIN, "dora": TRL | {"dora": True}, "dora0": TRL | PLAIN | {"dora": True},
    "dora_int8": TRL | PLAIN | {"dora": True, "quant": "int8"},
    "attn": TRL | {"target_modules": "attention"}, "attn_dora": TRL | {"target_modules": "attention", "dora": True},
    "trl_re": TRL | PLAIN | {"use_reentrant": True}, "hf": HF | PLAIN, "hf_re": HF | PLAIN | {"use_reentrant": True},
    "hf_re_up": HF | PLAIN | {"use_reentrant": True, "upcast": True}, "hf_up": HF | PLAIN | {"upcast": True},
    "trl_up": TRL | PLAIN | {"upcast": True}, "loop": LOOP | PLAIN, "loop_up": LOOP | PLAIN | {"upcast": True},
    "loop_re": LOOP | PLAIN | {"use_reentrant": True},
    "fp16_trl": TRL | PLAIN | {"compute_dtype": "float16"},
    "fp16_trl_int8": TRL | PLAIN | {"compute_dtype": "float16", "quant": "int8"},
    "fp16_trl_lora": TRL | PLAIN | {"compute_dtype": "float16", "method": "lora"},
    "fp16_hf": HF | PLAIN | {"compute_dtype": "float16"},
    "fp16_hf_lora": HF | PLAIN | {"compute_dtype": "float16", "method": "lora"},
    "fp16_hf_full": HF | {"compute_dtype": "float16", "method": "full"},
    "fp16_hf_save": HF | PLAIN | {"compute_dtype": "float16", "modules_to_save": "lm_head"},
    "fp16_loop": LOOP | PLAIN | {"compute_dtype": "float16"},
    "full_loop_fp16": LOOP | {"compute_dtype": "float16", "method": "full"},
    "fp32_trl": TRL | PLAIN | {"compute_dtype": "float32"}, "fp32_hf": HF | PLAIN | {"compute_dtype": "float32"},
    "full_trl": TRL | {"method": "full"}, "full_hf": HF | {"method": "full"}, "full_loop": LOOP | {"method": "full"},
    "full_hf_up": HF | {"method": "full", "upcast": True},
    "int8": TRL | PLAIN | {"quant": "int8"}, "int8_hf": HF | PLAIN | {"quant": "int8"},
    "int8_loop": LOOP | PLAIN | {"quant": "int8"}, "int8_up": HF | PLAIN | {"quant": "int8", "upcast": True},
    "lora": TRL | PLAIN | {"method": "lora"}, "lora_drop": TRL | {"method": "lora"},
    "lora_hf_up": HF | PLAIN | {"method": "lora", "upcast": True},
    "eager": TRL | PLAIN | {"attention": "eager"}, "nogc": TRL | PLAIN | {"gradient_checkpointing": False},
    "nogc_re": TRL | PLAIN | {"gradient_checkpointing": False, "use_reentrant": True},
    "pad": TRL | PLAIN | {"batch_size": 2, "padding": True},
    "pad_eager": TRL | PLAIN | {"batch_size": 2, "padding": True, "attention": "eager"},
    "packing": TRL | PLAIN | {"packing": True, "batch_size": 2},
    "offload": TRL | PLAIN | {"activation_offloading": True},
    "offload_nogc": TRL | PLAIN | {"activation_offloading": True, "gradient_checkpointing": False},
    "liger": TRL | PLAIN | {"liger": True}, "liger_hf": HF | PLAIN | {"liger": True},
    "save_head": TRL | PLAIN | {"modules_to_save": "lm_head"},
    "save_head_hf": HF | PLAIN | {"modules_to_save": "lm_head"},
    "save_both": TRL | PLAIN | {"modules_to_save": "lm_head,embed_tokens"},
    "target_head": TRL | PLAIN | {"target_modules": "lm_head"},
    "target_head_hf": HF | PLAIN | {"target_modules": "lm_head"},
    "eval": TRL | PLAIN | {"eval_batch_size": 2}, "eval_hf": HF | PLAIN | {"eval_batch_size": 2},
    "long": TRL | PLAIN,
}  # fmt: skip
H200 = load_gpu("h200", profiles=ROOT / "profiles")


def _profiles() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "profiles/models").glob("*.json")):
        profile = profile_from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
        found.setdefault(profile.model_type, profile)
    return found


PROFILES = _profiles()


def _run(case: str, profile: Any) -> RunConfig:
    """The row's run: every choice explicit, as it was given to the real libraries."""
    given = {"attention": "sdpa", "target_modules": "all-linear", "lora_dropout": 0.05, "seq_len": 96} | RUNS[case]
    given = {"quant": "none" if given.get("method") in ("lora", "full") else "nf4"} | given
    if case == "long":
        given["seq_len"] = int(1.5 * (profile.dims.get("max_position_embeddings") or 4096))
    return RunConfig(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", sorted(SEEN))
def test_predicted_as_seen(model_type: str) -> None:
    profile = PROFILES[model_type]
    wrong = []
    for case, raised in SEEN[model_type].items():
        if case.startswith("optim:"):
            continue
        problems = [p for p in resolve(profile, _run(case, profile), H200).problems if p.blocking]
        if bool(problems) != (raised is not None):
            wrong.append(f"{case}: {raised or 'ran'}, predicted {[p.message for p in problems] or 'to run'}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("case", [name for name in SEEN["llama"] if name.startswith("optim:")])
def test_optimizers_as_seen(case: str) -> None:
    from qlora_planner.catalog import OPTIMIZERS

    name, raised = case.partition(":")[2], SEEN["llama"][case]
    if name not in OPTIMIZERS:
        assert raised is not None, f"{name} ran on an H200 and is not known here"
        return
    # The small models' adapters have fewer elements than bitsandbytes keeps in 8 bits, as rank 2 has here.
    run = RunConfig(optimizer=name, trainer="trl-sft", lora_dropout=0.0, seq_len=96, rank=1 if "8bit" in name else 8)
    problems = [p for p in resolve(PROFILES["llama"], run, H200).problems if p.blocking]
    assert bool(problems) == (raised is not None), raised


@pytest.mark.parametrize("model_type", sorted(PROFILES))
def test_auto_resolves_to_what_runs(model_type: str) -> None:
    profile = PROFILES[model_type]
    limit = int(profile.dims.get("position_rows") or 2048)
    resolution = resolve(profile, RunConfig(seq_len=min(limit, 2048)), H200)
    assert not [p.message for p in resolution.problems if p.blocking]
