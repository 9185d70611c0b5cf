"""One attempt at a run, in this process: data, model, adapters, the longest batch, training, saving."""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.data.labels import LABELS_FILE, Labels
from qlora_planner.evidence import PhaseReading
from qlora_planner.measure import process
from qlora_planner.measure.meters.meter import CudaMeter
from qlora_planner.runs import dataset
from qlora_planner.runs.child import checks
from qlora_planner.runs.child.callbacks import Stop, Tell, Tokens, make_callback
from qlora_planner.runs.child.cards import Cards
from qlora_planner.runs.child.dry_run import DryRun, dry_run
from qlora_planner.runs.child.pictures import Pictures
from qlora_planner.runs.child.readings import give_back, live_bytes, paged_bytes
from qlora_planner.runs.child.restoring import keep_dtypes, restore_schedule, restore_states
from qlora_planner.runs.child.saving import gradient_norm, keep_whole, optimizer_file, save_adapter, states_kept
from qlora_planner.runs.directory import RunDirectory, replace_adapter
from qlora_planner.runs.owned import mark, remove_marked
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.train.ranks import Ranks, gathered, parameter_bytes
from qlora_planner.train.rewarding import rewards

_DATA_S = 5.0


class _Trained(Exception):
    """Every step is done: what is left is to save."""


class Training:
    """Runs a specification once. `tell(event, facts)` hears of phases, steps, memory, checkpoints and notes.

    Of several `ranks` each runs it, on its own card, and the first one writes.
    """

    def __init__(self, spec: LaunchSpec, tell: Tell, stop: Stop, ranks: Ranks | None = None) -> None:
        self.spec, self.run, self._tell, self._stop = spec, spec.run, tell, stop
        self.ranks = ranks or Ranks()
        self.folder = RunDirectory(Path(spec.output))
        self.phase = "start"
        self.cards: Cards | None = None
        self.model: Any = None
        self.trainer: Any = None
        self.raw: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self._meter: CudaMeter | None = None
        self._readings: dict[str, PhaseReading] = {}
        self._tokens: Tokens | None = None
        self._rows_given = 0
        self._labels: Labels | None = None
        self._told_of_data: float | None = None
        self._prompts: list[int] | None = None  # tokens of each, where completions are generated

    def execute(self) -> bool:
        """Train to the end; False where it was asked to stop and saved a checkpoint.

        Raises what libraries raise (out of memory too), InputError and MissingError for what cannot be begun,
        RunError for a rule that is broken, KeyboardInterrupt where it was stopped before training began.
        """
        with self._on_card():
            self.ranks.begin(self.run, self.spec.device)
            self._enter("data")
            tokenizer = dataset.load_tokenizer(self.spec.tokenizer or self.spec.weights, self.spec.settings, self.note)
            rows = self._rows(tokenizer)
            self._load()
            self._build(tokenizer, *rows)
            finished = self._train()
            if finished:
                self._save(self._pictures or tokenizer)
            self._finish_meter()
        return finished

    def note(self, text: str) -> None:
        """Something to know that stops nothing."""
        self._tell("note", {"message": text})

    def _on_card(self) -> AbstractContextManager[Any]:
        if self.spec.device != "cuda":
            return nullcontext()
        # The child leaves the cards of its ranks visible.
        self.cards = Cards(self.ranks.local, 1 if self.spec.device_map is None else self.spec.cards, self._tell)
        return self.cards

    def _enter(self, phase: str, shown: str | None = None) -> None:
        self.phase = phase
        self._tell("phase", {"phase": shown or phase})
        if self._meter is not None:
            self._meter.enter({"rehearsal": "cast", "training": "between"}.get(phase, phase))
            if self.cards is not None:
                self.cards.look()

    def _rows(self, tokenizer: Any) -> tuple[Any, Any]:
        spec = self.spec
        cache = self.folder.path / ".data"
        if self.ranks.first:
            remove_marked(cache)  # of an attempt before this one
            mark(cache)
        self.ranks.barrier()
        if not self.ranks.first:
            cache /= f"rank-{self.ranks.rank}"
        train, held_out = dataset.load_rows(
            spec.data, self.run, spec.settings, bad_rows=spec.bad_rows, cache=cache, note=self.note, moved=self._moved
        )  # fmt: skip
        self._rows_given = len(train)
        trainer = trainer_named(self.run.trainer)
        checks.check_trainer(trainer, self.run, spec.settings)
        self._pictures = Pictures(spec, tokenizer) if self.run.images else None
        if self._pictures:
            return self._pictures.both(train, held_out)
        dataset.check_chats(train, tokenizer, spec.settings, self.note)
        if not trainer.prepares_rows:
            self._labels = dataset.labels_for(spec)
            made = dataset.tokeniser(tokenizer, self.run, self._labels)
            train, held_out = made(train), None if held_out is None else made(held_out)
        return train, held_out

    def _moved(self, done_bytes: int, size_bytes: int, rows: int) -> None:
        """How far the data is read, now and then."""
        now = time.monotonic()
        if self._told_of_data is None:
            self._told_of_data = now
        elif now - self._told_of_data >= _DATA_S:
            self._told_of_data = now
            self._tell("data", {"done_bytes": done_bytes, "size_bytes": size_bytes, "rows": rows})

    def _load(self) -> None:
        import transformers

        from qlora_planner.train import adapters, model

        spec, run = self.spec, self.run
        transformers.set_seed(spec.settings.seed)  # adapters are born at random
        self.raw = small_json(Path(spec.weights) / "config.json")
        if spec.device == "cuda":
            assert self.cards is not None
            self.cards.take(spec.cap_bytes)
            self._meter = CudaMeter(keep_events=False)
        self._enter("load")
        loaded = model.load_folder(spec.weights, self.raw, run, spec.device, placed=spec.device_map)
        self.facts["params"] = adapters.total_params(loaded)
        for note in filter(None, (checks.check_quantized(loaded, run, spec.quantized), checks.check_tied(loaded))):
            self.note(note)
        checks.check_compute_dtype(loaded, run)
        if spec.device == "cpu":
            checks.keep_constants(loaded)
        if run.upcast and run.method != "full":
            self._enter("prepare")
            loaded = adapters.prepare(loaded, run)
        self._enter("adapters")
        self.model = adapters.add_adapters(loaded, run)
        self._adapted()
        del loaded
        give_back(spec.device)

    def _adapted(self) -> None:
        """Adapters are there: name their base, and count what is trained."""
        from qlora_planner.train.adapters import trainable_params

        for config in getattr(self.model, "peft_config", {}).values():
            config.base_model_name_or_path = self.spec.model_id  # not the cache that it was loaded from
        self.facts["trainable_params"] = trainable_params(self.model)

    def _build(self, tokenizer: Any, train: Any, held_out: Any) -> None:
        from qlora_planner.train import options
        from qlora_planner.train.trainers import trainer_module

        spec, run = self.spec, self.run
        self._enter("rehearsal", shown="tokenise")
        sequence = {**options.sequence_options(run), "assistant_only_loss": spec.settings.assistant_only_loss}
        self._tokens = Tokens(self.model)
        callback = make_callback(
            self._tell,
            self._stop,
            self._tokens,
            begin=self._begin,
            live=partial(live_bytes, self.spec.device),
            ranks=self.ranks,
        )
        self.trainer = trainer_module(run).make(
            self.model,
            run,
            {
                **options.launch_options(run, spec.settings, folder=str(self.folder.checkpoints), device=spec.device),
                # The trainer would remove whatever is called a checkpoint; the callback removes what a seal proves.
                "save_total_limit": None,
            },
            sequence=sequence,
            tokenizer=tokenizer,
            collate=self._pictures.collate if self._pictures else dataset.collator(tokenizer),
            train_dataset=train,
            **({} if held_out is None else {"eval_dataset": held_out}),
            callbacks=[callback],
            **rewards.trainer_arguments(self.run, self.spec.settings.reward),
        )
        if trainer_named(run.trainer).adds_adapters:
            self.model = self.trainer.model
            self._adapted()
        # trl would write one beside the checkpoints at every save, which is nobody's; PEFT writes the adapter's own.
        self.trainer.create_model_card = lambda *_, **__: None
        keep_dtypes(self.trainer, self.model)
        keep_whole(self.trainer, self.model, run, self.ranks)
        self._check_rows()

    def _check_prompts(self) -> None:
        """That no prompt is longer than was planned for, since none is cut, and that they are enough to begin with."""
        if trainer_named(self.run.trainer).generation is None:
            return
        from qlora_planner.runs.dataset import fitting_prompts

        self.trainer.train_dataset, self._prompts = fitting_prompts(
            self.trainer, self.run, bad_rows=self.spec.bad_rows, path=self.spec.data, note=self.note
        )

    def _check_rows(self) -> None:
        self._check_prompts()
        kept, run = len(self.trainer.train_dataset), self.run
        checks.check_any_left(kept, self.spec.data, run)
        if not run.packing and kept < self._rows_given:
            self.note(
                f"{self._rows_given - kept} of {self._rows_given} rows lose their whole answer to --seq-len: left out"
            )
        self.facts["rows"], self.facts["rows_given"] = kept, self._rows_given
        self.facts["eval_rows"] = None if self.trainer.eval_dataset is None else len(self.trainer.eval_dataset)

    def _begin(self) -> None:
        """Everything is built and wrapped: the longest batch, and a checkpoint's worth of writing, before any step."""
        if self._meter is not None:
            self._meter.enter("between")  # the trainer has cast the adapters: what follows is training's own peak
        if self.spec.resume is not None:
            checkpoint = Path(self.spec.resume)
            if not checks.steps_left(self.trainer.state):
                raise _Trained
            if self.spec.fresh_optimizer:
                restore_schedule(self.trainer, checkpoint)
            else:
                restore_states(self.trainer, checkpoint / optimizer_file(self.run, self.ranks))
        self.facts["parameter_bytes"] = parameter_bytes(self.trainer.model_wrapped)
        self._tell("phase", {"phase": "rehearsal"})
        trial = self.folder.path / ".rehearsal"
        if self.ranks.first:
            remove_marked(trial)
            mark(trial)
        self.ranks.barrier()
        with states_kept(self.trainer, self.run, trial):
            done = self._rehearsed()
        self.facts["rehearsed"] = asdict(done)
        whole = gathered(self.model)
        if self.ranks.first:
            save_adapter(self.model, trial, whole)
            remove_marked(trial)
        self._tell("rehearsed", {**asdict(done), "seq_len": self.run.seq_len, **live_bytes(self.spec.device)})
        self._enter("training")

    def _rehearsed(self) -> DryRun:
        if self._prompts is None:
            return dry_run(self.trainer, self.run, check=self._check_gradients)
        from qlora_planner.runs.child.dry_rollout import dry_rollout

        return dry_rollout(self.trainer, self.run, self._prompts, check=self._check_gradients)

    def _check_gradients(self, model: Any) -> None:
        if (norm := gradient_norm(self.trainer, self.run)) is not None:
            checks.check_felt(norm > 0, self.run)
        elif note := checks.check_gradients(model, self.run):
            self.note(note)

    def _train(self) -> bool:
        resume = self.spec.resume
        if self.spec.fresh_optimizer and resume is not None:
            # The trainer takes up optimizer and schedule together or not at all: it is shown the checkpoint without
            # the former, and _begin puts the latter back.
            shown = self.folder.path / ".data" / "without-optimizer"
            if self.ranks.first:
                shutil.copytree(resume, shown, ignore=shutil.ignore_patterns("optimizer*.pt", "optimizer.bin"))
            self.ranks.barrier()
            resume = str(shown)
        try:
            result = self.trainer.train(resume_from_checkpoint=resume)
        except _Trained:
            return True
        self.facts["train_loss"] = getattr(result, "training_loss", None)
        if self.cards is not None:
            self.cards.last_step_done()
        state = self.trainer.state
        return not (self._stop.asked and state.global_step < state.max_steps)

    def _save(self, tokenizer: Any) -> None:
        """The adapter and its tokenizer, whole or not at all."""
        self._enter("save")
        whole = gathered(self.model)
        if not self.ranks.first:
            return
        half_written = self.folder.path / "adapter.partial"
        remove_marked(half_written)
        mark(half_written)
        save_adapter(self.model, half_written, whole)
        tokenizer.save_pretrained(str(half_written))
        if self._labels is not None:
            (half_written / LABELS_FILE).write_text(self._labels.document(), encoding="utf-8")
        if kept := replace_adapter(self.folder, half_written):
            self.note(f"adapter was not what this run wrote: kept as {kept.name}")
        remove_marked(self.folder.path / ".data")

    def _finish_meter(self) -> None:
        if self._meter is not None:
            self._readings, _ = self._meter.finish()
            self._meter = None

    def report(self) -> dict[str, Any]:
        """Everything that was read, however far it came; JSON-ready."""
        self._finish_meter()
        cards, state = self.cards, getattr(self.trainer, "state", None)
        if state is not None and state.max_steps:  # begun: how far it came, whatever ended it
            self.facts |= {"steps": state.global_step, "of": state.max_steps, "epochs": state.epoch}
        return {
            **self.facts,
            "phase": self.phase,
            "longest": None if self._tokens is None else self._tokens.longest,
            "versions": process.versions() | ({} if cards is None else cards.card.versions()),
            "gpu": None if cards is None else asdict(cards.card.reading()),
            "phases": {name: asdict(reading) for name, reading in self._readings.items()},
            "nvml": None if cards is None else asdict(cards.sampler.reading),
            "notes": [] if cards is None else list(cards.sampler.notes),
            "rss_peak_bytes": process.rss_peak_bytes(),
            "paged_bytes": paged_bytes(self.trainer),
            **({"ranks": each} if cards is not None and (each := cards.each(self._readings.get("training"))) else {}),
        }

    def alive(self) -> dict[str, int]:
        """Bytes by component, as far as tensors can be told apart: what the model, its gradients and its optimizer
        hold; on a card also what else is allocated, what torch reserves beyond it, and the context."""
        from qlora_planner.runs.post_mortem import held

        wrapped = getattr(self.trainer, "optimizer", None)
        peak = None if self.cards is None else self.cards.sampler.reading.process_peak_bytes
        return held(self.model, getattr(wrapped, "optimizer", wrapped), self.spec.device, peak)
