"""Every reader of files and texts from outside, with a sound input of each to begin from."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "data" / "truth" / "configs"


class Reader(NamedTuple):
    """What reads a file called `name` (or the text in it), and sound contents to begin from."""

    name: str
    read: Callable[[Path], object]
    seeds: tuple[bytes, ...]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _check(path: Path) -> object:
    from qlora_planner.exchange.configs import read_config

    return read_config(path)


def _model_config(path: Path) -> object:
    from qlora_planner.sources.configs import read_config

    return read_config(path)


def _json_object(path: Path) -> object:
    from qlora_planner.sources.json_files import read_object

    return read_object(path)


def _profile(path: Path) -> object:
    from qlora_planner.sources.json_files import read_object
    from qlora_planner.spec.codec import profile_from_dict

    return profile_from_dict(read_object(path), str(path), source="cache")


def _card(path: Path) -> object:
    from qlora_planner.catalog.gpus.card_file import load_card

    return load_card(path)


def _measurements(path: Path) -> object:
    from qlora_planner.sources.evidence import read_all

    return read_all(path)


def _calibration(path: Path) -> object:
    from qlora_planner.evidence.calibration_file import calibration_from_dict
    from qlora_planner.sources.json_files import read_object

    return calibration_from_dict(read_object(path), str(path))


def _tape(path: Path) -> object:
    from qlora_planner.bounded import unpacked
    from qlora_planner.errors import InputError

    try:
        return json.loads(unpacked(path.read_bytes(), 1 << 20).split(b"\n")[0])
    except (ValueError, RecursionError) as error:
        raise InputError(str(error)) from None


def _rows(path: Path) -> object:
    from qlora_planner.data import summarise

    return summarise(path, chars_per_token=4.0, bad_rows="skip")


def _tokenizer(path: Path) -> object:
    from qlora_planner.data.tokenizers import as_it_is, tokenised

    found = as_it_is(path.parent, strict=False)
    return None if found is None else tokenised(found, path.parent.name, chats=True)


def _run_record(path: Path) -> object:
    from qlora_planner.runs.directory import RunDirectory, read_record

    return read_record(RunDirectory(path.parent))


def _seal(path: Path) -> object:
    from qlora_planner.runs.checkpoints import fault_of

    return fault_of(path.parent)


def _metrics(path: Path) -> object:
    from qlora_planner.runs.record import read_metrics

    return read_metrics(path)


def _weights_index(path: Path) -> object:
    from qlora_planner.runs.after.base import find_base

    (path.parent / "config.json").write_bytes((CONFIGS / "llama-3.2-1b.json").read_bytes())
    return find_base([], str(path.parent), lambda _text: None)


def _adapter(path: Path) -> object:
    from qlora_planner.runs.after.finished import read_finished

    return read_finished(str(path.parent))


def _safetensors(path: Path) -> object:
    from qlora_planner.runs.after.forecast import adapter_bytes

    return adapter_bytes(path.parent)


def _explorer_state(path: Path) -> object:
    from qlora_planner.tui.saved_state import read_state

    return read_state(path)


def _log(path: Path) -> object:
    from qlora_planner.diagnose.oom import explain

    return explain(path.read_bytes().decode("utf-8", "replace"))


def _snapshot(path: Path) -> object:
    from qlora_planner.diagnose.oom.snapshot import read_snapshot

    return read_snapshot(path.read_bytes(), str(path))


def _sizes(path: Path) -> object:
    from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
    from qlora_planner.cli.values import parse_stack
    from qlora_planner.errors import InputError
    from qlora_planner.sources.locations import gpus_dirs
    from qlora_planner.units import parse_memory

    text = path.read_bytes().decode("utf-8", "replace")
    catalogue = GpuCatalogue(gpus_dirs())
    reads: tuple[Callable[[], object], ...] = (
        lambda: parse_gpu(text, catalogue), lambda: parse_memory(text, "--reserve"), lambda: parse_stack([text])
    )  # fmt: skip
    for read in reads:
        with suppress(InputError):
            read()
    return None


_PLAN = {
    "schema": "qlora-plan/plan/1", "model": {"id": "meta-llama/Llama-3.1-8B"}, "gpu": {"name": "rtx-4090"},
    "run": {"method": "qlora", "quant": "nf4", "seq_len": 2048, "rank": 16, "stack": {"trl": "1.13"}},
    "objective": "speed",
}  # fmt: skip
_AXOLOTL = b"""base_model: meta-llama/Llama-3.1-8B
load_in_4bit: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_target_linear: true
sequence_len: &len 4096
sample_packing: true
datasets:
  - {path: tatsu-lab/alpaca, type: alpaca}
micro_batch_size: 2
optimizer: paged_adamw_8bit
bf16: auto
deepspeed:
max_length: *len
"""
_LLAMA_FACTORY = b"""model_name_or_path: meta-llama/Llama-3.1-8B
stage: sft
finetuning_type: lora
quantization_bit: 4
lora_rank: 8
lora_target: all
cutoff_len: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
template: llama3
dataset: identity
output_dir: saves
"""
_TRL = b"model_name_or_path: Qwen/Qwen2.5-7B\nuse_peft: true\nload_in_4bit: true\nlora_r: 16\nmax_length: 1024\n"
_ROWS = [
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
    {"text": "plain"}, {"prompt": "a", "completion": "b"}, {"instruction": "x", "input": "", "output": "y"},
]  # fmt: skip
_OOM = (
    b'Traceback (most recent call last):\n  File "/x/train.py", line 3, in <module>\n    trainer.train()\n'
    b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.99 GiB"
    b" of which 1.02 GiB is free. Process 7 has 22.00 GiB memory in use. Of the allocated memory 20.50 GiB is allocated"
    b" by PyTorch, and 900.00 MiB is reserved by PyTorch but unallocated.\n 12%|#1  | 12/100 [00:30<03:00, 2.4s/it]\n"
)
_SNAPSHOT = {
    "segments": [{"device": 0, "total_size": 2097152, "allocated_size": 512, "blocks": [
        {"size": 512, "state": "active_allocated", "frames": [{"filename": "x.py", "line": 1, "name": "f"}]}]}],
    "device_traces": [[{"action": "oom", "size": 99, "device_free": 5, "frames": []}]],
}  # fmt: skip
_SAFETENSORS = (lambda head: len(head).to_bytes(8, "little") + head + bytes(8))(
    b'{"a.lora_A.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
)


def _parquet() -> bytes:
    from io import BytesIO

    import pyarrow
    import pyarrow.parquet as parquet

    out = BytesIO()
    parquet.write_table(pyarrow.table({"text": ["some words here"] * 20}), out)
    return out.getvalue()


def _file(*parts: str) -> bytes:
    return ROOT.joinpath(*parts).read_bytes()


def readers() -> Mapping[str, Reader]:
    """By what is read."""
    config = _file("tests", "data", "truth", "configs", "llama-3.2-1b.json")
    profile = _file("profiles", "models", "meta-llama__Llama-3.2-1B.json")
    measured = _file("profiles", "measurements", "h200-caps.jsonl").split(b"\n")[0]
    rows = b"".join(json.dumps(row).encode() + b"\n" for row in _ROWS)
    adapter = {"base_model_name_or_path": "org/x", "peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}
    tokenizer = {
        "version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }  # fmt: skip
    return {
        "plan or another tool's YAML": Reader("run.yaml", _check, (_json(_PLAN), _AXOLOTL, _LLAMA_FACTORY, _TRL)),
        "config.json": Reader("config.json", _model_config, (config,)),
        "JSON": Reader("x.json", _json_object, (config, _json(_PLAN))),
        "profile": Reader("profile.json", _profile, (profile,)),
        "card": Reader("card.toml", _card, (_file("profiles", "gpus", "rtx-4090.toml"),)),
        "measurements": Reader("x.jsonl", _measurements, (measured + b"\n",)),
        "calibration": Reader("calibration.json", _calibration, (_file("profiles", "calibrations", "h200.json"),)),
        "tape": Reader("tape.jsonl.gz", _tape, (gzip.compress(b'{"schema": 1, "regions": []}\n{}'),)),
        "rows as JSON lines": Reader("rows.jsonl", _rows, (rows,)),
        "rows as JSON": Reader("rows.json", _rows, (_json(_ROWS),)),
        "rows as CSV": Reader("rows.csv", _rows, (b'text,n\n"a, b",1\nc,2\n', b'messages\n"[{""role"": ""user""}]"\n')),
        "rows as parquet": Reader("rows.parquet", _rows, (_parquet(),)),
        "tokenizer": Reader("tokenizer.json", _tokenizer, (_json(tokenizer),)),
        "tokenizer's config": Reader("tokenizer_config.json", _tokenizer, (_json({"chat_template": "{{ 1 }}"}),)),
        "run.json": Reader("run.json", _run_record, (_json({"schema": "qlora-plan/run/1", "run": _PLAN["run"]}),)),
        "seal": Reader("complete.json", _seal, (_json({"optimizer": "x", "files": {"trainer_state.json": "1"}}),)),
        "metrics": Reader("metrics.jsonl", _metrics, (b'{"kind": "step", "step": 1}\n{"kind": "attempt"}\n',)),
        "index of weights": Reader(
            "model.safetensors.index.json", _weights_index, (_json({"weight_map": {"a": "m-1.safetensors"}}),)
        ),
        "adapter": Reader("adapter_config.json", _adapter, (_json(adapter),)),
        "safetensors": Reader("adapter_model.safetensors", _safetensors, (_SAFETENSORS,)),
        "explorer's state": Reader("state.json", _explorer_state, (_json({"schema": "qlora-plan/tui-state/1"}),)),
        "log": Reader("log.txt", _log, (_OOM,)),
        "snapshot": Reader("snapshot.json", _snapshot, (_json(_SNAPSHOT), __import__("pickle").dumps(_SNAPSHOT))),
        "sizes and versions": Reader("text.txt", _sizes, (b"24GB", b"1.5GiB", b"rtx-4090", b"trl=1.13,torch=2.9")),
    }
