"""The bill of tensors against real modules: toys loaded, packed, cast and adapted by the libraries on a CPU."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qlora_planner
from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.weights.loading import expand, in_model_order
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig

PACKAGE = Path(qlora_planner.__file__).parent
ROOT = Path(__file__).parents[2]
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "tied": LLAMA | {"tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 128},
    "experts": LLAMA | {
        "model_type": "qwen3_moe", "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
        "head_dim": 16, "num_hidden_layers": 2,
    },
}  # fmt: skip
STORED: dict[str, dict[str, Any]] = {
    "double": {"quant": "nf4", "double_quant": True},
    "flat": {"quant": "fp4", "double_quant": False},
    "cast": {"quant": "nf4", "double_quant": True, "upcast": True},
    "int8": {"quant": "int8"},
    "16-bit": {"method": "lora", "quant": "none"},
    "classifier": {"task": "classification", "num_labels": 5},
}


def toy(name: str, options: dict[str, Any]) -> tuple[Placement, Any, RunConfig]:
    """The bill of a toy model, and the model itself as the builder loads and prepares it."""
    pytest.importorskip("bitsandbytes")
    from qlora_planner.train import adapters, model
    from tests.profiles import toy_profile

    config = CONFIGS[name]
    profile = toy_profile(config)
    wanted = options.get("target_modules")
    if wanted is not None:
        from qlora_planner.profiling.build import profile_target

        source: Any = SimpleNamespace(config=config, id="toy", sha256="")
        profile = replace(profile, adapters={wanted: profile_target(source, wanted, profile)})
    run = resolve(profile, RunConfig(rank=4, compute_dtype="bfloat16", **options)).run
    loaded = model.load_random(config, run, "cpu", model.random_weights(config, "cpu", labels_of(run)))
    return Placement(profile, run), adapters.prepare(loaded, run), run


def size_of(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_the_model_has_the_bytes_that_the_loaded_one_has(name: str, stored: str) -> None:
    from qlora_planner.measure.meters.tensor_owners import constants

    placement, real, _ = toy(name, STORED[stored])
    held = {
        key: (size_of(tensor), sorted(size_of(part) for part in constants(tensor) if part is not None))
        for key, tensor in [*real.named_parameters(), *real.named_buffers()]
    }
    billed = {
        key: (tensor.prepared_bytes, sorted(tensor.constant_bytes))
        for key, tensor in expand(placement)
        if not tensor.group.tied_with
    }
    assert billed == held
    packed = sum(type(parameter).__name__ in ("Params4bit", "Int8Params") for parameter in real.parameters())
    assert placement.packed_matrices == packed
    assert bool(packed) == (stored != "16-bit")


TRAINED: dict[str, dict[str, Any]] = {
    "adapters": {},
    "dora": {"dora": True},
    "saved": {"modules_to_save": "lm_head"},
    "classifier": {"task": "classification", "num_labels": 5},
    "classifier, embedding saved": {"task": "classification", "modules_to_save": "embed_tokens", "upcast": True},
    "full": {"method": "full", "quant": "none"},
    "embedding": {"target_modules": "q_proj,embed_tokens", "dora": True},
}


def trained(options: dict[str, Any]) -> tuple[list[tuple[tuple[int, ...], str]], list[tuple[tuple[int, ...], str]]]:
    """Shapes and dtypes of what is trained, as the bill has them and as PEFT made them; copies of modules last."""
    from qlora_planner.train import adapters

    placement, real, run = toy("llama", options)
    made = [item for item in adapters.add_adapters(real, run).named_parameters() if item[1].requires_grad]
    made.sort(key=lambda item: "modules_to_save" in item[0])
    own = [tensor.trained for _, tensor in expand(placement) if tensor.trained]
    billed = own + [added.tensor for added in in_model_order(placement)]
    return [(tensor.shape, tensor.dtype) for tensor in billed], [
        (tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")) for _, parameter in made
    ]


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_what_is_trained_has_the_shapes_and_dtypes_of_what_peft_makes(options: dict[str, Any]) -> None:
    billed, made = trained(options)
    assert sorted(billed) == sorted(made)


@pytest.mark.parametrize("name", ["adapters", "dora", "saved", "classifier", "full"])
def test_what_is_trained_comes_in_the_order_of_the_model(name: str) -> None:
    billed, made = trained(TRAINED[name])
    assert billed == made


def test_a_bill_counts_what_it_adds_only_when_that_is_read() -> None:
    """The audit reads weights alone, of models that PEFT finds nothing to adapt in too."""
    profile = ModelCatalogue([ROOT / "profiles" / "models"]).load("meta-llama/Llama-3.1-8B")
    placement = Placement(profile, RunConfig(quant="nf4", target_modules="no_such_module"))
    assert placement.packed_matrices == 7 * 32
    with pytest.raises(InputError, match="no_such_module"):
        assert placement.trained


def test_nobody_else_decides_how_a_tensor_is_stored() -> None:
    """Sizes of packed weights, the dtype of a run's loading and a group's own answer are read where the bill is made,
    where profiles are made, and where they are shown as they are."""
    words = {"SCHEMES", "quantized_tensor_bytes", "dtype_float16"}
    rooms = ("catalog/", "spec/", "profiling/")
    allowed = {"memory/weights/placement.py", "memory/audit/audit.py"}
    readers = {file for file, name in _names() if name in words and not file.startswith(rooms)}
    assert readers == allowed


def test_nobody_but_the_bill_walks_a_profiles_tensors() -> None:
    """Memory, speed and planning have them from `Placement`, so a rank's share would reach every one of them."""
    walkers = {
        file
        for file, name in _names()
        if name in ("profile.tensors", "profile.adapters.values") and file.startswith(("memory/", "speed/", "planner/"))
    }
    made = "memory/weights/classifier.py"  # makes a profile of another
    assert walkers == {made, "memory/weights/placement.py", "memory/weights/targets.py"}


def _names() -> set[tuple[str, str]]:
    """Each file of the package with the names and the last parts of attributes that it reads."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                names.add((file, node.id))
            elif isinstance(node, ast.Attribute):
                names.add((file, node.attr))
                text = ast.unparse(node)
                names.update(
                    (file, end) for end in ("profile.tensors", "profile.adapters.values") if text.endswith(end)
                )
    return names
