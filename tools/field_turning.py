"""Turn the fields of one toy config and see what comes of it: nothing, other tensors, or another trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.profiling.build import build_profile
from qlora_planner.profiling.meta_model import make_config
from qlora_planner.profiling.refusals import Prober
from qlora_planner.profiling.tracing.engine import trace
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.same_shape import NOT_OF_THE_SHAPE, POSITIONS, ROPE_TABLES, json_type, plain_rope
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape
from qlora_planner.train.toy import toy_config
from tools.field_reads import reads_noted

# Longer than a toy's sliding window, shorter than its positions; the recipes that ship (tools/traces.py).
_TOKENS = 160
_RECIPES = (RunConfig(seq_len=_TOKENS), RunConfig(seq_len=_TOKENS, batch_size=2, padding=True))
# What published configs carry beside the fields of their class: left from other versions and other programs.
_CARRIED = (
    "unsloth_version", "unsloth_fixed", "use_mrope", "rope_interleaved", "rope_theta", "rope_local_base_freq",
    "rotary_emb_base", "tokenizer_class", "task_specific_params", "torchscript", "use_bfloat16", "pruned_heads",
    "is_decoder", "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder", "finetuning_task",
    "prefix", "num_labels", "top_k", "top_p", "temperature", "do_sample", "max_length", "min_length", "num_beams",
    "num_beam_groups", "diversity_penalty", "repetition_penalty", "length_penalty", "typical_p", "early_stopping",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values", "sep_token_id",
    "decoder_start_token_id", "pretraining_tp", "mup_enabled", "model_max_length", "seq_length", "onnx_export",
    "_flash_attn_2_enabled", "_attn_implementation", "attn_implementation", "eos_token_id", "bos_token_id",
    "pad_token_id", "use_flash_attn", "transformers_weights", "quantization", "ep_size", "qkv_bias",
    "experts_per_token", "initial_context_length", "moe_layer_freq", "aux_loss_alpha", "seq_aux", "n_ctx",
    "max_sequence_length", "expert_intermediate_size",
)  # fmt: skip
_SAMPLES: dict[str, tuple[Any, ...]] = {
    "null": (None,), "bool": (True, False), "int": (7, 1), "float": (0.5, 3.5), "str": ("x",), "list": ([1, 2], []),
    "dict": ({},),
}  # fmt: skip
# Read by the model, and worth turning: numbers that scale, and ids.
_NEVER_TURNED = (
    "drop",
    "jitter",
    "noise",
    "clip",
    "limit",
    "size",
    "dim",
    "num_",
    "n_",
    "rank",
    "window",
    "layer_id",
)
_ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "llama3", "rope_theta": 7e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "rope_theta": 3e5, "factor": 2.0, "beta_fast": 16.0, "beta_slow": 2.0,
     "original_max_position_embeddings": 512, "attention_factor": 1.5, "mscale": 0.7, "mscale_all_dim": 0.7,
     "truncate": False},
    {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
    {"rope_type": "default", "rope_theta": 9e3},
)  # fmt: skip


class _Unasked(Prober):
    """Asks no library what it refuses: that takes longer than everything else."""

    def refusal(self, raw: Mapping[str, Any], key: tuple[str, ...], **options: Any) -> str | None:
        return None


@dataclass
class Structure:
    """What is inert in the configs that have one structure in common."""

    toy: dict[str, Any]
    finished: dict[str, Any]
    inert: dict[str, dict[str, Any]]
    rope_types: list[str]
    rope_inert: list[str]
    aliases: dict[str, str]

    @classmethod
    def turned(cls, raw: Mapping[str, Any], name: str) -> Structure:
        """The structure of a catalogue model's config, every field turned at toy size."""
        config = make_config(deepcopy(dict(raw)), name)
        aliases = {alias: own for alias, own in type(config).attribute_map.items() if alias != own}
        toy = {key: value for key, value in toy_config(raw).items() if key not in NOT_OF_THE_SHAPE}
        found = cls(toy=toy, finished=finished(toy, None), inert={}, rope_types=[], rope_inert=[], aliases=aliases)
        bench = _Bench(name)
        with reads_noted() as reads:
            usual = bench.outcome(toy)
        found._turn_ropes(bench, usual)
        found.finished = finished(toy, found)
        found._turn_numbers(bench, usual, reads)
        found._turn_unread(reads)
        found.finished = finished(toy, found)
        return found

    def _turn_ropes(self, bench: _Bench, usual: Any) -> None:
        own = self.finished.get("rope_parameters")
        if not isinstance(own, dict) or not own:
            return
        nested = all(isinstance(value, dict) for value in own.values())
        bare = {key: value for key, value in self.toy.items() if key not in ROPE_TABLES and key != "rope_theta"}
        sub: set[str] = {"rope_theta"}
        for rope in _ROPES:
            kept = {"partial_rotary_factor": own["partial_rotary_factor"]} if "partial_rotary_factor" in own else {}
            table = {kind: rope | {} for kind in own} if nested else rope | kept
            # Positions are worked out beside the model, whatever the recipe: a trace of one tells.
            if bench.same(bare | {"rope_parameters": table}, usual, recipes=1):
                self.rope_types.append(rope["rope_type"])
                sub |= set(rope) - {"rope_type"}
        self.rope_inert = sorted(sub) if "default" in self.rope_types else []
        if not self.rope_inert:
            self.rope_types = []

    def _turn_numbers(self, bench: _Bench, usual: Any, reads: set[str]) -> None:
        numbers = {
            name: value for name, value in self.finished.items()
            if name in reads and not isinstance(value, bool) and isinstance(value, (int, float)) and value > 0
            and not any(part in name for part in _NEVER_TURNED) and not name.endswith("_token_id")
        }  # fmt: skip
        names = {**numbers, **{name: self.finished[name] for name in POSITIONS if name in self.finished}}
        names |= {
            name: None for name in (*self.finished, "pad_token_id") if name.endswith("_token_id") and name in reads
        }

        def turn(which: Mapping[str, Any], how: int) -> bool:
            return bench.same(self.toy | {name: _turned(name, value, how) for name, value in which.items()}, usual)

        if names and turn(names, 0) and turn(names, 1):
            inert = dict(names)
        else:
            inert = {name: value for name, value in names.items() if turn({name: value}, 0) and turn({name: value}, 1)}
        for name, value in inert.items():
            kinds = (
                ["null", "int"] if name.endswith("_token_id") else ["int", "float"] if type(value) is float else ["int"]
            )
            self.inert[name] = {"how": "turned", "types": kinds}
        plain = {name: value for name, value in inert.items() if name in numbers and name not in POSITIONS}
        for special, how in ((0, 2), (1, 3)):
            if plain and not turn(plain, how):
                for name, value in plain.items():
                    if not turn({name: value}, how):
                        self.inert[name].setdefault("except", []).append(special)

    def _turn_unread(self, reads: set[str]) -> None:
        names = (set(self.finished) | set(_CARRIED)) - reads - set(self.inert) - set(ROPE_TABLES) - set(self.aliases)
        for name in sorted(names - set(self.aliases.values()) | (set(self.aliases.values()) - reads)):
            if name in self.inert or name in NOT_OF_THE_SHAPE:
                continue
            usual = finished(self.toy, self, without=name)
            kinds = [
                kind for kind, samples in _SAMPLES.items()
                if all(finished(self.toy | {name: value}, self, without=name) == usual for value in samples)
            ]  # fmt: skip
            own = json_type(self.finished.get(name))
            if kinds and (name not in self.finished or own in kinds):
                self.inert[name] = {"how": "unread", "types": "any" if len(kinds) == len(_SAMPLES) else kinds}


class _Bench:
    """Tensors and traces of a toy by the recipes that ship, as its real model resolves them."""

    def __init__(self, name: str) -> None:
        profile = ModelCatalogue([Path("profiles/models")]).load(name)
        resolutions = [resolve(profile, run) for run in _RECIPES]
        self._specs = [TraceSpec(resolution=one) for one in resolutions]

    def outcome(self, raw: Mapping[str, Any], recipes: int = len(_RECIPES)) -> tuple[ModelProfile, list[Tape]]:
        """The toy's profile, but for how many positions it has, and its tape by each recipe."""
        source: Any = SimpleNamespace(config=deepcopy(dict(raw)), id="toy", sha256="")
        profile = build_profile(source, prober=_Unasked())
        dims = {name: value for name, value in profile.dims.items() if name != "max_position_embeddings"}
        return replace(profile, dims=dims), [trace(deepcopy(dict(raw)), spec) for spec in self._specs[:recipes]]

    def same(
        self, raw: Mapping[str, Any], usual: tuple[ModelProfile, list[Tape]], recipes: int = len(_RECIPES)
    ) -> bool:
        """Whether this toy has the usual tensors and, event by event, the usual traces."""
        try:
            profile, tapes = self.outcome(raw, recipes)
            return profile == usual[0] and tapes == usual[1][:recipes]
        except Exception:  # a class may refuse a value with whatever it likes: then the value matters
            return False


def _turned(name: str, value: Any, how: int) -> Any:
    if name in POSITIONS:
        return (_TOKENS // 2, 1 << 18)[how] if how < 2 else value
    if name.endswith("_token_id"):
        return (5, None)[how] if how < 2 else value
    if how >= 2:
        return type(value)((0, 1)[how - 2])
    return value * 3 if how == 0 else (value / 4 if type(value) is float else value + 5)


def finished(raw: Mapping[str, Any], structure: Structure | None, without: str | None = None) -> Any:
    """The config as its class completes it, without what says nothing of the shape and what `structure` found inert.

    A text where the class refuses the config.
    """
    try:
        fields = json.loads(json.dumps(make_config(deepcopy(dict(raw)), "toy").to_dict(), default=str))
    except Exception as error:  # see `_Bench.same`
        return f"refused: {type(error).__name__}"
    skipped = {*NOT_OF_THE_SHAPE, "model_type", "num_labels", "id2label", "label2id", without}
    if structure is not None:
        skipped |= set(structure.inert)
        if "rope_parameters" in fields:
            fields["rope_parameters"] = plain_rope(
                fields["rope_parameters"], structure.rope_types, structure.rope_inert
            )
    return {name: value for name, value in fields.items() if name not in skipped}


def alike(structure: Structure, raw: Mapping[str, Any]) -> bool:
    """Whether a catalogue model's toy differs from the structure's in nothing but inert fields."""
    toy = {key: value for key, value in toy_config(raw).items() if key not in NOT_OF_THE_SHAPE}
    return bool(finished(toy, structure) == structure.finished)


def shape_of(structure: Structure, raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What of a catalogue model's config shapes it; `absent` and `null` list what its class works out the same."""
    given = {key: value for key, value in raw.items() if key not in NOT_OF_THE_SHAPE}
    usual = finished(given, structure)
    own = {structure.aliases.get(key, key): value for key, value in given.items()}
    known = {**own, **usual}
    fields = {
        key: value for key, value in known.items()
        if key not in structure.inert and key not in ROPE_TABLES and key != "model_type"
    }  # fmt: skip
    whole = {**own, **finished(given, None)}

    taken = set(own) - set(usual)  # by the class while it reads its config, or kept there where others are given

    def as_usual(changed: Mapping[str, Any]) -> bool:
        made = finished(changed, structure)
        return isinstance(made, dict) and {k: v for k, v in made.items() if k not in taken} == usual

    def completes(changes: Mapping[str, Any], left_out: set[str]) -> bool:
        return as_usual({key: value for key, value in {**whole, **changes}.items() if key not in left_out})

    if not completes({}, set()):
        raise ValueError(f"{name}: its completed config is not completed to itself")
    absent: set[str] = set()
    for key in sorted(fields):
        if completes({}, {*absent, key}):
            absent.add(key)
    null = [key for key in sorted(fields) if fields[key] is not None and completes({key: None}, set())]
    # A window that another field overrules is not even kept.
    windows = ({**whole, "sliding_window": window} for window in (None, 7, 4096))
    overruled = "sliding_window" in fields and all(as_usual(one) for one in windows)
    found: dict[str, Any] = {"fields": fields, "absent": sorted(absent), "null": null}
    if overruled:
        found["free"] = {"sliding_window": ["null", "int"]}
    if usual.get("rope_parameters"):
        found["rope"] = usual["rope_parameters"]
    return found


def written(table: Mapping[str, Any]) -> str:
    """The table's text, a line a model, so that a change of one is a change of one line."""
    lines = json.dumps({**table, "structures": []}, separators=(",", ":"))[:-3]
    parts = []
    for one in table["structures"]:
        models = ",\n".join(
            f"{json.dumps(name)}:{json.dumps(model, sort_keys=True, separators=(',', ':'))}"
            for name, model in one["models"].items()
        )
        head = json.dumps({**one, "models": None}, separators=(",", ":"))
        parts.append(head.replace('"models":null', f'"models":{{\n{models}\n}}'))
    return lines + "[\n" + ",\n".join(parts) + "\n]}\n"
