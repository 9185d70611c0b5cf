"""What a trainer tells while it trains, seals its checkpoints, and stops when it is asked to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.errors import RunError
from qlora_planner.runs.checkpoints import remove_old, seal
from qlora_planner.runs.owned import mark_again
from qlora_planner.train.figures import figures_of
from qlora_planner.train.options import CHECKPOINTS_KEPT
from qlora_planner.train.ranks import Ranks

Tell = Callable[[str, Mapping[str, Any]], None]


class Stop:
    """Set by a signal; looked at between steps."""

    def __init__(self) -> None:
        self.asked = False
        self.training = False

    def ask(self, *_: Any) -> None:
        """Before training there is nothing to save: leave at once."""
        self.asked = True
        if not self.training:
            raise KeyboardInterrupt


class Tokens:
    """Counts the tokens that go into a model while it trains, by their shape: nothing waits for the device."""

    def __init__(self, model: Any) -> None:
        self.seen = 0
        self.longest = 0
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, inputs: Any, named: Mapping[str, Any]) -> None:
        import torch

        ids = named.get("input_ids", inputs[0] if inputs else None)
        # A reference scores the same tokens once more, without gradients.
        if model.training and ids is not None and torch.is_grad_enabled():
            self.seen += ids.numel()
            # Rows end to end, without padding, come with the length of each: they are as wide as on average.
            rows = 1 if named.get("packed_seq_lengths") is None else len(named["packed_seq_lengths"])
            self.longest = max(self.longest, -(-ids.shape[-1] // max(rows, 1)))


def make_callback(
    tell: Tell,
    stop: Stop,
    tokens: Tokens,
    *,
    begin: Callable[[], None],
    live: Callable[[], Mapping[str, Any]],
    ranks: Ranks,
) -> Any:
    """The callback of a run. `begin` is called when everything is built and no step was taken; `live` gives what is
    to be told beside each step. Tokens are counted over all `ranks`, and all of them stop where one is asked to."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.since = 0.0
            self.tokens = 0
            self.held: dict[str, Any] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begin()
            tell("begin", {"step": state.global_step, "of": state.max_steps})
            stop.training = True

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.flush()
            self.since, self.tokens = time.perf_counter(), tokens.seen

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds = time.perf_counter() - self.since
            count, stopping = ranks.total([tokens.seen - self.tokens, stop.asked])
            self.held = {
                "step": state.global_step,
                "of": state.max_steps,
                "epoch": state.epoch,
                "step_s": seconds,
                "tokens": count,
                "tokens_per_s": count / seconds if seconds > 0 else None,
                **live(),
            }
            if stopping:
                stop.asked = True
                control.should_save = control.should_training_stop = True
            if control.should_save:
                if ranks.first:  # before the trainer writes into it: a run that is killed now made it
                    mark_again(_checkpoint(args, state))
                ranks.barrier()

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            logged = {name: _number(logs.get(name)) for name in ("loss", "learning_rate", "grad_norm")}
            logged |= {name: _number(value) for name, value in figures_of(logs)}
            self.held = {**(self.held or {"step": state.global_step, "of": state.max_steps}), **logged}
            self.flush()
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss became {loss} at step {state.global_step}: a lower --learning-rate, or --compute-dtype"
                    " bfloat16 where the card has it"
                )

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
            self.flush()
            tell("evaluation", {"step": state.global_step, "eval_loss": _number((metrics or {}).get("eval_loss"))})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.flush()
            folder = _checkpoint(args, state)
            ranks.barrier()  # each writes its own random numbers there
            if ranks.first:
                seal(folder, optimizer=str(getattr(args.optim, "value", args.optim)))
                remove_old(folder.parent, keep=CHECKPOINTS_KEPT)
            tell("checkpoint", {"step": state.global_step, "path": str(folder)})

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.flush()
            stop.training = False

        def flush(self) -> None:
            """Tell of a step that no log line came for."""
            if self.held is not None:
                tell("step", self.held)
                self.held = None

    return Callback()


def _checkpoint(args: Any, state: Any) -> Path:
    """Where the trainer saves at this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _number(value: Any) -> float | None:
    """A JSON number; what is none (a NaN too) is null there."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
