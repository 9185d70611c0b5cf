"""Where the weights of a model are: a folder, or the cache of Hub files, filled when the network may be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.data.hub import snapshot
from qlora_planner.errors import InputError, MissingError
from qlora_planner.memory.options.stored_checkpoint import checkpoint_stored
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain
from qlora_planner.train.model import has_weights

_INSTEAD = "give a folder with its files, as --model DIR"
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken", "*.jinja", "chat_template*"]


def weights_folder(model: str, tell: Callable[[str], None]) -> Path:
    """The folder with config and weights of a model folder, config.json or Hub id; downloads what is not cached.

    Raises InputError for what is neither, MissingError for no weights or broken ones, a gated model, no network.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.name == "config.json":
        path = path.parent
    if path.is_dir():
        return _checked(path, plain(model))
    return _checked(_from_hub(model, tell), plain(model))


def _checked(path: Path, name: str) -> Path:
    if not (path / "config.json").is_file():
        raise InputError(f"{name}: a folder without config.json; give the folder of a transformers model")
    if not has_weights(path):
        raise MissingError(f"{name}: its folder holds no weights (*.safetensors); fetch them, or {_INSTEAD}")
    _check_whole(path, name)
    return path


def _check_whole(folder: Path, name: str) -> None:
    """Raises MissingError for a weight file that is not there or cut off, as after a download that broke."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    try:
        index = small_json(folder / "model.safetensors.index.json", 64 << 20)
        named = {str(file) for file in index["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        named = set()  # one file, or pickles
    missing = sorted(named - {file.name for file in files})
    if missing and not (folder / "model.safetensors").is_file():
        raise MissingError(
            f"{name}: {len(missing)} of {len(named)} weight files are missing, as {plain(missing[0])}; fetch them"
        )
    for file in files:
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            reason = plain(" ".join(str(error).split()))[:120]
            raise MissingError(f"{name}: {plain(file.name)} is cut off or damaged ({reason}); fetch it again") from None


def _from_hub(model: str, tell: Callable[[str], None]) -> Path:
    from qlora_planner.sources.configs import is_hub_id

    name = plain(model)
    if not is_hub_id(model):
        raise InputError(f"{name}: neither a folder nor the id of a Hub repository; {_INSTEAD}")
    return snapshot(model, _PATTERNS, what="weights", instead=_INSTEAD, whole=has_weights, tell=tell)


def check_stored(folder: Path, run: RunConfig, name: str) -> str | None:
    """What there is to know of a checkpoint that is quantised already; None for one that is not.

    Raises InputError for one that this run's quantisation cannot be laid over; a run that names none takes any.
    """
    stored = _quantization(folder)
    if stored is None:
        return None
    # bitsandbytes' early checkpoints name no method.
    early = "load_in_4bit" in stored or "load_in_8bit" in stored
    method = str(stored.get("quant_method") or ("bitsandbytes" if early else "unknown"))
    if method != "bitsandbytes":
        problem = checkpoint_stored(plain(method))
        raise InputError(f"{name}: {problem.message}; use {problem.fix}")
    quant = "int8" if stored.get("load_in_8bit") else str(stored.get("bnb_4bit_quant_type") or "fp4")
    if run.method != "qlora":
        raise InputError(
            f"{name}: its weights are stored as {plain(quant)}, and --method {run.method} wants them whole; --method"
            " qlora, or the model that is not quantised"
        )
    if run.quant not in (None, quant):
        raise InputError(
            f"{name}: its weights are stored as {plain(quant)}, the run wants {run.quant}; --quant {plain(quant)}"
        )
    return f"{name} is stored as {quant} already: it is loaded as it is, with the settings that it was stored with"


def _quantization(folder: Path) -> dict[str, Any] | None:
    try:
        raw = small_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise InputError(f"{plain(folder / 'config.json')}: cannot be read: {plain(error)[:120]}") from None
    stored = raw.get("quantization_config") if isinstance(raw, dict) else None
    return stored if isinstance(stored, dict) else None
