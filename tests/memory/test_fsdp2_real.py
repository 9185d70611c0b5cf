"""Shards of real bitsandbytes and PEFT modules, cut by accelerate's own wrapping on a fake process group."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")

import peft  # noqa: E402
import torch.distributed as dist  # noqa: E402
from accelerate.utils import FullyShardedDataParallelPlugin  # noqa: E402
from accelerate.utils.fsdp_utils import fsdp2_prepare_model  # noqa: E402
from torch.distributed.fsdp import FSDPModule  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from qlora_planner.memory.options.resolve import resolve  # noqa: E402
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, Sharding  # noqa: E402
from qlora_planner.memory.weights.placement import Placement  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from tests.profiles import toy_profile  # noqa: E402

CONFIG = {
    "model_type": "llama", "hidden_size": 192, "intermediate_size": 448, "num_hidden_layers": 3, "vocab_size": 1003,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip


@contextmanager
def ranks(world: int) -> Iterator[None]:
    """Rank 0 of so many; nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def adapted(tied: bool, storage: str) -> Any:
    """A quantised model with adapters as trl's trainer casts them."""
    model: Any = LlamaForCausalLM(LlamaConfig(**{**CONFIG, "tie_word_embeddings": tied})).to(torch.bfloat16)
    for layer in model.model.layers:
        for module in (layer.self_attn, layer.mlp):
            for name, linear in list(module.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    packed = bnb.nn.Linear4bit(
                        linear.in_features, linear.out_features, bias=False, quant_type="nf4",
                        quant_storage=getattr(torch, storage),
                    )  # fmt: skip
                    packed.weight = bnb.nn.Params4bit(
                        linear.weight.data, requires_grad=False, quant_type="nf4", quant_storage=getattr(torch, storage)
                    )
                    setattr(module, name, packed.to("cpu"))
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def real_units(model: Any) -> list[list[int]]:
    """Bytes of each shard by unit, units in the order of their modules; of the grouped ones, once."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        reshard_after_forward=True, state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False,
    )  # fmt: skip
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"), mixed_precision="bf16",
        is_main_process=False, torch_device_mesh=None,
    )  # fmt: skip
    wrapped = fsdp2_prepare_model(accelerator, model)
    seen: set[int] = set()
    units = []
    for module in wrapped.modules():
        state = module._get_fsdp_state() if isinstance(module, FSDPModule) else None
        for group in state._fsdp_param_groups if state is not None else ():
            if id(group) not in seen:
                seen.add(id(group))
                units.append([tensor._sharded_param_data.nbytes for tensor in group.fsdp_params])
    return units


@pytest.mark.parametrize("world", [2, 8, 64, 512])
@pytest.mark.parametrize(("tied", "storage"), [(False, "bfloat16"), (True, "bfloat16"), (False, "uint8")])
def test_every_shard_is_cut_as_accelerate_cuts_it(world: int, tied: bool, storage: str) -> None:
    with ranks(world):
        real = real_units(adapted(tied, storage))
    profile = toy_profile({**CONFIG, "tie_word_embeddings": tied})
    resolution = resolve(profile, RunConfig(quant="nf4"))
    model = ShardedModel(
        Placement(profile, resolution.run), resolution.trainer, Sharding(world=world, quant_storage=storage)
    )
    ours = [[tensor.shard for tensor in unit.tensors] for unit in model.units]
    assert sorted(map(sorted, ours)) == sorted(map(sorted, real))
    assert ours[: len(model.kinds)] == [unit for unit in real if len(unit) == len(ours[0])]


def test_torchs_dtensor_refuses_what_bitsandbytes_optimizers_hand_it() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    with ranks(2):
        sharded = DTensor.from_local(torch.zeros(256), init_device_mesh("cpu", (2,)), [Shard(0)])
        plain = torch.zeros(256)
        with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
            torch.ops.bitsandbytes.optimizer_update_32bit(
                "adam", sharded, sharded, plain, plain, None, 0.0, 0.0, 0.9, 0.999, 0.0, 0.0, 1e-8,
                0.0, 1, 1e-3, 1.0, False,
            )  # fmt: skip


def test_what_is_refused_of_the_libraries_is_in_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import launch_command_parser
    from transformers import Trainer, TrainingArguments
    from transformers.integrations import accelerate as placing

    launched = launch_command_parser().parse_args(["--use_fsdp", "--fsdp_version", "2", "train.py"])
    assert launched.fsdp_state_dict_type is None or "FULL" not in launched.fsdp_state_dict_type
    assert launched.fsdp_cpu_ram_efficient_loading == "true"
    monkeypatch.setattr(placing, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="not compatible with passing a `device_map`"):
        placing.check_and_set_device_map({"": 0})
    trainer, arguments = inspect.getsource(Trainer), inspect.getsource(TrainingArguments)
    assert "can't be set to True simultaneously" in trainer  # both checkpoint
    assert "isinstance(self.model, PreTrainedModel)" in trainer  # which a PeftModel is not: unused ones are looked for
    assert "v5.20" in arguments  # FSDP1 goes
