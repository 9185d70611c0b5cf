"""A compact index of the catalogue: every model's static peaks for the default recipe, so a survey parses one file.

The index holds nothing that the profiles do not: `build_index` makes it from them, and a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.memory.closed_form.activations import LayerShape, ModelShape
from qlora_planner.memory.closed_form.static_peaks import StaticPeaks, static_peaks_of
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.options.stored_checkpoint import stored_problem
from qlora_planner.memory.sweep.polynomials import FixedBytes, PeakPolynomials
from qlora_planner.memory.sweep.validity import ValidityRange
from qlora_planner.memory.unmodelled.left_out import left_out
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.memory.weights.static import StaticMemory
from qlora_planner.memory.weights.trainable import TrainingState
from qlora_planner.planner.knobs import SOME_LAYERS
from qlora_planner.planner.search_space import WEIGHT_STORAGES
from qlora_planner.planner.survey.played import PlayedRuns, layers_checkpointed
from qlora_planner.planner.survey.survey import Candidate
from qlora_planner.planner.sweeps import KeptSweep, SweptRange, fixed_of
from qlora_planner.record import fields_of, record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.step import StepWork, step_work
from qlora_planner.speed.work import Work

SCHEMA = "qlora-plan/index/3"
# The default recipe resolves in one way on cards with bfloat16 and in another on cards without.
_CARDS = {
    "bfloat16": GpuSpec(name="any", label="a card with bfloat16", memory_bytes=1, bf16=True),
    "float16": GpuSpec(name="any", label="a card without bfloat16", memory_bytes=1, bf16=False),
}
# What traces call the kernels of these cards: before compute capability 8.0 none has bfloat16.
_KERNELS = {"bfloat16": "sm90", "float16": "sm70"}
_CAPABILITIES = ("8.0", "9.0")  # with a small and with a large cuBLAS workspace
_LONGEST = 1 << 18  # tokens up to which moments compete for a place in the index
# The default recipe's trainer casts no weight back.
_STATIC = tuple(spec.name for spec in fields(StaticMemory) if spec.name not in ("trainable", "cast_back"))


def build_index(profiles: Iterable[ModelProfile], sweeps: Mapping[str, KeptSweep] | None = None) -> dict[str, Any]:
    """The index document of `profiles` and the traced moments of those that have them, JSON-ready.

    Models whose published weights no run can take are left out, and those of which this stack leaves something out: the
    index holds figures of what works. Text parts of models with towers are there, and name the whole.
    """
    usual = RunConfig()
    kept = [one for one in profiles if stored_problem(one, usual) is None and not _else_left_out(one, usual)]
    return {"schema": SCHEMA, "models": [_row(profile, (sweeps or {}).get(profile.id)) for profile in kept]}


def _else_left_out(profile: ModelProfile, run: RunConfig) -> bool:
    """Whether something beside a model's towers is not counted."""
    return bool(left_out(replace(profile, text_part_of=None), run))


def _row(profile: ModelProfile, sweep: KeptSweep | None) -> dict[str, Any]:
    limit = profile.dims.get("max_position_embeddings")
    row: dict[str, Any] = {
        "id": profile.id, "family": profile.model_type, "params": profile.params,
        "max_seq_len": int(limit) if limit else None, "versions": dict(profile.versions), "on": {},
    }  # fmt: skip
    if profile.text_part_of is not None:
        row["part_of"] = profile.text_part_of
    default = RunConfig()
    for name, card in _CARDS.items():
        resolution = resolve(profile, default, card)
        ground = static_peaks_of(profile, resolution, cublas_workspace_bytes(None))
        changed = {
            option: value for option, value in resolution.run.to_dict().items() if value != getattr(default, option)
        }
        row["on"][name] = {"run": changed, "ground": _encode(ground)}
        fixed = fixed_of(ground, resolution.run)
        row["on"][name]["fixed"] = _values(fixed)
        row["on"][name]["bases"] = [_base(profile, base.options, card) for base in WEIGHT_STORAGES if base.quality != 1]
        of_card = [part for part in (sweep.parts if sweep else ()) if part.variant.split()[0] == _KERNELS[name]]
        row.setdefault("sweep", []).extend(_swept(part, fixed) for part in of_card)
    for first, second in zip(row["on"]["bfloat16"]["bases"], row["on"]["float16"]["bases"], strict=True):
        if first["ground"] == second["ground"]:
            second["ground"] = None
    if row["on"]["float16"]["ground"] == row["on"]["bfloat16"]["ground"]:
        row["on"]["float16"]["ground"] = None
    return row


def _base(profile: ModelProfile, options: Mapping[str, Any], card: GpuSpec) -> dict[str, Any]:
    """One way to store the weights: its static peaks, and a step's work with and without checkpoints and padding."""
    typed = RunConfig(**options)
    resolution = resolve(profile, typed, card)
    run = resolution.run
    ground = static_peaks_of(profile, resolution, cublas_workspace_bytes(None))
    works = []
    several = card.bf16 and len(profile.layer_kinds) > 1  # the usual runs, which are played, are runs in bfloat16
    for every in (1, 0, *SOME_LAYERS) if several else (1, 0):
        for padding in (False, True):
            turned = run.with_(**layers_checkpointed(every), padding=padding)
            works.append(_encode_work(step_work(profile, replace(resolution, run=turned))))
    return {
        "options": dict(options),
        "run": {name: value for name, value in run.to_dict().items() if value != getattr(typed, name)},
        "ground": _encode(ground),
        "fixed": _values(fixed_of(ground, run)),
        "works": works,
        "refused": any(problem.blocking for problem in resolution.problems),
    }


def _encode_work(work: StepWork) -> list[Any]:
    return [
        _sparse(work.micro), [[window, _sparse(more)] for window, more in work.masked], work.optimizer_fixed,
        work.optimizer_per_rank, work.tensor_steps, work.experts, work.head_tile_tokens,
    ]  # fmt: skip


def _decode_work(raw: Sequence[Any]) -> StepWork:
    micro, masked, fixed, per_rank, tensors, experts, tile = raw
    return StepWork(
        micro=_dense(micro), masked=tuple((window, _dense(more)) for window, more in masked), micro_steps=1,
        optimizer_fixed=fixed, optimizer_per_rank=per_rank, tensor_steps=tensors, experts=experts,
        head_tile_tokens=tile,
    )  # fmt: skip


def _sparse(work: Work) -> list[float]:
    """Places in the flat table and what stands there, in turn."""
    flat = work.table.ravel()
    return [number for at in flat.nonzero()[0].tolist() for number in (at, float(flat[at]))]


def _dense(raw: Sequence[float]) -> Work:
    work = Work()
    flat = work.table.ravel()  # a view: the table is contiguous
    for at, value in zip(raw[::2], raw[1::2], strict=True):
        flat[int(at)] = value
    return work


@record
class IndexedStorage:
    """One way to store a model's weights, as the index has it for a kind of card.

    `options` are as they would be typed, `settled` what the open ones became. `works`: with checkpoints and without
    padding, with both, with neither, with padding alone; where layers are of several kinds, the same pair for each
    number of layers of which one is checkpointed.
    """

    options: Mapping[str, Any]
    settled: Mapping[str, Any]
    ground: StaticPeaks
    fixed: FixedBytes
    works: Sequence[Any]  # as they are kept: few are asked for

    def work(self, every: int, *, padding: bool) -> StepWork:
        """The work of a step of a run that checkpoints one layer in `every` (0: none), with and without padding."""
        if every < 2 or len(self.works) > 4:
            return _decode_work(self.works[2 * (1, 0, *SOME_LAYERS).index(every) + padding])
        layers = sum(layer.count for layer in self.ground.shape.layers)
        checkpointed, kept = (_decode_work(self.works[at + padding]) for at in (0, 2))
        return kept.towards(checkpointed, -(-layers // every) / layers)


def storages_of(profile: ModelProfile, gpu: GpuSpec) -> tuple[IndexedStorage, ...]:
    """The same for a model that the index lacks."""
    name = "float16" if gpu.bf16 is False else "bfloat16"
    bases = [_base(profile, base.options, _CARDS[name]) for base in WEIGHT_STORAGES if base.quality != 1]
    row = {"on": {name: {"bases": bases}, "bfloat16": {"bases": bases}}}
    return tuple(_bases_of(row, name, cublas_workspace_bytes(gpu.compute_capability)))


def _bases_of(row: Mapping[str, Any], name: str, workspace: int) -> Iterator[IndexedStorage]:
    usual = row["on"]["bfloat16"]["bases"]
    for at, base in enumerate(row["on"][name]["bases"]):
        if not base["refused"]:
            yield IndexedStorage(
                options=base["options"], settled=base["run"], fixed=_record(FixedBytes, base["fixed"]),
                ground=replace(_decode(base["ground"] or usual[at]["ground"]), workspace=workspace),
                works=base["works"],
            )  # fmt: skip


def _swept(part: SweptRange[PeakPolynomials], fixed: FixedBytes) -> dict[str, Any]:
    return {
        "variant": part.variant,
        "region": _values(part.region),
        "moments": _leading(part, fixed).to_dict(),
    }


def _leading(part: SweptRange[PeakPolynomials], fixed: FixedBytes) -> PeakPolynomials:
    """Candidates that lead at the rank that the index answers for: at batch 1 at every length, at larger batches at the
    default length and at many others, between which one that was left out could lead by little.

    `plan` reads the whole set from the tape.
    """
    import numpy as np

    region = part.region
    assert isinstance(region, ValidityRange)  # the index answers for texts
    if region.batched:
        lengths = sorted({RunConfig().seq_len, *(64 * round(2 ** (at / 2)) for at in range(20))})
        batches = [*range(2, 129), *(2**at for at in range(8, 13))]
        runs = [(batch, length) for batch in batches for length in lengths if region.holds(batch, length)]
        batch, seq = np.array(runs).T
    else:
        seq = np.arange(region.low + 1, min(region.high, _LONGEST) + 1)
        batch = np.ones_like(seq)
    kept: dict[str, set[int]] = {}
    for capability in _CAPABILITIES:
        moments = part.moments.on(cublas_workspace_bytes(capability))
        for phase, rows in moments.leading(batch, seq, RunConfig().rank, fixed).items():
            kept.setdefault(phase, set()).update(rows)
    return part.moments.only({phase: sorted(rows) for phase, rows in kept.items()})


def _encode(ground: StaticPeaks) -> dict[str, Any]:
    return {
        "static": [getattr(ground.static, name) for name in _STATIC],
        "state": _values(ground.state),
        "load": _values(ground.load),
        "adapters": _values(ground.adapters),
        "layers": [_values(layer) for layer in ground.shape.layers],
        "ends": [ground.shape.hidden, ground.shape.vocab],
    }


def _values(record: Any) -> list[Any]:
    return list(fields_of(record).values())


def _record(kind: type[Any], values: list[Any]) -> Any:
    return kind(**dict(zip((spec.name for spec in fields(kind)), values, strict=True)))


def _decode(raw: Mapping[str, Any]) -> StaticPeaks:
    return StaticPeaks(
        static=StaticMemory(trainable=(), **dict(zip(_STATIC, raw["static"], strict=True))),
        state=_record(TrainingState, raw["state"]),
        shape=ModelShape(
            layers=tuple(_record(LayerShape, values) for values in raw["layers"]),
            hidden=raw["ends"][0],
            vocab=raw["ends"][1],
        ),
        load=_record(PhasePeak, raw["load"]),
        prepare=None,
        adapters=_record(PhasePeak, raw["adapters"]),
        workspace=0,
    )


def candidates(
    index: Mapping[str, Any], gpu: GpuSpec, run: RunConfig, played: Mapping[str, Any] | None = None
) -> list[Candidate]:
    """Every model of the index for a survey on `gpu`, when `run` is the default but for batch and sequence.

    `played` has the rows of played.json.
    """
    workspace = cublas_workspace_bytes(gpu.compute_capability)
    name = "float16" if gpu.bf16 is False else "bfloat16"
    rows = played if played and gpu.bf16 is not False else {}  # they are runs in bfloat16
    models = []
    for row in index["models"]:
        on = row["on"][name]
        several = run.batch_size > 1  # of which padding is left open, as in the default recipe
        resolved = run.with_(**{**on["run"], "padding": several})
        models.append(
            Candidate(
                model_id=row["id"], family=row["family"], params=row["params"], max_seq_len=row["max_seq_len"],
                resolution=Resolution.resolved(resolved, row["versions"], why=dict.fromkeys(on["run"], "")),
                sweep=_sweep([part for part in row["sweep"] if part["variant"].startswith(_KERNELS[name])]),
                fixed=_record(FixedBytes, on["fixed"]),
                ground=replace(_decode(on["ground"] or row["on"]["bfloat16"]["ground"]), workspace=workspace),
                bases=tuple(_bases_of(row, name, workspace)),
                text_part_of=row.get("part_of"),
                played=PlayedRuns.of(rows[row["id"]], workspace) if row["id"] in rows else None,
            )
        )  # fmt: skip
    return models


def _sweep(raw: Sequence[Mapping[str, Any]]) -> KeptSweep | None:
    if not raw:
        return None
    return KeptSweep(
        parts=tuple(
            SweptRange(
                variant=part["variant"],
                region=_record(ValidityRange, part["region"]),
                moments=PeakPolynomials.from_dict(part["moments"]),
            )
            for part in raw
        )
    )


def serves(run: RunConfig) -> bool:
    """Whether the index answers for `run`: every option but batch and sequence at its default."""
    return run.with_(seq_len=2048, batch_size=1) == RunConfig()
