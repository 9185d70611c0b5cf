"""A finished run on disk: the adapters, what they were trained on, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.bounded import check_json, open_regular
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.sources.json_files import read_object
from qlora_planner.spec.faults import refuse
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain, quoted

ADAPTER_CONFIG = "adapter_config.json"
RUN_FILE = "run.json"
ADAPTER_WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
# Reading one takes twenty times its size; adapters on each expert of DeepSeek-V3 alone come to 12 MB.
_LARGEST_HEADER_BYTES = 16 << 20
DEVICES = ("cuda", "cpu")


@record
class Finished:
    """What RUN holds. `bases` are model folders and Hub ids that it names as its base, the surest first.

    `run` is None for a bare adapter folder, whose run nobody wrote down; so is `device`, where it ran. `adapter_config`
    is PEFT's own file.
    """

    folder: Path
    adapter: Path
    bases: tuple[str, ...]
    run: RunConfig | None
    adapter_config: Mapping[str, Any]
    device: str | None = None


def read_finished(text: str) -> Finished:
    """The run in folder `text`: what `train` writes, or a PEFT adapter folder of any other tool.

    Raises InputError naming the folder or the file for what is neither, and for files that cannot be read.
    """
    folder = Path(text).expanduser()
    shown = plain(text)
    if not folder.is_dir():
        raise InputError(f"{shown}: no such folder; give what `qlora-plan train` wrote, or a PEFT adapter folder")
    document = read_object(folder / RUN_FILE, constants=True) if (folder / RUN_FILE).is_file() else {}
    run = _run(document, folder / RUN_FILE)
    adapter = next((path for path in (folder / "adapter", folder) if (path / ADAPTER_CONFIG).is_file()), None)
    if adapter is None:
        raise InputError(f"{shown}: {_no_adapter(folder, run)}")
    config = read_object(adapter / ADAPTER_CONFIG)
    if config.get("task_type") == "SEQ_CLS":
        raise InputError(
            f"{shown}: its adapter is of a classifier, which writes no text and is not merged here; load it with PEFT's"
            f" AutoPeftModelForSequenceClassification.from_pretrained({str(adapter)!r}, num_labels=N)"
        )
    _check_weights(adapter)
    device = document.get("device")
    return Finished(
        folder=folder, adapter=adapter, bases=_bases(document, config), run=run, adapter_config=config,
        device=device if device in DEVICES else None,
    )  # fmt: skip


def _check_weights(adapter: Path) -> None:
    """Raises InputError for an adapter whose weights are not there, are a pickle, or are cut off."""
    file = adapter / ADAPTER_WEIGHTS
    if not file.is_file():
        if (adapter / PICKLED_WEIGHTS).exists():
            raise InputError(
                f"{plain(adapter)}: stores its weights as a pickle ({PICKLED_WEIGHTS}), which can hold code and is not"
                " read; where you trust it, load it with PEFT once and save_pretrained it, which writes safetensors"
            )
        raise InputError(f"{plain(adapter)}: holds no {ADAPTER_WEIGHTS}")
    check_header(file)


def check_header(file: Path) -> None:
    """Raises InputError for a safetensors file whose head is cut off, or too large for an adapter's."""
    try:
        with open_regular(file) as stream:
            size_bytes = int.from_bytes(stream.read(8), "little")
            if not 2 <= size_bytes <= _LARGEST_HEADER_BYTES:
                raise InputError(f"{plain(file)}: its header claims {size_bytes:,} bytes, so it is no adapter")
            header = stream.read(size_bytes)
    except OSError as error:
        raise InputError(f"{plain(file)}: cannot be read: {error.strerror or error}") from None
    if len(header) < size_bytes:
        raise InputError(f"{plain(file)}: is cut off in its header")
    check_json(header, file)


def _run(document: Mapping[str, Any], path: Path) -> RunConfig | None:
    options = document.get("run")
    if options is None:
        return None
    if not isinstance(options, Mapping):
        refuse([f"run must hold options with values, not {quoted(options)}"], str(path))
    try:
        return RunConfig.from_dict(options)
    except InputError as error:
        refuse([str(error)], str(path))


def _no_adapter(folder: Path, run: RunConfig | None) -> str:
    """Why there is nothing to merge or to try."""
    if run is not None and run.method == "full":
        return "a full fine-tune has no adapters; what it saved is the whole model already"
    saved = sorted(path.parent for path in folder.glob(f"checkpoint-*/{ADAPTER_CONFIG}"))
    if saved:
        newest = max(saved, key=lambda checkpoint: checkpoint.stat().st_mtime)
        return f"holds no adapter of its own; name the checkpoint, as {plain(newest)}"
    if any(folder.glob("*.safetensors")):
        return f"holds weights and no {ADAPTER_CONFIG}, so it is a whole model and no adapter"
    return f"holds neither adapter/{ADAPTER_CONFIG} nor {ADAPTER_CONFIG}; give what `qlora-plan train` wrote"


def _bases(document: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Every name of the base that is written down: a folder that is there first."""
    model = document.get("model")
    named = [model.get("folder"), model.get("id")] if isinstance(model, Mapping) else [model]
    named.append(config.get("base_model_name_or_path"))
    texts = list(dict.fromkeys(name for name in named if isinstance(name, str) and name.strip()))
    return tuple(sorted(texts, key=lambda name: not Path(name).is_dir()))
