"""From a pasted error line to its causes and the line that fixes each; and what to try where none is known."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qlora_planner.diagnose.facts import Finding
from qlora_planner.diagnose.oom import explain
from qlora_planner.diagnose.oom.text import cleaned
from qlora_planner.diagnose.oom.wordings import wording
from qlora_planner.diagnose.symptoms import SUBJECTS, SYMPTOMS, Symptom
from qlora_planner.errors import InputError
from qlora_planner.installing import installed_versions

__all__ = ["SYMPTOMS", "explain_symptom", "unknown_symptom"]

# Of what is pasted, the beginning and the end: an error is in one of them.
_HEAD_CHARACTERS, _TAIL_CHARACTERS = 10_000, 30_000
# Package -> where its errors are reported; the first that the line names is the one to ask.
_TRACKERS = {
    "unsloth": "https://github.com/unslothai/unsloth/issues",
    "llamafactory": "https://github.com/hiyouga/LlamaFactory/issues",
    "axolotl": "https://github.com/axolotl-ai-cloud/axolotl/issues",
    "bitsandbytes": "https://github.com/bitsandbytes-foundation/bitsandbytes/issues",
    "trl": "https://github.com/huggingface/trl/issues",
    "peft": "https://github.com/huggingface/peft/issues",
    "deepspeed": "https://github.com/deepspeedai/DeepSpeed/issues",
    "accelerate": "https://github.com/huggingface/accelerate/issues",
    "datasets": "https://github.com/huggingface/datasets/issues",
    "tokenizers": "https://github.com/huggingface/tokenizers/issues",
    "transformers": "https://github.com/huggingface/transformers/issues",
    "torch": "https://github.com/pytorch/pytorch/issues",
}


def explain_symptom(text: str) -> list[Finding]:
    """The known causes of a pasted error line or log, most particular first; empty when none is known."""
    if len(text) > _HEAD_CHARACTERS + _TAIL_CHARACTERS:
        text = f"{text[:_HEAD_CHARACTERS]}\n{text[-_TAIL_CHARACTERS:]}"
    text = cleaned(text)
    findings: dict[str, Finding] = {}
    for fallback in (False, True):
        if fallback and findings:
            break
        for row in SYMPTOMS:
            match = None
            if row.fallback == fallback and row.code not in findings:
                match = re.search(row.pattern, text, re.IGNORECASE)
            if match is not None:
                findings[row.code] = _finding(row, match)
    memory = _memory(text)
    if memory is not None:
        findings.setdefault(memory.code, memory)
    return list(findings.values())


def unknown_symptom(text: str) -> str:
    """What was searched for a line that no row knows, what is installed, and what to try next."""
    lowered = text[:_HEAD_CHARACTERS].lower()
    package = next((name for name in _TRACKERS if name in lowered), None)
    tracker = "the tracker of the library that raised it" if package is None else _TRACKERS[package]
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions(_TRACKERS).items())
    return (
        f"no cause of that error line is known: {len(SYMPTOMS)} kinds of lines were searched ({', '.join(SUBJECTS)});"
        f" installed here: {versions or 'no training library'}. Paste the last line of the traceback whole; `qlora-plan"
        " doctor` alone examines this machine, `qlora-plan explain-oom LOG` reads a memory failure; then search"
        f" {tracker} for the line without its paths and numbers"
    )


def _finding(row: Symptom, match: re.Match[str]) -> Finding:
    # A row whose pattern may find no name has the default of the one row that needs it.
    name = (match.groupdict().get("name") or "libcudart.so").rstrip(".")
    return Finding(
        code=row.code,
        status="problem",
        message=row.cause.replace("{name}", name) + _installed(installed_versions(row.packages)),
        fix=row.fix.replace("{name}", name),
        source=row.source,
    )


def _installed(versions: Mapping[str, str]) -> str:
    return f" (here: {', '.join(f'{name} {version}' for name, version in versions.items())})" if versions else ""


def _memory(text: str) -> Finding | None:
    """A memory failure in whatever words; the log tells more of it than its line."""
    try:
        report = explain(text)
    except InputError:
        return None
    row = wording(report.cause)
    source = row.source if row is not None else "https://github.com/pytorch/pytorch/issues/35901"
    if row is not None:
        code = row.cause if row.kind in ("host", "engine", "kernel") else "out-of-memory"
        return Finding(code=code, status="problem", message=row.headline, fix=row.advice[0], source=source)
    what = "memory ran out on the card"
    if report.senseless:
        what = "a request that no card could grant: shapes are at fault, or a sample that was never cut"
    fix = "qlora-plan explain-oom LOG reads the whole log; qlora-plan MODEL --gpu CARD finds a run that fits"
    return Finding(code="out-of-memory", status="problem", message=what, fix=fix, source=source)
