"""Every known wording of running out of memory, and what a traceback says of the moment."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from qlora_planner.diagnose.oom import explain
from qlora_planner.diagnose.oom.snapshot import looks_like_snapshot, read_snapshot
from qlora_planner.errors import InputError
from qlora_planner.units import GIB, MIB

_TAIL = (
    " If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid"
    " fragmentation.  See documentation for Memory Management "
    " (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch 1.2": (
        "RuntimeError: CUDA out of memory. Tried to allocate 38.00 MiB (GPU 1; 7.93 GiB total capacity;"
        " 6.82 GiB already allocated; 13.31 MiB free; 210.50 MiB cached)",
        {"kind": "torch", "backend": "CUDA", "device": 1, "requested_bytes": 38 * MIB, "allocated_bytes": 6.82,
         "idle_bytes": int(210.5 * MIB), "capacity_bytes": 7.93, "process_bytes": None, "others_bytes": None},
    ),
    "torch 1.13": (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 15.78 GiB total capacity;"
        " 14.26 GiB already allocated; 3.44 MiB free; 14.30 GiB reserved in total by PyTorch) If reserved memory is >>"
        " allocated memory try setting max_split_size_mb to avoid fragmentation.",
        {"requested_bytes": 20 * MIB, "allocated_bytes": 14.26, "reserved_bytes": 14.30, "fragmented": False},
    ),
    "torch 2.0 with a limit": (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 79.15 GiB total capacity; 8.61 GiB"
        " already allocated; 68.00 GiB free; 10.00 GiB allowed; 9.90 GiB reserved in total by PyTorch)",
        {"allowed_bytes": 10.0, "free_bytes": 68.0, "requested_bytes": 2.0, "fragmented": True},
    ),
    "torch 2.1, misspelt": (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacty of"
        " 23.69 GiB of which 152.56 MiB is free. Process 31337 has 23.53 GiB memory in use. Of the allocated memory"
        " 21.48 GiB is allocated by PyTorch, and 1.66 GiB is reserved by PyTorch but unallocated." + _TAIL,
        {"capacity_bytes": 23.69, "requested_bytes": 448 * MIB, "process_bytes": 23.53, "idle_bytes": 1.66,
         "own_pid": 31337, "processes": None, "others_bytes": 0, "fragmented": True},
    ),
    "torch 2.6": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.91 GiB. GPU 2 has a total capacity of 39.39"
        " GiB of which 1.20 GiB is free. Process 99 has 5.00 GiB memory in use. Including non-PyTorch memory, this"
        " process has 33.10 GiB memory in use. 35.00 GiB allowed; Of the allocated memory 31.00 GiB is allocated by"
        " PyTorch, with 64.00 MiB allocated in private pools (e.g., CUDA Graphs), and 1.10 GiB is reserved by PyTorch"
        " but unallocated." + _TAIL,
        {"device": 2, "process_bytes": 33.10, "allowed_bytes": 35.0, "private_pools_bytes": 64 * MIB,
         "processes": {99: 5 * GIB}, "others_bytes": 39.39 - 1.20 - 33.10, "fragmented": False},
    ),
    "a driver that tells nothing": (
        "CUDA out of memory. Tried to allocate 14.00 MiB. GPU 0 has a total capacity of 14.56 GiB of which 5.00 MiB is"
        " free. Including non-PyTorch memory, this process has 17179869184.00 GiB memory in use. Of the allocated"
        " memory 13.90 GiB is allocated by PyTorch, and 120.00 MiB is reserved by PyTorch but unallocated." + _TAIL,
        {"process_bytes": None, "others_bytes": None, "allocated_bytes": 13.90},
    ),
    "wrapped by a terminal": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total\ncapacity of 23.52"
        " GiB of which 1.02 GiB is free. Including non-PyTorch memory, this process\nhas 22.40 GiB memory in use. Of"
        " the allocated memory 19.00 GiB is allocated by PyTorch, and 3.00\nGiB is reserved by PyTorch but"
        " unallocated.",
        {"capacity_bytes": 23.52, "process_bytes": 22.40, "idle_bytes": 3.0},
    ),
    "HIP": (
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of 23.98"
        " GiB of which 88.00 MiB is free. Of the allocated memory 22.90 GiB is allocated by PyTorch, and 311.00 MiB is"
        " reserved by PyTorch but unallocated.",
        {"backend": "HIP", "free_bytes": 88 * MIB, "process_bytes": None},
    ),
    "MPS": (
        "RuntimeError: MPS backend out of memory (MPS allocated: 17.89 GB, other allocations: 128.00 KB, max allowed:"
        " 18.13 GB). Tried to allocate 500.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable",
        {"backend": "MPS", "allocated_bytes": 17.89, "allowed_bytes": 18.13, "requested_bytes": 500 * MIB},
    ),
    "cuBLAS": (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        {"kind": "cublas", "requested_bytes": None},
    ),
    "cuBLAS without a handle": (
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        {"kind": "cublas"},
    ),
    "bitsandbytes": (
        "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp",
        {"kind": "bitsandbytes", "message": "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp"},
    ),
    "CUDA itself": (
        "RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API"
        " call, so the stacktrace below might be incorrect.",
        {"kind": "cuda", "capacity_bytes": None},
    ),
    "the driver": ("torch.AcceleratorError: CUDA driver error: out of memory", {"kind": "cuda"}),
    "NCCL": ("ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
             {"kind": "cuda"}),
    "a data loader": (
        "RuntimeError: DataLoader worker (pid 4321) is killed by signal: Killed.", {"kind": "host", "backend": None}
    ),
    "the shell": ("  5%|5         | 12/240\n/tmp/run.sh: line 3:  812 Killed                  python train.py\n",
                  {"kind": "host"}),
    "a container": ("Error: process exited with code 137 (reason: OOMKilled)\nexit code 137", {"kind": "host"}),
    "a launcher": ("subprocess.CalledProcessError: Command '['python', 'a.py']' died with <Signals.SIGKILL: 9>.",
                   {"kind": "host"}),
    "the host's allocator": (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"
        " tried to allocate 234881024 bytes. Error code 12 (Cannot allocate memory)",
        {"kind": "host", "requested_bytes": 234881024},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_wording(name: str) -> None:
    text, expected = TEXTS[name]
    report = explain(f"step 11 done\n{text}\nsome more log\n")
    for field, value in expected.items():
        found = getattr(report, field)
        if isinstance(value, float):
            assert found == pytest.approx(value * GIB, abs=16), field
        else:
            assert found == value, field
    json.dumps(report.to_dict())


SITE = "/opt/venv/lib/python3.11/site-packages/"


def traceback(*frames: tuple[str, str, str]) -> str:
    lines = "".join(f'  File "{SITE}{file}", line 7, in {name}\n    {code}\n' for file, name, code in frames)
    return f"Traceback (most recent call last):\n{lines}{TEXTS['torch 2.6'][0]}\n"


TRAIN = (
    ("transformers/trainer.py", "train", "return inner_training_loop("),
    ("transformers/trainer.py", "training_step", "loss = self.compute_loss(model, inputs)"),
)
FORWARD = ("transformers/models/llama/modeling_llama.py", "forward", "hidden_states = self.mlp(hidden_states)")
MOMENTS: dict[str, tuple[tuple[tuple[str, str, str], ...], str, str | None]] = {
    "loading": (
        (("transformers/modeling_utils.py", "from_pretrained", "x"),
         ("transformers/modeling_utils.py", "caching_allocator_warmup", "_ = torch.empty(")),
        "load", "room for the whole model",
    ),
    "preparing": (
        (("peft/utils/other.py", "prepare_model_for_kbit_training", "param.data = param.data.to(torch.float32)"),),
        "prepare", "float32",
    ),
    "forward": ((*TRAIN, FORWARD), "forward", "feed-forward"),
    "dequantising": (
        (*TRAIN, FORWARD, ("bitsandbytes/functional.py", "dequantize_4bit", "out = torch.empty(")),
        "forward", "4-bit matrix was being unpacked",
    ),
    "loss": (
        (*TRAIN, ("transformers/loss/loss_utils.py", "ForCausalLMLoss", "logits = logits.float()")),
        "loss", "logits",
    ),
    "backward": (
        (("accelerate/accelerator.py", "backward", "loss.backward(**kwargs)"),
         ("torch/autograd/graph.py", "_engine_run_backward", "return Variable._execution_engine.run_backward(")),
        "backward", None,
    ),
    "backward, computed again": (
        (("accelerate/accelerator.py", "backward", "loss.backward(**kwargs)"),
         ("torch/utils/checkpoint.py", "unpack_hook", "frame.recompute_fn(*args)"), FORWARD),
        "backward", "feed-forward",
    ),
    "optimizer": (
        (("transformers/trainer.py", "train", "x"), ("accelerate/optimizer.py", "step", "self.optimizer.step(closure)"),
         ("torch/optim/adamw.py", "_init_group", 'state["exp_avg"] = torch.zeros_like(')),
        "optimizer", "making its states",
    ),
    "evaluation": (
        (("transformers/trainer.py", "evaluate", "x"), ("transformers/trainer.py", "prediction_step", "x"), FORWARD),
        "eval", "feed-forward",
    ),
    "saving": ((("transformers/trainer.py", "_save_checkpoint", "x"),), "save", None),
    "merging": ((("peft/tuners/lora/model.py", "merge_and_unload", "x"), ("peft/tuners/lora/layer.py", "merge", "x")),
                "merge", "adapter"),
    "generating": ((("transformers/generation/utils.py", "generate", "x"), FORWARD), "generate", "feed-forward"),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_the_moment(name: str) -> None:
    frames, phase, doing = MOMENTS[name]
    report = explain(traceback(*frames))
    assert report.phase == phase
    assert (report.doing is None) if doing is None else (doing in str(report.doing))
    assert report.recomputing == (name == "backward, computed again")
    assert report.frame is not None
    assert report.frame.file.endswith(frames[-1][0])


def test_the_first_of_many_and_an_earlier_traceback_does_not_count() -> None:
    earlier = 'Traceback (most recent call last):\n  File "a.py", line 1, in evaluate\nValueError: x\n'
    report = explain(earlier + traceback(*TRAIN, FORWARD) + traceback(("peft/x.py", "merge", "x")))
    assert (report.phase, report.times) == ("forward", 2)


@pytest.mark.parametrize("text", ["", "loss 1.2\nloss 1.1\n", "a great memory", "ValueError: out of range"])
def test_no_failure_is_said_with_what_was_looked_for(text: str) -> None:
    with pytest.raises(InputError, match="looked for"):
        explain(text)


def test_a_shortage_of_the_card_counts_before_the_kill_that_follows() -> None:
    assert explain("Killed\nRuntimeError: CUDA error: out of memory\n").kind == "cuda"


SNAPSHOT = {
    "segments": [
        {"device": 0, "total_size": 20 * MIB, "allocated_size": 12 * MIB, "blocks": []},
        {"device": 0, "total_size": 2 * MIB, "allocated_size": 512, "blocks": []},
    ],
    "device_traces": [[
        {"action": "alloc", "size": 5, "frames": []},
        {"action": "oom", "size": 64 * MIB, "device_free": 3 * MIB, "frames": [
            {"filename": "??", "line": 0, "name": "at::empty"},
            {"filename": SITE + "torch/optim/adamw.py", "line": 9, "name": "step"},
            {"filename": SITE + "transformers/trainer.py", "line": 9, "name": "train"}]},
    ]],
}  # fmt: skip


@pytest.mark.parametrize("content", [pickle.dumps(SNAPSHOT), json.dumps(SNAPSHOT).encode()], ids=["pickle", "json"])
def test_a_snapshot(content: bytes) -> None:
    assert looks_like_snapshot(content)
    report = read_snapshot(content, "x")
    assert (report.requested_bytes, report.free_bytes, report.phase) == (64 * MIB, 3 * MIB, "optimizer")
    assert report.allocated_bytes == 12 * MIB + 512
    assert report.reserved_bytes == 22 * MIB
    assert report.frame is not None
    assert report.frame.function == "step"


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('/tmp/qlora-planner-was-here').touch()",))


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(_Evil()), pickle.dumps({"segments": [_Evil()]}), b"\x80\x04garbage", pickle.dumps([1]), b"{]"],
)
@pytest.mark.fault("a memory snapshot with code in it", does="nothing of it is run", exit=2, part="outside")
def test_nothing_in_a_pickle_is_run(content: bytes) -> None:
    with pytest.raises(InputError, match="snapshot"):
        read_snapshot(content, "x")
    from pathlib import Path

    assert not Path("/tmp/qlora-planner-was-here").exists()
