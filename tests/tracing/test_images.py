"""Runs with images, traced through the model's own tower: against an H200, and cut down against whole."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.catalog import OPTIMIZERS
from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.errors import InputError
from qlora_planner.memory.allocator.caching import CachingAllocator
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer
from qlora_planner.profiling.build import build_profile
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.profiling.tracing import layers
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Segment, Tape
from tests.profiles import Unasked
from tests.tracing.test_measured import AS_MEASURED, ROOT, training
from tests.truth import FOLDER, config_path
from tests.wide import some

H200 = parse_gpu("h200", GpuCatalogue([ROOT / "profiles" / "gpus"]))
ROWS = [json.loads(line) for line in (FOLDER / "vision-open.jsonl").read_text(encoding="utf-8").splitlines()]

_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024, "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
}  # fmt: skip
_IDS = {"image_token_id": 500, "vision_start_token_id": 501, "vision_end_token_id": 502, "video_token_id": 503}
QWEN25: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "text_config": _TEXT, **_IDS,
    "vision_config": {
        "depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1],
    },
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "model_type": "qwen3_vl", "text_config": _TEXT, **_IDS,
    "vision_config": {
        "depth": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
        "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2],
    },
}  # fmt: skip
_TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
_PLAIN = {name: value for name, value in _TEXT.items() if name != "rope_parameters"}
_CLIP = {**_TOWER, "model_type": "clip_vision_model", "projection_dim": 32}
_SIGLIP = {**_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 64}
_SPLIT = {
    "text_config": {**_PLAIN, "model_type": "llama"}, "image_token_id": 500, "scale_factor": 2, "pad_token_id": 0,
    "vision_config": {**_TOWER, "image_size": 64, "patch_size": 16},
}  # fmt: skip
# Layers of several kinds, and layers that the tower feeds.
CUT: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": QWEN25,
    "qwen3_vl": QWEN3,
    "gemma3": {
        "text_config": {**_PLAIN, "sliding_window": 64}, "vision_config": _SIGLIP, "image_token_index": 500,
        "mm_tokens_per_image": 4,
    },
    "mllama": {
        "text_config": {
            **_PLAIN, "model_type": "mllama_text_model", "cross_attention_layers": [1, 3, 5], "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "vision_config": {
            **_TOWER, "num_global_layers": 2, "intermediate_layers_indices": [0, 1], "vision_output_dim": 96,
        },
        "image_token_index": 512,
    },
}  # fmt: skip
# Everyone else: what a picture of 112 x 90 pixels is, in tokens.
OTHERS: dict[str, tuple[int, dict[str, Any]]] = {
    "llava": (16, {"text_config": {**_PLAIN, "model_type": "llama"}, "vision_config": _CLIP, "image_token_index": 500}),
    "llava_next": (
        70,
        {
            "text_config": {**_PLAIN, "model_type": "mistral"}, "vision_config": _CLIP, "image_token_index": 500,
            "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
        },
    ),
    "paligemma": (
        16,
        {
            "text_config": {**_PLAIN, "model_type": "gemma"}, "vision_config": _SIGLIP, "image_token_index": 500,
            "projection_dim": 64, "hidden_size": 64,
        },
    ),
    "mistral3": (
        16,
        {
            "text_config": {**_PLAIN, "model_type": "mistral"}, "image_token_index": 10, "spatial_merge_size": 2,
            "vision_config": {**_TOWER, "model_type": "pixtral", "image_size": 1540, "head_dim": 16},
        },
    ),
    "smolvlm": (68, _SPLIT),
    "idefics3": (68, _SPLIT),
    "internvl": (
        52,
        {
            "text_config": {**_PLAIN, "model_type": "qwen2"}, "image_token_id": 500, "image_seq_length": 4,
            "vision_config": {**_TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        },
    ),
}  # fmt: skip
for _name, _config in CUT.items():
    _config["model_type"] = _name


def source_of(config: dict[str, Any]) -> Any:
    return SimpleNamespace(config=config, id=config["model_type"], sha256="0" * 64)


def whole(config: dict[str, Any]) -> ModelProfile:
    return build_profile(source_of(config), prober=Unasked(), whole_model=True)


def resolved(profile: ModelProfile, **options: Any) -> Resolution:
    return resolve(profile, RunConfig(**{"trainer": "hf-trainer", "seq_len": 96, "image_size": "140x112", **options}))


def key(segment: Segment) -> tuple[str, str]:
    return segment.stage, segment.name


def phases(resolution: Resolution, tape: Tape) -> dict[str, tuple[int, int]]:
    player = TraceReplayer(CachingAllocator(), prepare_trace(tape, True), [0] * len(COMPONENTS))
    player.play([], resolution.run, resolution.trainer, OPTIMIZERS["sgd"])
    assert player.lost == 0
    return {name: (phase.peak.allocated, phase.peak.live) for name, phase in player.phases.items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_a_measured_run_takes_what_was_measured(row: dict[str, Any]) -> None:
    said, measured = row["run"], row["measured_bytes"]
    config = json.loads(config_path(row["model"]).read_text(encoding="utf-8"))
    profile = whole(config)
    _, height, width = said["image_grid_thw"]
    run = RunConfig(
        trainer="hf-trainer", seq_len=said["tokens"], batch_size=said["per_device_train_batch_size"],
        rank=said["lora_rank"], alpha=32, lora_dropout=said["lora_dropout"], optimizer=said["optimizer"],
        image_size=f"{width * 14}x{height * 14}",
    )  # fmt: skip
    answer = estimate(profile, run, H200, tape=trace_run(source_of(config), resolve(profile, run, H200), H200))
    assert answer.run.image_tokens == height * width // 4
    assert answer.model.trainable_params == row["trainable_params"]
    assert answer.static.after_load == measured["load_alloc"]
    assert answer.static.after_adapters == answer.static.before_training == measured["before_train_alloc"]
    load = next(phase for phase in answer.phases if phase.name == "load")
    assert load.allocated_bytes == pytest.approx(measured["load_peak"], rel=1e-5)
    allocated, reserved = training(answer)
    assert allocated == pytest.approx(measured["train_peak"], rel=0.0005 if AS_MEASURED else 0.005)
    assert reserved == pytest.approx(measured["train_reserved"], rel=0 if AS_MEASURED else 0.02, abs=0)


@pytest.mark.parametrize("model_type", some(list(CUT), 2))
def test_cut_down_a_model_with_a_tower_is_played_as_traced_whole(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, resolution = source_of(CUT[model_type]), resolved(whole(CUT[model_type]))
    cut = trace_run(source, resolution, None)
    assert len(cut.kept) < 8
    monkeypatch.setattr(layers, "choose", layers.choose_all)
    uncut = trace_run(source, resolution, None)
    assert len(uncut.kept) == 8
    assert phases(resolution, cut) == phases(resolution, uncut)


@pytest.mark.parametrize("model_type", OTHERS)
def test_every_family_is_traced_through_its_tower(model_type: str) -> None:
    """Each class counts the placeholders itself and refuses a batch that holds another number of them."""
    tokens, config = OTHERS[model_type]
    config = {**config, "model_type": model_type}
    profile = whole(config)
    resolution = resolved(profile, image_size="112x90", images=2, batch_size=2, seq_len=256)
    assert (resolution.run.image_tokens, resolution.problems) == (tokens, ())
    tape = trace_run(source_of(config), resolution, None)
    assert phases(resolution, tape)["forward"][0] > 0
    pixels = 2 * 2 * 3 * 56 * 56 * 4  # at the least: two squares in each of two rows, in float32
    assert max(size for _, size in tape.events) >= pixels


@pytest.mark.parametrize("trainer", some(["hf-trainer", "trl-sft", "loop"], 3))
def test_larger_images_of_as_many_tokens_in_all_take_more(trainer: str) -> None:
    """The sequence stays as long as it is: what grows is the tower's own."""
    profile = whole(QWEN25)

    def peak(**options: Any) -> int:
        resolution = resolved(profile, trainer=trainer, **options)
        return max(high for high, _ in phases(resolution, trace_run(source_of(QWEN25), resolution, None)).values())

    assert peak(image_size="280x224") > peak(image_size="140x112") > 0
    if trainer == "trl-sft":
        assert peak(images=2) > peak(images=1) > peak(images=0)


def test_a_tower_without_adapters_is_still_gone_through_backwards_when_checkpointed() -> None:
    """Checkpointing asks for gradients of the tower's input too: what is frozen there is computed again."""
    profile = whole(QWEN25)
    with_tower, without = (resolved(profile, exclude_modules=names) for names in (None, "visual"))
    tapes = [trace_run(source_of(QWEN25), resolution, None) for resolution in (with_tower, without)]
    lengths = [
        sum(part.stop - part.start for part in tape.segments if key(part) == ("backward", "embedding"))
        for tape in tapes
    ]
    assert lengths[0] > lengths[1] > 100


def test_the_trace_has_the_adapters_that_the_profile_leaves() -> None:
    profile = whole(QWEN25)
    for names, left in (("visual", "language_model"), ("language_model,merger", "visual"), (r".*\.mlp\..*", "attn")):
        resolution = resolved(profile, exclude_modules=names)
        answer = estimate(profile, resolution.run, tape=trace_run(source_of(QWEN25), resolution, None))
        everything = estimate(profile, replace(resolution.run, exclude_modules=None))
        assert 0 < (answer.model.trainable_params or 0) < (everything.model.trainable_params or 0), left
        assert answer.method == "traced"


def test_a_text_model_has_no_tower() -> None:
    with pytest.raises(InputError, match="llama takes no images"):
        build_profile(source_of({"model_type": "llama"}), whole_model=True)


def test_an_image_that_does_not_fit_into_the_sequence_is_refused() -> None:
    resolution = resolved(whole(QWEN25), seq_len=16)
    assert [problem.code for problem in resolution.problems] == ["images-too-long"]
