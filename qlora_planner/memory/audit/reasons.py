"""The audit's reasons in plain words, and the one line that sums a model up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlora_planner.memory.options.stored_checkpoint import Checkpoint
from qlora_planner.spec.model import ModelProfile, TensorGroup
from qlora_planner.units import format_params, format_size

if TYPE_CHECKING:
    from qlora_planner.memory.audit.audit import AuditRow

_ROLES = {
    "output_head": "output head", "embedding": "embeddings", "experts": "fused experts", "linear": "linear layers",
    "router": "routers", "norm": "norms", "bias": "biases", "convolution": "convolutions", "buffers": "buffers",
}  # fmt: skip
# What a plain tensor is, for those that no rule names.
_NOT_LINEAR = {
    "embedding": "an embedding is looked up, not multiplied: bitsandbytes leaves it as it is",
    "norm": "norms are short vectors",
    "bias": "biases are short vectors; only the weight beside them is quantised",
    "convolution": "a convolution is no linear layer",
    "router": "the router is a parameter of its own, not a linear layer",
}


def role_label(role: str) -> str:
    """`output head` for `output_head`."""
    return _ROLES.get(role, role)


def why_not(role: str, reason: str, groups: Sequence[TensorGroup], profile: ModelProfile, bits: int) -> str:
    """Why these tensors are stored as they are."""
    transformers = f"transformers {profile.versions.get('transformers', '5')}"
    name, _, detail = reason.partition(":")
    if name == "quantized":
        return f"{', '.join(_classes(groups))} layers: bitsandbytes stores them in {bits} bits"
    if name == "buffer":
        return "computed once and kept beside the weights; never quantised, never cast"
    if name == "tied":
        other = groups[0].tied_with or "another tensor"
        return f"tied with {other}: the same storage, so no bytes of its own"
    if name == "linear_subclass":
        return f"{detail} is a subclass of nn.Linear; {transformers} replaces only nn.Linear itself"
    if name == "fused_experts":
        shape = f"{len(groups[0].shape)}-D parameters"
        return f"fused experts are {shape}, not linear layers: bitsandbytes never quantises them in {transformers}"
    if name == "output_head":
        return f"{transformers} protects the output head, whose rounding errors would go straight into the loss"
    if name == "kept_in_float32":
        return "the model's class lists it among the modules to keep in float32, so it is not quantised"
    if name == "protected":
        return f"{transformers} protects it (a tied tensor's module, or the last one of the model)"
    if name == "not_replaced":
        return f"{transformers} left this linear layer alone when it replaced the others"
    return _NOT_LINEAR.get(role, f"a plain parameter of {', '.join(_classes(groups))}, not a linear layer")


def _classes(groups: Sequence[TensorGroup]) -> list[str]:
    return list(dict.fromkeys(group.module_class for group in groups))[:3]


def headline(profile: ModelProfile, rows: Sequence[AuditRow], bits: int, checkpoint: Checkpoint | None) -> str:
    """One line: how much is quantised and what the largest exception costs."""
    name = profile.id.rpartition("/")[2]
    if checkpoint is not None and not checkpoint.works:
        return f"{name}: the published weights are {checkpoint.label}; bitsandbytes cannot be put on top of that"
    quantized = sum(row.params for row in rows if row.quantized)
    if not quantized:
        return f"{name}: nothing will be {bits}-bit"
    share = 100 * quantized / max(1, profile.params)
    of_all = f"{format_params(quantized)} of {format_params(profile.params)} parameters ({share:.0f} %)"
    text = f"{of_all} will be {bits}-bit"
    costly = _costliest(rows)
    if not costly:
        return f"{name}: {text}"
    labels = [role_label(role) for role in costly]
    verb = "stay" if len(labels) > 1 or labels[0].endswith("s") else "stays"
    rest = f"{' and '.join(labels)} {verb} 16-bit, which costs {format_size(sum(costly.values()))}"
    return f"{name}: only {text}; {rest}" if share < 50 else f"{name}: {text}; {rest}"


def _costliest(rows: Sequence[AuditRow]) -> dict[str, int]:
    """The roles that make up most of the cost, each with its bytes."""
    costs: dict[str, int] = {}
    for row in rows:
        if row.cost_bytes > 0:
            costs[row.role] = costs.get(row.role, 0) + row.cost_bytes
    total = sum(costs.values())
    largest = sorted(costs.items(), key=lambda item: (-item[1], item[0]))
    return {role: cost for role, cost in largest[:3] if cost >= total / 5}
