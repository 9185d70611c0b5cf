"""audit: what a run really stores in 4-bit, what stays as it is and why, and what each exception costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qlora_planner.catalog import SCHEMES, QuantScheme
from qlora_planner.errors import InputError
from qlora_planner.memory.allocator.caching import block_bytes
from qlora_planner.memory.audit.reasons import headline, why_not
from qlora_planner.memory.options.stored_checkpoint import Checkpoint, checkpoint_of
from qlora_planner.memory.weights.placement import PlacedTensor, Placement, packed_bytes
from qlora_planner.record import document, fields_of, record
from qlora_planner.spec.model import ModelProfile, TensorGroup
from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/audit/1"
QUANTIZED, BUFFER = "quantized", "buffer"
# Weights that a matrix product reads: what somebody who asks for 4-bit expects to be 4-bit. And embeddings, whose
# 16-bit size surprises people most.
_EXPECTED = frozenset({"linear", "output_head", "embedding", "experts", "router"})
_MOST_EXAMPLES = 4


@record
class AuditRow:
    """Tensors of one role that loading treats alike, for one reason. Bytes are as the allocator counts them."""

    role: str
    reason: str
    why: str
    tensors: int
    params: int  # a tied tensor has none of its own
    loaded_bytes: int
    quantized_bytes: int | None  # as loaded if bitsandbytes held it too; None where it never would
    prepared_bytes: int  # after prepare_model_for_kbit_training
    names: tuple[str, ...]  # examples, `*` for the layer index

    @property
    def quantized(self) -> bool:
        """Whether these tensors are stored by bitsandbytes."""
        return self.reason == QUANTIZED

    @property
    def cost_bytes(self) -> int:
        """What it costs that these tensors are not quantised; nothing where they never would be."""
        return 0 if self.quantized or self.quantized_bytes is None else self.loaded_bytes - self.quantized_bytes

    @property
    def prepare_cost_bytes(self) -> int:
        """What casting them to float32 adds."""
        return self.prepared_bytes - self.loaded_bytes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        row: dict[str, Any] = fields_of(self)
        return {**row, "names": list(self.names), "cost_bytes": self.cost_bytes}


@record
class Audit:
    """What loading does to one model. `rows` are largest first."""

    model: Mapping[str, Any]
    quant: str
    bits: int
    headline: str
    rows: tuple[AuditRow, ...]
    checkpoint: Checkpoint | None  # how the published weights are stored, where that is not 16-bit
    stack: Mapping[str, str]

    @property
    def quantized_params(self) -> int:
        """Parameters that bitsandbytes stores."""
        return sum(row.params for row in self.rows if row.quantized)

    @property
    def loaded_bytes(self) -> int:
        """Everything after loading."""
        return sum(row.loaded_bytes for row in self.rows)

    @property
    def prepared_bytes(self) -> int:
        """Everything after prepare_model_for_kbit_training."""
        return sum(row.prepared_bytes for row in self.rows)

    @property
    def cost_bytes(self) -> int:
        """What all exceptions cost together."""
        return sum(row.cost_bytes for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/audit/1`."""
        return {
            "schema": SCHEMA,
            "model": dict(self.model),
            "quant": self.quant,
            "headline": self.headline,
            "totals": {
                "params": self.model["params"],
                "quantized_params": self.quantized_params,
                "loaded_bytes": self.loaded_bytes,
                "prepared_bytes": self.prepared_bytes,
                "cost_bytes": self.cost_bytes,
            },
            "rows": [row.to_dict() for row in self.rows],
            "checkpoint": document(self.checkpoint),
            "stack": dict(self.stack),
        }


def audit(profile: ModelProfile, run: RunConfig) -> Audit:
    """Sort every tensor of `profile` by what loading with `run` does to it.

    Raises InputError for a run that quantises nothing: there is nothing to audit in it.
    """
    quant = run.quant or ("nf4" if run.method == "qlora" else "none")
    scheme = SCHEMES.get(quant)
    if scheme is None or run.method == "full":
        raise InputError("audit: this run quantises nothing; audit it as --method qlora with --quant nf4, fp4 or int8")
    run = run.with_(quant=quant, upcast=True)
    groups: dict[tuple[str, str, str], list[PlacedTensor]] = {}
    for tensor in Placement(profile, run).weights:
        group = tensor.group
        if group.buffer:
            key = ("buffers", BUFFER, "")
        elif tensor.scheme is not None:
            key = (group.role, QUANTIZED, "")
        else:
            # Other parts are many and small; who wants them by class reads the names.
            module = group.module_class if group.role == "other" else ""
            key = (group.role, group.reason or "not_linear", module)
        groups.setdefault(key, []).append(tensor)
    bits = scheme.weight_bits
    rows = [_row(key, tensors, profile, run, scheme) for key, tensors in groups.items()]
    rows.sort(key=lambda row: (not row.quantized, -row.loaded_bytes, row.role, row.reason))
    checkpoint = checkpoint_of(profile)
    return Audit(
        model={name: getattr(profile, name) for name in ("id", "model_type", "class_name", "params")},
        quant=quant,
        bits=bits,
        headline=headline(profile, rows, bits, checkpoint),
        rows=tuple(rows),
        checkpoint=checkpoint,
        stack=dict(profile.versions),
    )


def _row(
    key: tuple[str, str, str], tensors: list[PlacedTensor], profile: ModelProfile, run: RunConfig, scheme: QuantScheme
) -> AuditRow:
    role, reason, _ = key
    groups = [tensor.group for tensor in tensors]
    loaded = prepared = quantized = 0
    for tensor in tensors:
        count = 0 if tensor.group.tied_with else tensor.group.count
        constants = _in_blocks(*tensor.constant_bytes)
        loaded += count * (_in_blocks(tensor.weight_bytes) + constants)
        prepared += count * (_in_blocks(tensor.prepared_bytes) + constants)
        if tensor.scheme is None and len(tensor.shape) > 1:
            weight, rest = packed_bytes(scheme, tensor.shape, run.double_quant)
            quantized += count * _in_blocks(weight, *rest)
        else:
            quantized += count * (_in_blocks(tensor.weight_bytes) + constants)
    expected = role in _EXPECTED and len(groups[0].shape) >= 2 and reason != "tied"
    return AuditRow(
        role=role,
        reason=reason,
        why=why_not(role, reason, groups, profile, scheme.weight_bits),
        tensors=sum(group.count for group in groups),
        params=0 if reason == BUFFER else sum(group.total_numel for group in groups),
        loaded_bytes=loaded,
        quantized_bytes=quantized if reason == QUANTIZED or expected else None,
        prepared_bytes=prepared,
        names=tuple(_examples(groups)),
    )


def _in_blocks(*sizes: int) -> int:
    return sum(block_bytes(size) for size in sizes)


def _examples(groups: Iterable[TensorGroup]) -> list[str]:
    """The names of the largest, each once."""
    largest = sorted(groups, key=lambda group: -group.numel * group.count)
    return list(dict.fromkeys(group.name for group in largest))[:_MOST_EXAMPLES]
