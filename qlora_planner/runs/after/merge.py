"""Merge adapters into a full-precision base, one file of weights at a time, on the host."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, RunError
from qlora_planner.record import record
from qlora_planner.runs.after.base import INDEX, Base
from qlora_planner.runs.after.merge_plan import MergePlan, Step
from qlora_planner.runs.after.weightless import WeightlessModel
from qlora_planner.runs.owned import free_name
from qlora_planner.text import plain

if TYPE_CHECKING:
    import torch

PARTIAL = ".partial"
# In the header of every file of weights: what a later --force may remove.
_WRITTEN = {"written_by": "qlora-plan merge"}
_BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
)
_NOT_COPIED = frozenset({"config.json", INDEX, "adapter_config.json", "pytorch_model.bin.index.json"})


@record
class Merged:
    """A model folder that was written."""

    folder: Path
    files: tuple[str, ...]
    total_bytes: int


def check_target(target: Path, *, force: bool) -> None:
    """Raises InputError where `target` cannot become a model folder; with `force` it may be one already."""
    shown = plain(target)
    if target.with_name(target.name + PARTIAL).exists():
        raise InputError(f"{shown}{PARTIAL}: is there: another merge writes it, or one was killed; remove it")
    if target.is_symlink():
        raise InputError(f"{shown}: is a link; name the folder itself with --output")
    if not target.exists():
        if not target.absolute().parent.is_dir():
            raise InputError(f"{shown}: there is no folder {plain(target.absolute().parent)} to put it in")
        return
    if not target.is_dir():
        raise InputError(f"{shown}: is a file; name a folder with --output")
    if not any(target.iterdir()):
        return
    if not force:
        raise InputError(f"{shown}: is there already; --force writes over it, or name another with --output")
    # Forced is not blind: only what looks like a model is thrown away.
    if not (target / "config.json").is_file() or not any(target.glob("*.safetensors")):
        raise InputError(f"{shown}: is no model folder, so --force does not remove it; name another with --output")
    foreign = next((path for path in sorted(target.glob("*.safetensors")) if not _is_ours(path)), None)
    if foreign is not None:
        raise InputError(
            f"{shown}: merge did not write {plain(foreign.name)}, so --force does not remove it; name another with"
            " --output"
        )


def merge(
    base: Base,
    hollow: WeightlessModel,
    plan: MergePlan,
    target: Path,
    dtype: str,
    *,
    tokenizer: Path,
    tell: Callable[[str, int, int], None],
) -> Merged:
    """Write the merged model to `target`, all of it or nothing.

    `tokenizer` is a folder whose tokenizer is taken, if it holds one, before the base's. `tell` gets a file, its
    number and how many there are. Raises InputError for an adapter that does not fit, RunError for a full disk.
    """
    with _whole(target) as folder:
        weight_map: dict[str, str] = {}
        total_bytes = elements = 0
        for number, (file, steps) in enumerate(plan.shards.items(), 1):
            tell(file, number, len(plan.shards))
            _write_shard(base.folder / file, folder / file, steps, hollow, dtype)
            weight_map |= {step.key: file for step in steps}
            total_bytes += sum(step.size_bytes for step in steps)
            elements += sum(step.elements for step in steps)
        if len(plan.shards) > 1 or (base.folder / INDEX).is_file():
            metadata = {"total_parameters": elements, "total_size": total_bytes}
            _write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
        _write_json(folder / "config.json", merged_config(base.config, dtype, untied=bool(plan.untied)))
        _copy_beside(base.folder, tokenizer, folder)
        files = tuple(sorted(path.name for path in folder.iterdir()))
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return Merged(folder=target, files=files, total_bytes=size_bytes)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end; whatever happens before, nothing is left of it."""
    partial = target.with_name(target.name + PARTIAL)
    try:
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{plain(partial)}: cannot be made: {error.strerror or error}") from None
    old = free_name(target.with_name(target.name + ".old"))
    try:
        yield partial
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
        if old.is_dir():
            _remove_written(old, target)
    except OSError as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise RunError(f"{plain(target)}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_written(old: Path, new: Path) -> None:
    """Of a merged model that was written over, what is provably a merge's: weights that say so, what is generated
    beside them, and copies of what stands in `new` too. Anything else stays, in `old`."""
    for path in sorted(old.iterdir()):
        if path.is_symlink() or not path.is_file():
            continue
        twin = new / path.name
        generated = path.name in ("config.json", INDEX) or _is_ours(path)
        if generated or (twin.is_file() and filecmp.cmp(path, twin, shallow=False)):
            path.unlink()
    if not any(old.iterdir()):
        old.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether a file of weights says in its header that a merge wrote it."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or path.is_symlink() or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as opened:
            return _WRITTEN.items() <= (opened.metadata() or {}).items()
    except (SafetensorError, OSError):
        return False


def _write_shard(source: Path, target: Path, steps: tuple[Step, ...], hollow: WeightlessModel, dtype: str) -> None:
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    wanted = getattr(torch, dtype)
    try:
        # Tensors of the base are views of the file until they are written: only what changes takes memory.
        with safe_open(source, framework="pt", device="cpu") as opened, torch.inference_mode(False), torch.no_grad():
            tensors = {step.key: _tensor(opened.get_tensor(step.source), step, hollow, wanted) for step in steps}
            save_file(tensors, target, metadata={"format": "pt", **_WRITTEN})
        target.chmod(target.parent.stat().st_mode & 0o666)  # the library makes it for its owner alone
    except SafetensorError as error:
        raise RunError(f"{plain(target)}: cannot be written: {plain(error)}") from None


def _tensor(stored: torch.Tensor, step: Step, hollow: WeightlessModel, dtype: torch.dtype) -> torch.Tensor:
    kind = dtype if step.cast else stored.dtype
    trained = hollow.replaced.get(step.name, stored)
    if trained.shape != stored.shape:
        raise InputError(
            f"{step.name}: trained as {tuple(trained.shape)}, the base holds {tuple(stored.shape)}, as after new"
            " tokens; use PEFT's merge_and_unload"
        )
    if step.action == "merge":
        # A copy of its own: neither the file's pages nor the adapter's tensors are to be added to.
        return hollow.merged(step.name, trained.to(kind, copy=True)).to(kind).contiguous()
    # Two tensors of one file must not share memory, which the library refuses to write.
    return trained.to(kind, copy=step.action == "replace" or step.key != step.source).contiguous()


def merged_config(raw: Mapping[str, Any], dtype: str, *, untied: bool) -> dict[str, Any]:
    """The base's config with the dtype that was written, and without tying where tensors differ now."""
    config = dict(raw)
    for key in ("torch_dtype", "dtype"):  # the name before and since transformers 4.56
        if key in config:
            config[key] = dtype
    if "torch_dtype" not in config:
        config["dtype"] = dtype
    if untied:
        config["tie_word_embeddings"] = False
        text = config.get("text_config")
        if isinstance(text, Mapping):
            config["text_config"] = {**text, "tie_word_embeddings": False}
    return config


def _copy_beside(base: Path, tokenizer: Path, folder: Path) -> None:
    """Everything beside the weights: the base's, with the run's own tokenizer in place of the base's as a whole."""
    own = (tokenizer / "tokenizer_config.json").is_file()
    files = {path.name: path for pattern in _BESIDE for path in base.glob(pattern) if path.is_file()}
    if own:
        files = {name: path for name, path in files.items() if name not in _TOKENIZER}
        files |= {name: tokenizer / name for name in _TOKENIZER if (tokenizer / name).is_file()}
    for name, path in sorted(files.items()):
        if name not in _NOT_COPIED:
            shutil.copyfile(path, folder / name)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
