"""Bytes of real bitsandbytes, PEFT and optimizer objects on the CPU against the rows of the catalogue."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")

from transformers import Trainer, TrainingArguments  # noqa: E402

from qlora_planner.catalog import OPTIMIZERS, SCHEMES, quantized_tensor_bytes  # noqa: E402


def nbytes(tensor: object) -> int:
    assert isinstance(tensor, torch.Tensor)
    return tensor.untyped_storage().nbytes()


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (100, 96), (3, 1000), (1024, 4096), (1, 65)])
def test_four_bit_storage(quant: str, double_quant: bool, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, dtype=torch.bfloat16)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type=quant, compress_statistics=double_quant)
    real = [state.absmax, state.code]
    if double_quant:
        real += [state.state2.absmax, state.state2.code, state.offset]
    expected_packed, expected = quantized_tensor_bytes(SCHEMES[quant], *shape, double_quant)
    assert expected_packed == nbytes(packed)
    assert sorted(expected) == sorted(tensor.numel() * tensor.element_size() for tensor in real)


@pytest.mark.parametrize("shape", [(64, 64), (100, 96), (1024, 256)])
def test_int8_storage(shape: tuple[int, int]) -> None:
    layer = bnb.nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(torch.randn(shape, dtype=torch.float16), requires_grad=False).to("cpu")
    codes, statistics, _ = bnb.functional.int8_vectorwise_quant(torch.randn(shape, dtype=torch.float16))
    packed, rest = quantized_tensor_bytes(SCHEMES["int8"], *shape, True)
    assert packed == nbytes(codes)
    assert sum(rest) == nbytes(statistics)


SHAPES = [(16, 4096), (4096, 16), (64, 63), (64, 64), (300, 400), (7,), (5000,)]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimizer_states(name: str, dtype: str, tmp_path: object) -> None:
    """One real step of the optimizer that transformers makes for this name; on the CPU nothing is paged."""
    if "ademamix" in name and dtype == "bfloat16" and "8bit" not in name:
        pytest.skip("bitsandbytes' CPU kernel for 32-bit AdEMAMix takes float32 only")
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, report_to=[], use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=getattr(torch, dtype))) for shape in SHAPES]
    optimizer = kind(parameters, **options)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented" not in str(error).lower() and "support" not in str(error).lower():
            raise
        for group in optimizer.param_groups:  # this CPU has no kernel for the update; the states are made before it
            assert all(optimizer.state[parameter] for parameter in group["params"][:1])
        pytest.skip(f"no CPU kernel: {error}")
    row = OPTIMIZERS[name]
    maps: set[int] = set()
    for parameter, shape in zip(parameters, SHAPES, strict=True):
        real = 0
        for key, value in optimizer.state[parameter].items():
            if not isinstance(value, torch.Tensor):
                continue
            if key.startswith("qmap"):
                maps.add(value.untyped_storage().data_ptr())
                continue
            if key == "step" and not row.step_on_gpu:
                continue  # a scalar that stays on the CPU
            real += value.numel() * value.element_size()
        expected = sum(state.size_bytes for state in row.states(shape, dtype))
        assert expected == real, (shape, optimizer.state[parameter].keys())
    assert len(row.shared_bytes(any_8bit=True)) == len(maps)


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if row.paged])
def test_paged_states_are_those_of_the_library_rule(name: str) -> None:
    """bitsandbytes pages states from 100,000 elements on: read off its own buffer function with a fake GPU tensor."""
    row = OPTIMIZERS[name]
    for shape in SHAPES:
        numel = 1
        for size in shape:
            numel *= size
        states = row.states(shape, "bfloat16")
        assert any(state.paged for state in states) == (numel >= 1e5)


def test_dora_and_lora_shapes_match_a_real_injection() -> None:
    import peft

    from qlora_planner.spec.model import AdapterTensor

    model = torch.nn.Sequential(torch.nn.Linear(48, 96, bias=False))
    real = peft.inject_adapter_in_model(peft.LoraConfig(r=8, target_modules=["0"], use_dora=True), model)
    shapes = {name.split(".")[1]: tuple(p.shape) for name, p in real.named_parameters() if p.requires_grad}
    dims_b = AdapterTensor(
        module="0", name="lora_B", layer_kind=None, count=1, dims=((96, 0), (0, 1)), dtype="float32"
    )  # fmt: skip
    assert shapes["lora_A"] == (8, 48)
    assert shapes["lora_B"] == dims_b.shape(8)
    assert shapes["lora_magnitude_vector"] == (dims_b.shape(8)[0],)
