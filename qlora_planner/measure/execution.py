"""One run, executed and measured in this process: load, prepare, adapters, training steps, evaluation, saving."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError, MissingError
from qlora_planner.evidence import RANDOM_WEIGHTS, HostReading, Measurement, PhaseReading
from qlora_planner.measure import gpu_lock, process
from qlora_planner.measure.card import Card
from qlora_planner.measure.events import MemoryEvent
from qlora_planner.measure.meters import tensor_owners
from qlora_planner.measure.meters.meter import CpuMeter, CudaMeter, Meter
from qlora_planner.measure.meters.peak import peak_components
from qlora_planner.measure.meters.sampler import Sampler
from qlora_planner.measure.meters.timeline import Timeline
from qlora_planner.measure.meters.watcher import StepWatcher
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.ranks import Ranks

Tell = Callable[[str, Mapping[str, Any]], None]


class Execution:
    """Runs a specification once. `tell(event, facts)` hears of phases, steps and memory while it runs."""

    def __init__(self, spec: ChildSpec, tell: Tell, ranks: Ranks | None = None) -> None:
        self.spec, self._tell, self._ranks = spec, tell, ranks or Ranks()
        self.run: RunConfig = spec.run
        self.raw: Mapping[str, Any] = {}
        self.card: Card | None = None
        self.phase = "start"
        self.timeline = Timeline()
        self.versions = process.versions()
        self.params: int | None = None
        self.trainable_params: int | None = None
        self.paged_bytes: int | None = None
        self.step_s: tuple[float, ...] = ()
        self._meter: Meter | None = None
        self._sampler: Sampler | None = None
        self._readings: dict[str, PhaseReading] = {}
        self._events: list[MemoryEvent] = []
        self._workspace_bytes = 0
        self._started = time.monotonic()

    def measure(self) -> Measurement:
        """Execute, and answer with what was read, however far the run came.

        Raises InputError and MissingError for a specification that cannot be begun.
        """
        outcome, failure = "ok", None
        try:
            self._prepare_host()
            if self.spec.device == "cuda":
                self._on_card()
            else:
                self._ranks.begin(self.run, "cpu")
                self._execute(CpuMeter)
        except (InputError, MissingError):
            if self.phase == "start":
                raise
            outcome, failure = "error", sys.exc_info()[1]
        except KeyboardInterrupt as error:
            outcome, failure = "interrupted", error
        except Exception as error:  # whatever the libraries raise is the finding; its trace goes to stderr
            traceback.print_exc()
            outcome, failure = "out-of-memory" if process.is_out_of_memory(error) else "error", error
        return self._measurement(outcome, failure)

    def _prepare_host(self) -> None:
        from qlora_planner.train.cpu_fallbacks import with_cpu_fallbacks
        from qlora_planner.train.toy import toy_config

        spec = self.spec
        raw = spec.config if spec.config is not None else _read_config(str(spec.model_dir))
        self.raw = toy_config(raw) if spec.is_toy and spec.model_dir is None else raw
        self.run = with_cpu_fallbacks(spec.run, self.raw, self.versions)

    def _on_card(self) -> None:
        import torch

        self.card = Card.find(self._ranks.local)  # the child leaves the cards of its ranks visible
        self._sampler = Sampler(self.card.nvml_index, heard=self._heard)
        with self._sampler:
            if not torch.cuda.is_available():
                raise MissingError("torch sees no CUDA device here; see `qlora-plan doctor`, or use --device cpu")
            self._ranks.begin(self.run, "cuda")
            if self.spec.cap_bytes is not None:
                total = torch.cuda.get_device_properties(self._ranks.local).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, self.spec.cap_bytes / total))
            torch.zeros(1, device="cuda")
            self._sampler.context_made()
            self._workspace_bytes = self.card.workspace_bytes
            self._execute(lambda: CudaMeter(keep_events=self.spec.snapshot))

    def _execute(self, make_meter: Callable[[], Meter]) -> None:
        from qlora_planner.train import adapters, model

        run, spec = self.run, self.spec
        if spec.rank is not None:
            from qlora_planner.measure.as_rank import join

            join(run, spec.rank, spec.world, spec.device)
        tied_stored = trainer_named(run.trainer).loads_tied(spec.tied_stored)
        weights = (
            None
            if spec.model_dir is not None
            else model.random_weights(self.raw, spec.device, labels_of(run), tied_stored=tied_stored)
        )
        self._meter = make_meter()
        try:
            self._enter("load")
            with gpu_lock.loading():
                if weights is None:
                    loaded = model.load_folder(str(spec.model_dir), self.raw, run, spec.device)
                else:
                    loaded = model.load_random(self.raw, run, spec.device, weights)
                    del weights
            self.params = adapters.total_params(loaded)
            self._own(loaded)
            if run.upcast and run.method != "full":
                self._enter("prepare")
                loaded = adapters.prepare(loaded, run)
                self._own(loaded)
            self._enter("adapters")
            adapted = adapters.add_adapters(loaded, run)
            if not trainer_named(run.trainer).adds_adapters:
                self.trainable_params = adapters.trainable_params(adapted)
            self._own(adapted)
            del loaded
            self._train(adapted)
        except BaseException:
            self._finish_meter()
            raise
        self._finish_meter()

    def _train(self, adapted: Any) -> None:
        from qlora_planner.train.adapters import trainable_params
        from qlora_planner.train.data import synthetic_rows
        from qlora_planner.train.model import decoder_layers, vocabulary
        from qlora_planner.train.trainers import build_trainer

        spec, run = self.spec, self.run
        gc.collect()
        if spec.device == "cuda":
            import torch

            torch.cuda.empty_cache()
        self._enter("cast", mark="adapters")
        with tempfile.TemporaryDirectory(prefix="qlora-plan-") as folder:
            rows = synthetic_rows(run, spec.steps * self._ranks.world, vocabulary(adapted))
            trainer = build_trainer(adapted, run, rows=rows, steps=spec.steps, folder=folder, device=spec.device)
            adapted = trainer.model
            self.trainable_params = trainable_params(adapted)
            watcher = StepWatcher(
                enter=self._enter,
                timeline=self.timeline,
                synchronize=process.synchronizer(spec.device),
                on_step=lambda step, seconds: self._tell("step", {"step": step, "of": spec.steps, "step_s": seconds}),
                note_owners=lambda: self._own(adapted, trainer.optimizer),
                note_gradients=spec.snapshot,
            )
            unhook = (
                tensor_owners.watch_layers(decoder_layers(adapted), self.timeline, lambda: watcher.in_backward)
                if spec.snapshot
                else lambda: None
            )
            try:
                self._tell("begin", {"step": 0, "of": spec.steps})
                with gpu_lock.stepping():
                    if spec.rank is not None or self._ranks.world > 1:
                        self._enter("wrap", mark="adapters")
                    trainer.train(spec.steps, watcher)
            finally:
                # After a failure too: what still lives says what was alive.
                self.step_s = tuple(watcher.step_s)
                self._own(adapted, trainer.optimizer, gradients=True)
                unhook()
            self.paged_bytes = tensor_owners.paged_bytes(trainer.optimizer)
            if self._sampler is not None:
                self._sampler.last_step_done()
            if run.eval_batch_size is not None:
                self._enter("eval")
                trainer.evaluate()
                self._look()
            if spec.save:
                self._enter("save")
                trainer.save()
                self._look()

    def _look(self) -> None:
        if self._sampler is not None:
            self._sampler.look()

    def _enter(self, stretch: str, mark: str | None = None) -> None:
        """A stretch of the run begins, here and for the meter; outsiders hear of phases, not of every micro-step."""
        assert self._meter is not None
        self._meter.enter(stretch)
        if stretch not in ("generate", "forward", "backward", "optimizer", "between"):
            self._look()
            self.timeline.mark(mark or stretch)
        phase = {"cast": "adapters", "between": self.phase}.get(stretch, stretch)
        if phase != self.phase:
            self.phase = phase
            self._tell("phase", {"phase": phase})

    def _own(self, model: Any, optimizer: Any = None, *, gradients: bool = False) -> None:
        if self.spec.snapshot:
            adapted = self.run.method != "full" and self.trainable_params is not None
            owners = tensor_owners.model_owners(model, adapted=adapted)
            if optimizer is not None:
                owners |= tensor_owners.optimizer_owners(optimizer)
            self.timeline.own(owners | tensor_owners.gradient_owners(model) if gradients else owners)

    def _finish_meter(self) -> None:
        if self._meter is not None:
            self._readings, self._events = self._meter.finish()
            self._meter = None

    def _heard(self, process_bytes: int | None, device_bytes: int | None) -> None:
        self._tell("memory", {"process_bytes": process_bytes, "device_bytes": device_bytes})

    def _measurement(self, outcome: str, failure: BaseException | None) -> Measurement:
        spec, run = self.spec, self.run
        rest = self.step_s[1:]
        message = None if failure is None else process.one_line(failure)
        return Measurement(
            created=spec.date,
            model=spec.model_id,
            config_sha256=spec.config_sha256,
            config=dict(self.raw) or None,
            toy=spec.is_toy and spec.model_dir is None,
            tied_stored=spec.tied_stored,
            device=spec.device,
            params=self.params,
            trainable_params=self.trainable_params,
            run=run,
            stack=self.versions | ({} if self.card is None else self.card.versions()),
            gpu=None if self.card is None else self.card.reading(),
            cap_bytes=spec.cap_bytes,
            outcome=outcome,
            failed_phase=None if outcome == "ok" else self.phase,
            error=message,
            requested_bytes=process.requested_bytes(str(failure)) if outcome == "out-of-memory" else None,
            phases=self._readings,
            **({} if self._sampler is None else {"nvml": self._sampler.reading}),
            host=HostReading(rss_peak_bytes=process.rss_peak_bytes(), paged_bytes=self.paged_bytes),
            components=self._components(outcome),
            step_s=self.step_s,
            tokens_per_s=run.tokens * run.grad_accum * len(rest) / sum(rest) if rest else None,
            predicted=spec.predicted,
            role=spec.role,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        notes = [] if self._sampler is None else list(self._sampler.notes)
        if self.spec.rank is not None:
            from qlora_planner.measure.as_rank import NOTE

            notes.append(f"rank {self.spec.rank} of {self.spec.world}: {NOTE}")
        if self.spec.predicted is not None and self.spec.device == "cuda" and self.spec.model_dir is None:
            notes.append(RANDOM_WEIGHTS)
        return (*notes, gpu_lock.EXCLUSIVE_NOTE) if gpu_lock.takes_turns() else tuple(notes)

    def _components(self, outcome: str) -> dict[str, int] | None:
        if not self.spec.snapshot:
            return None
        return peak_components(
            self._events,
            self.timeline,
            self._readings,
            None if self._sampler is None else self._sampler.reading,
            failed=outcome == "out-of-memory",
            checkpoint_every=(self.run.checkpoint_every or 1) if self.run.gradient_checkpointing else None,
            workspace_bytes=self._workspace_bytes,
        )


def _read_config(folder: str) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be an object")
    return raw
