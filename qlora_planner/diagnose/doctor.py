"""The doctor: what is installed, what is missing, what will break tonight, and the line that fixes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlora_planner.diagnose import bitsandbytes, rules, versions
from qlora_planner.diagnose.dtypes import check_dtypes
from qlora_planner.diagnose.facts import TRAIN_PACKAGES, Facts, Finding, Status, TorchFacts
from qlora_planner.diagnose.gather import gather
from qlora_planner.diagnose.symptom_search import explain_symptom
from qlora_planner.record import document, record

__all__ = [
    "RULES",
    "Doctor",
    "Facts",
    "Finding",
    "TorchFacts",
    "check_dtypes",
    "diagnose",
    "examine",
    "explain_symptom",
    "gather",
]

SCHEMA = "qlora-plan/doctor/1"

# In the order in which a person would look: the ground first, then what stands on it.
RULES: tuple[Callable[[Facts], list[Finding]], ...] = (
    rules.python_version,
    versions.packages,
    versions.own_environment,
    rules.driver,
    rules.driver_for_torch,
    rules.torch_build,
    rules.torch_kernels,
    bitsandbytes.cuda_runtime,
    versions.bitsandbytes_version,
    bitsandbytes.bitsandbytes_library,
    bitsandbytes.bitsandbytes_kernels,
    rules.card_bf16,
    versions.traps,
    rules.gpu_memory,
    rules.place,
    rules.cache_room,
    rules.hub_token,
)


@record
class Doctor:
    """Everything the doctor found on one machine."""

    findings: tuple[Finding, ...]
    facts: Facts

    @property
    def exit_code(self) -> int:
        """3 when something that training needs is missing or broken, else 0."""
        return 3 if self.count("problem") else 0

    @property
    def summary(self) -> str:
        """One line: what works here."""
        problems, warnings = self.count("problem"), self.count("warning")
        noted = f"{warnings} warning{'s' if warnings != 1 else ''}"
        if problems == 1 and self._lacks_a_card_alone:
            return f"planning works here; toys train on the CPU, other models on a card; {noted}"
        if problems:
            return f"planning works here; training does not yet: {problems} to fix, {noted}"
        return f"nothing stands in the way of training here; {noted}"

    @property
    def _lacks_a_card_alone(self) -> bool:
        return self.facts.nvidia_hardware is False and all(map(self.facts.packages.get, TRAIN_PACKAGES))

    def count(self, status: Status) -> int:
        """How many findings have this status."""
        return sum(finding.status == status for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the findings, the installed versions and the verdict."""
        return {
            "schema": SCHEMA,
            "summary": self.summary,
            "exit_code": self.exit_code,
            "findings": document(self.findings),
            "packages": dict(self.facts.packages),
        }


def diagnose(host: Facts) -> Doctor:
    """Every rule over these facts. Reads nothing."""
    return Doctor(findings=tuple(finding for rule in RULES for finding in rule(host)), facts=host)


def examine(*, probe: bool = True, timeout_s: float = 30.0) -> Doctor:
    """Read this machine and diagnose it; a few seconds with torch installed, none without."""
    return diagnose(gather(probe=probe, timeout_s=timeout_s))
