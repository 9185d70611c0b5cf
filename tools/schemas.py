"""`make schemas`: a JSON Schema of every document, from what the program prints and what its records declare.

What a document holds, and what it always holds, is learnt from many answers; what a value may be, from the answers and
from the types of the records' fields, so that a null that no answer had is allowed where a record may have one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import msgspec
from genson import SchemaBuilder

import qlora_planner
from qlora_planner.runs.after.gguf import CONVERTERS
from tools.console import ROOT, answer_of

FOLDER = ROOT / "qlora_planner" / "schemas"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
VERDICTS = ["fits", "tight", "cannot-say", "does-not-fit", "will-not-run"]
# Logs of kinds that `explain-oom` tells apart: torch's own line, a host's killer, libraries, engines, Apple.
LOGS = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 23.52 GiB of"
    " which 1.02 GiB is free. Including non-PyTorch memory, this process has 22.40 GiB memory in use. Of the allocated"
    " memory 20.90 GiB is allocated by PyTorch, and 1.05 GiB is reserved by PyTorch but unallocated.",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has a total capacity of 14.58 GiB.",
    "Out of memory: Killed process 4711 (python) total-vm:91234567kB, anon-rss:61234567kB",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed.",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp",
    "RuntimeError: MPS backend out of memory (MPS allocated: 17.5 GB, other allocations: 1 GB, max allowed: 18 GB).",
    "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. Out of shared memory.",
)

# Command lines whose answers are learnt from, by the kind of run and card; each answers with --json.
CASES = """
estimate llama-3.1-8b --gpu 24GB
estimate qwen2.5-7b --gpu 6GB
estimate llama-3.1-8b
estimate mixtral-8x7b --gpu 24GB --method full
estimate Qwen/Qwen3.5-0.8B --gpu rtx-4090
estimate llama-3.1-8b --gpu 2xrtx-4090 --parallel fsdp2
estimate llama-3.1-8b --gpu a100-80gb --trainer trl-grpo
estimate llama-3.1-8b --gpu rtx-4090 --trainer trl-dpo
estimate gpt2 --gpu t4 --trainer loop
estimate llama-3.2-1b --gpu t4 --task classification --num-labels 3
estimate falcon-7b --gpu rtx-4090 --lora-dropout 0.1
plan llama-3.1-8b --gpu rtx-4090 --compare t4,a100-80gb
plan qwen2.5-7b --objective cheapest
plan qwen2.5-72b --gpu 8GB
plan llama-3.1-8b --gpu 12GB --batch-size 64
plan gpt2 --gpu 2xt4
plan llama-3.1-8b --gpu rtx-4090 {data}
plan qwen3-30b-a3b --gpu 24GB
plan llama-3.1-8b --gpu 24GB --explain
survey --gpu 24GB
survey --gpu h200 --trainer trl-dpo
check examples/trl-sft.yaml --gpu 10GB
check examples/trl-sft.yaml --gpu 24GB
check examples/trl-sft.yaml --gpu 2xt4
audit falcon-7b
audit qwen3-30b-a3b
audit llama-3.1-8b --quant int8
audit gpt2
gpus
models
table --models llama-3.1-8b,qwen3-30b-a3b,llama-2-7b
myths
doctor
doctor 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB.'
doctor 'ValueError: Target modules q not found in the base model.'
explain-oom {log}
explain-oom {log} --plan {plan}
""".strip().splitlines()

# Documents of these need torch and a run: made at toy size on the CPU.
TOY = (
    "train ./toy --data train.jsonl --device cpu --yes --max-steps 4 --batch-size 4 --eval-split 0.1 --output runs/toy",
    "merge runs/toy",
    "merge runs/toy --gguf model --output merged",
    "merge runs/toy --gguf adapter",
    "generate runs/toy --prompt count --max-new-tokens 4",
    "side-by-side runs/toy --max-new-tokens 4",
    "side-by-side runs/toy --prompt count --max-new-tokens 4",
    "verify ./toy --device cpu --seq-len 64",
)

# Stands for llama.cpp's converters: a document says what they wrote and not what is in it.
CONVERTER = 'import pathlib, sys; pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1]).write_bytes(b"GGUF")'

_LEAVES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "None": "null"}
# Names of objects whose keys are data: an option, a package, a component, a card.
_MAPS = {"basis", "why", "resolved", "versions", "stack", "packages", "settings", "counted", "weights"}
_NAME = re.compile(r"[a-z][a-z0-9_]*$")


def declared() -> dict[str, set[str]]:
    """Field name -> JSON types that records declare for it; null alone where one declares another kind of value."""
    for module in walk_packages(qlora_planner.__path__, "qlora_planner."):
        if not re.search(r"\.(profiling|train|tui|cli|runs|measure)\.|__main__", module.name + "."):
            import_module(module.name)
    found: dict[str, set[str]] = {}
    unclear: set[str] = set()
    waiting: list[Any] = [msgspec.Struct]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        for name, text in getattr(kind, "__annotations__", {}).items():
            parts = {part.strip() for part in str(text).split("|")}
            found.setdefault(name, set()).update(_LEAVES[part] for part in parts if part in _LEAVES)
            if parts - {*_LEAVES}:
                unclear.add(name)
    return {name: {"null"} if name in unclear else types for name, types in found.items()}


def widened(schema: dict[str, Any], name: str, types: Mapping[str, set[str]]) -> dict[str, Any]:
    """`schema` of the value called `name`, as wide as records allow, with maps as maps.

    What is unknown is null: a value that no record declares may be, whether or not an answer had it so.
    """
    unknown = {"null"} if name else set()
    if parts := schema.get("anyOf"):
        kinds = [widened(part, name, types) for part in parts if part.get("type") != "null"]
        null = len(kinds) < len(parts) or "null" in types.get(name, unknown)
        return _any_of([*kinds, *([{"type": "null"}] if null else [])])
    kind = schema.get("type")
    seen = {kind} if isinstance(kind, str) else set(kind or ())
    made: dict[str, Any]
    if "object" in seen:
        properties = schema.get("properties", {})
        # What a change turns is any option, and its keys are those of any tool.
        turned = {"change", "keys"} if "change" in properties else set()
        fields = {
            key: {"type": ["object", "null"], "additionalProperties": True}
            if key in turned
            else widened(part, key, types)
            for key, part in properties.items()
        }
        if name in _MAPS or not all(_NAME.match(key) for key in fields):
            made = {"type": "object", "additionalProperties": _any_of(list(fields.values())) if fields else True}
        else:
            made = {"type": "object", "properties": fields, "required": sorted(schema.get("required", ()))}
    elif "array" in seen:
        made = {"type": "array", "items": widened(schema["items"], "", types) if "items" in schema else True}
    else:
        allowed = seen | types.get(name, unknown)
        if "number" in allowed:
            allowed.discard("integer")
        if allowed <= {"null"}:
            return {}  # nothing but null was seen, and no record says more
        if name == "verdict":
            return {"enum": VERDICTS + ([None] if "null" in allowed else [])}
        names: str | list[str] = sorted(allowed) if len(allowed) > 1 else allowed.pop()
        return {"type": names}
    nullable = "null" in seen | types.get(name, unknown)
    return {**made, "type": [made["type"], "null"]} if nullable else made


def _any_of(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One of `parts`; an object that may be null says so by its type, as a number does."""
    different = list({json.dumps(part, sort_keys=True): part for part in parts}.values())
    if len(different) == 2 and different[1] == {"type": "null"} and "type" in different[0]:
        kinds = different[0]["type"]
        return {**different[0], "type": [kinds, "null"] if isinstance(kinds, str) else sorted({*kinds, "null"})}
    return different[0] if len(different) == 1 else {"anyOf": different}


def documents() -> Iterator[dict[str, Any]]:
    """The answers that are learnt from."""
    with tempfile.TemporaryDirectory() as folder:
        toy = Path(folder)
        environment = {
            **os.environ, "XDG_DATA_HOME": folder, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "NO_COLOR": "1",
            "LLAMA_CPP_DIR": folder,
        }  # fmt: skip
        for name in CONVERTERS.values():
            (toy / name).write_text(CONVERTER, encoding="utf-8")
        subprocess.run([sys.executable, str(ROOT / "examples" / "toy_model.py"), "toy"], cwd=toy, check=True)
        (toy / "log").write_text(LOGS[0], encoding="utf-8")
        answer_of(f"qlora-plan llama-3.1-8b --gpu rtx-4090 --save {toy / 'plan.yaml'}")
        for case in CASES:
            words = case.format(
                data=f"--data {toy / 'train.jsonl'} --chars-per-token 4", log=toy / "log", plan=toy / "plan.yaml"
            )
            yield json.loads(answer_of(f"qlora-plan {words} --json"))
        for text in LOGS[1:]:
            (toy / "log").write_text(text, encoding="utf-8")
            yield json.loads(answer_of(f"qlora-plan explain-oom {toy / 'log'} --json", again=True))
        for case in TOY:
            command = [sys.executable, "-m", "qlora_planner", *case.split(), "--json"]
            done = subprocess.run(command, cwd=toy, env=environment, stdout=subprocess.PIPE, check=True)
            yield json.loads(done.stdout)
    for path in sorted((ROOT / "profiles" / "measurements").glob("*.jsonl")):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        yield from (row for row in rows if "schema" in row)
    yield from calibrated()


def calibrated() -> Iterator[dict[str, Any]]:
    """Answers of `calibrate`: where nothing was learnt, what ships, and another card whose driver gave no figure."""
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.session.measuring.calibrate import CalibrationAnswer
    from qlora_planner.sources.evidence import read_calibration

    shipped = read_calibration([ROOT / "profiles" / "calibrations"])
    assert shipped is not None
    other = replace(
        shipped, contexts={"rtx-4090": next(iter(shipped.contexts.values()))},
        residuals={method: {} for method in shipped.residuals},
        speed={"rtx-4090": next(iter(shipped.speed.values()))},
    )  # fmt: skip
    for learnt in (Calibration(created=shipped.created), shipped, other):
        answer = CalibrationAnswer(calibration=learnt, path=ROOT / "user.json", runs=1, verifications=1, left_out=())
        yield answer.to_dict()


def schemas() -> dict[str, dict[str, Any]]:
    """Name of a document -> its schema."""
    types = declared()
    builders: dict[str, SchemaBuilder] = {}
    for document in documents():
        kind = document["schema"]
        builders.setdefault(kind, SchemaBuilder()).add_object(document)
    made = {}
    for kind, builder in sorted(builders.items()):
        body = widened(builder.to_schema(), "", types)
        body["type"] = "object"
        if "schema" in body["properties"]:
            body["properties"]["schema"] = {"const": kind}
        name = kind.split("/")[1]
        made[name] = {"$schema": DRAFT, "$id": f"urn:{kind.replace('/', ':')}", "title": kind, **body}
    return made


def main() -> int:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
