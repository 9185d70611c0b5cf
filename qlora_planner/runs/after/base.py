"""The base of a run: its folder of full-precision weights, on this disk or from the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_planner.data.hub import snapshot
from qlora_planner.errors import InputError, MissingError
from qlora_planner.record import record
from qlora_planner.sources.configs import is_hub_id, read_config
from qlora_planner.sources.json_files import read_object
from qlora_planner.text import plain, quoted

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Of a Hub repository: one set of weights, and what is read beside them.
_WANTED = ("*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")
# How uploaders name what they quantised: the original is called the same without the ending.
_QUANTISED_NAME = re.compile(r"-(unsloth-)?(bnb-[48]bit|4bit|8bit|awq|gptq|fp8)(-.*)?$", re.IGNORECASE)


@record
class Base:
    """A model folder with weights. `name` is what it was asked for by, `shards` its files in order."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    shards: tuple[str, ...]


def find_base(bases: Sequence[str], named: str | None, tell: Callable[[str], None]) -> Base:
    """The base that is `named`, else the first of `bases` whose weights are here, else fetched from the Hub.

    Raises InputError where no base is named or the one asked for is none, MissingError where its weights are not
    here and cannot be fetched.
    """
    names = [named] if named is not None else list(bases)
    if not names:
        raise InputError("the run names no base model; give it with --base DIR or a Hub id")
    here = [name for name in names if Path(name).expanduser().is_dir()]
    if here:
        return _opened(here[0], Path(here[0]).expanduser())
    hub = [name for name in names if is_hub_id(name)]
    if not hub:
        raise InputError(f"--base: {quoted(names[0])} is no folder here and no Hub id; give the base with --base DIR")
    return _opened(hub[0], _snapshot(hub[0], tell))


def refuse_quantised(base: Base) -> None:
    """Raises InputError for a base that is stored quantised: adding to rounded weights would round them again."""
    stored = base.config.get("quantization_config")
    if stored is None:
        return
    kind = str(stored.get("quant_method", "unknown")) if isinstance(stored, Mapping) else "unknown"
    raise InputError(
        f"{plain(base.name)}: is stored quantised ({plain(kind)}), and merging needs the full-precision base; "
        + _original_of(base)
    )


def _original_of(base: Base) -> str:
    for name in (base.name, str(base.config.get("_name_or_path") or "")):
        bare = _QUANTISED_NAME.sub("", name.rstrip("/"))
        if bare and bare != name.rstrip("/"):
            return f"by its name that is {plain(bare)}: give it with --base"
    return "give the model that it was made from with --base"


def _opened(name: str, folder: Path) -> Base:
    raw = read_config(folder)
    return Base(name=name, folder=folder, config=raw.config, shards=_shards(folder))


def _shards(folder: Path) -> tuple[str, ...]:
    """The weight files that transformers would load: the one file, else those of the index."""
    if (folder / ONE_FILE).is_file():
        return (ONE_FILE,)
    if not (folder / INDEX).is_file():
        if any(folder.glob("*.bin")):
            raise InputError(
                f"{plain(folder)}: holds weights as pickles (.bin) alone; load it with transformers once and"
                " save_pretrained it, which writes safetensors"
            )
        raise MissingError(f"{plain(folder)}: holds no weights ({ONE_FILE} or {INDEX}); give the base with --base")
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{plain(folder / INDEX)}: holds no weight_map")
    files = tuple(sorted({str(file) for file in weight_map.values()}))
    # A name such as ../x would be read, and written, outside the folder.
    strange = [
        file
        for file in files
        if file != Path(file).name or not file.endswith(".safetensors") or len(file) > 200 or not file.isprintable()
    ]
    if strange:
        raise InputError(f"{plain(folder / INDEX)}: {quoted(strange[0])} is no name of a weight file")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise MissingError(
            f"{plain(folder)}: {len(missing)} of {len(files)} weight files are missing, as {plain(missing[0])}"
        )
    return files


def _snapshot(repo_id: str, tell: Callable[[str], None]) -> Path:
    """The folder of a Hub model: from the cache where it is whole, else fetched."""
    instead = "give them with --base DIR"
    return snapshot(repo_id, _WANTED, what="weights", instead=instead, whole=_is_whole, tell=tell)


def _is_whole(folder: Path) -> bool:
    try:
        return bool(_shards(folder))
    except MissingError:
        return False
