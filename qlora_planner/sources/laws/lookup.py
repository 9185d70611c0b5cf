"""Whether a config is one of a structure whose law is known, and the profile that the law gives it.

profiles/laws holds, for each class, its structures: which fields are dimensions, what every other field has to be, and
each tensor's shape as a sum of products of the dimensions (tools/laws). A structure is a config's when every field that
shapes the class is a dimension or has the value known for it, is left out where the class works out the same, and no
field is unknown. Whatever else a config says is refused, with what the known models have there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_planner.bounded import read_bytes, small_json, unpacked
from qlora_planner.errors import InputError
from qlora_planner.memory.options.stored_checkpoint import stored_quantization
from qlora_planner.record import record
from qlora_planner.sources.configs import RawConfig
from qlora_planner.sources.laws.fields import Match, has_a_known_rope, matched
from qlora_planner.sources.laws.inventory import law_profile
from qlora_planner.sources.laws.sizes import NotWholeError, size_at
from qlora_planner.sources.laws.unlike import Unlike, nearest
from qlora_planner.sources.same_shape import FIELDS_SCHEMA, ROPE_TABLES
from qlora_planner.spec.model import ModelProfile

LAW_SCHEMA = "qlora-plan/law/1"
_LARGEST_BYTES = 1 << 20
# Dimensions that change how often a layer's events come, and how long a sequence may be, but no size of a trace.
_BESIDE_TRACES = ("num_hidden_layers", "max_position_embeddings")
# Attention on heads that are wider, or no multiple of eight, takes other kernels (tools/families/toys.py).
_OF_HEADS = ("num_key_value_heads", "head_dim")
_WIDEST_USUAL_HEAD, _HEAD_STEP = 128, 8


@record
class Refused:
    """Why no law covers a config, in words that end a sentence; whether the class itself breaks on it."""

    reason: str
    breaks: bool = False


def profile_by_law(
    raw: RawConfig, laws: Sequence[Path], fields: Sequence[Path], families: frozenset[str] = frozenset()
) -> ModelProfile | Refused | None:
    """The profile of `raw` by the law of its class, Refused where no known structure is its own; None without a law.

    `laws` and `fields` are folders of which an earlier one wins; `families` are the hashes of the configs that a family
    of traces is known for. Raises InputError naming a file of laws that cannot be read.
    """
    kind = raw.config.get("model_type")
    if not isinstance(kind, str) or not kind.isidentifier():
        return None
    law, table = _law(laws, kind), _table(fields, kind)
    if law is None or table is None:
        return None
    refused: list[Unlike] = []
    fitting: list[ModelProfile] = []
    for structure in law["structures"]:
        try:
            profile, match = by_structure(raw, structure, table, law)
            check_rope(raw, structure, table, match)
            fitting.append(_with_known(_with_family(profile, structure, match.dims, families), structure, match.dims))
        except Unlike as unlike:
            refused.append(unlike)
    if fitting:
        return max(fitting, key=lambda profile: (profile.same_shape_as is not None, bool(profile.family_sha256)))
    if not refused:
        return None
    near = nearest(refused)
    return Refused(reason=near.reason, breaks=near.breaks)


def by_structure(
    raw: RawConfig, structure: Mapping[str, Any], table: Mapping[str, Any], law: Mapping[str, Any]
) -> tuple[ModelProfile, Match]:
    """The profile of a config of this structure, and its dimensions; `table` says which fields of the class are inert.

    Raises Unlike.
    """
    shapes = _shapes_of(structure, table)
    if not shapes:
        raise Unlike(f"the fields of {law['model_type']} are not known", faults=99)
    match = _matched(raw, structure, shapes, str(law["model_type"]))
    try:
        profile = law_profile(
            structure, match.dims, match.kinds, law["versions"],
            id=raw.id, model_type=law["model_type"], config_sha256=raw.sha256, source="family",
            checkpoint_quantization=stored_quantization(raw.config),
            note=f"worked out from the config by the law of the {law['model_type']} class",
        )  # fmt: skip
    except NotWholeError as fault:
        raise Unlike(f"{fault} is no whole number there") from None
    return profile, match


def _matched(raw: RawConfig, structure: Mapping[str, Any], shapes: Sequence[Mapping[str, Any]], kind: str) -> Match:
    """By the first part of the table of fields whose models have the config's fields. Raises Unlike."""
    refused: list[Unlike] = []
    for shape in shapes:
        try:
            return matched(raw.config, structure, shape, kind)
        except Unlike as unlike:
            refused.append(unlike)
    raise nearest(refused)


def check_rope(raw: RawConfig, structure: Mapping[str, Any], table: Mapping[str, Any], match: Match) -> None:
    """Raises Unlike where the config tells positions otherwise than every known model of the structure."""
    shapes = _shapes_of(structure, table)
    if not any(has_a_known_rope(raw.config, structure, shape, match.dims) for shape in shapes):
        names = [name for name in ROPE_TABLES if raw.config.get(name)]
        raise Unlike(f"{' and '.join(names or ROPE_TABLES)} is of another kind than the known models have")


def _shapes_of(structure: Mapping[str, Any], table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a table of fields that hold models of this structure."""
    return [shape for shape in table["structures"] if not structure["models"].keys().isdisjoint(shape["models"])]


def _with_family(
    profile: ModelProfile, structure: Mapping[str, Any], dims: Mapping[str, int], families: frozenset[str]
) -> ModelProfile:
    """The profile with the nearest known model whose family of traces is its own too."""
    from dataclasses import replace

    candidates = [
        (drawn, model["sha256"])
        for model in structure["models"].values()
        if model["sha256"] in families and (drawn := _drawn(model["dims"], dims, structure)) is not None
    ]
    if not candidates:
        return profile
    letters = set(structure["letters"])
    drawn, sha256 = min(candidates, key=lambda candidate: (len(set(candidate[0]) - letters), len(candidate[0])))
    return replace(profile, family_sha256=sha256, drawn_dims=drawn)


def _with_known(profile: ModelProfile, structure: Mapping[str, Any], dims: Mapping[str, int]) -> ModelProfile:
    """The profile with the known model whose dimensions are all its own: every other field that shapes the class is the
    structure's, so that it is the same model where the layers come in the same order too."""
    from dataclasses import replace

    kinds = list(structure["layers"].get("kinds", {}).values())
    if len(set(kinds)) < len(kinds):  # layers with the same tensors run otherwise, and may come in another order
        return profile
    own = {name: value for name, value in dims.items() if name != _BESIDE_TRACES[1]}
    for name, model in structure["models"].items():
        if {symbol: value for symbol, value in model["dims"].items() if symbol in own} == own:
            return replace(profile, same_shape_as=name, same_shape_sha256=model["sha256"])
    return profile


def _drawn(
    of_model: Mapping[str, int], dims: Mapping[str, int], structure: Mapping[str, Any]
) -> tuple[str, ...] | None:
    """The dimensions in which a config differs from a known model; None where other kernels run on it.

    Widths that hang on others are among them: families are traced on toys that keep the known model's.
    """
    heads = (dims.get("head_dim"), of_model.get("head_dim"))
    if heads[0] != heads[1] and any(head is None or head > _WIDEST_USUAL_HEAD or head % _HEAD_STEP for head in heads):
        return None
    drawn = [name for name, value in dims.items() if value != of_model.get(name) and name not in _BESIDE_TRACES]
    for name, rule in structure["fields"].items():
        size = rule.get("size")
        if size is not None and name not in _OF_HEADS and size_at(size, dims) != size_at(size, of_model):
            drawn.append(name)
    return tuple(drawn)


def _law(dirs: Sequence[Path], kind: str) -> dict[str, Any] | None:
    for folder in dirs:
        path = folder / f"{kind}.json.gz"
        if not path.is_file():
            continue
        try:
            law: dict[str, Any] = json.loads(unpacked(read_bytes(path, _LARGEST_BYTES, "law"), 16 * _LARGEST_BYTES))
            return law if law["schema"] == LAW_SCHEMA else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}: not a readable law ({type(error).__name__}); `make laws` writes it anew"
            ) from error
    return None


def _table(dirs: Sequence[Path], kind: str) -> dict[str, Any] | None:
    for table in _tables(dirs, kind):
        if table.get("schema") == FIELDS_SCHEMA:
            return table
    return None


def _tables(dirs: Sequence[Path], kind: str) -> Iterator[dict[str, Any]]:
    for folder in dirs:
        try:
            yield small_json(folder / f"{kind}.json")
        except (OSError, ValueError):  # no such file, or none of ours
            continue
