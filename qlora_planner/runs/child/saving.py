"""How a trainer writes and takes up what engines for several cards keep, where its own way is not whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from qlora_planner.catalog.parallel import DEEPSPEED, FSDP1, ZERO2, ZERO3
from qlora_planner.runs.child.restoring import SCHEDULER, restore_schedule
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.ranks import Ranks, gathered
from qlora_planner.train.several import flat, zero


def optimizer_file(run: RunConfig, ranks: Ranks) -> str:
    """The file of a checkpoint that holds optimizer states: one of each rank under FSDP1."""
    return f"optimizer-{ranks.rank}.pt" if run.parallel == FSDP1 else "optimizer.pt"


def keep_whole(trainer: Any, model: Any, run: RunConfig, ranks: Ranks) -> None:
    """Have `trainer` save an adapter that is whole, under FSDP1 with every rank's own states beside it."""
    if ranks.world == 1 or run.parallel not in (FSDP1, ZERO2, ZERO3):
        return
    trainer.save_model = partial(_save_model, trainer, model)
    if run.parallel == FSDP1:
        own = optimizer_file(run, ranks)
        trainer._save_optimizer_and_scheduler = partial(_save_states, trainer, model, ranks, own)
        trainer._load_from_checkpoint = lambda checkpoint, *_: flat.load(model, checkpoint, ranks.rank)
        trainer._load_optimizer_and_scheduler = partial(_load_states, trainer, own)


def save_adapter(model: Any, folder: Path, whole: Mapping[str, Any] | None) -> None:
    """Write the adapter, with `whole` in place of what this rank holds of it."""
    with flat.plain_names(model):
        model.save_pretrained(str(folder), state_dict=whole)


def states_kept(trainer: Any, run: RunConfig, folder: Path) -> AbstractContextManager[None]:
    """Around a step that is tried: DeepSpeed takes it whole and is brought back by files in `folder`; of other engines
    nothing is kept here, since none takes a step by itself."""
    return zero.taken_back(trainer.deepspeed, folder) if run.parallel in DEEPSPEED else nullcontext()


def gradient_norm(trainer: Any, run: RunConfig) -> float | None:
    """The norm of what the last backward left where the engine has taken the gradients away by then; else None."""
    return zero.gradient_norm(trainer.deepspeed) if run.parallel in DEEPSPEED else None


def _save_model(trainer: Any, model: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
    whole = gathered(model)
    if trainer.args.should_save:
        with flat.plain_names(model):
            trainer._save(output_dir, state_dict=whole)


def _save_states(trainer: Any, model: Any, ranks: Ranks, own: str, output_dir: str) -> None:
    import torch

    flat.save(model, output_dir, ranks.rank)
    torch.save(_inner(trainer.optimizer).state_dict(), Path(output_dir) / own)
    if ranks.first:
        torch.save(trainer.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)


def _load_states(trainer: Any, own: str, checkpoint: str | None) -> None:
    import torch

    path = None if checkpoint is None else Path(checkpoint) / own
    if path is not None and path.is_file():  # else its states start anew
        _inner(trainer.optimizer).load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        restore_schedule(trainer, path.parent)


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)
