"""Every fact of each trainer: what it does to dtypes, memory and the loss by version, what it offers, its names.

A row here, a module that builds it (`train/trainers/`) and one that traces it (`profiling/tracing/trainers/`) make a
trainer; nothing else asks for one by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

Version = tuple[int, int]


# Passes through the model: with gradients, and without them or adapters to compare with.
POLICY, REFERENCE = PASSES = ("policy", "reference")


@record
class LossMemory:
    """How logits and loss are computed.

    `kind`: `full` (whole logits, several times over), `chunked` (rows in chunks, with a float32 copy of the head's
    weight), `chunked_no_copy`, `fused` (tiles inside the head).
    """

    kind: str
    why: str


@record
class TrainerRow:
    """Facts of one trainer.

    What it is: `packages` it imports beside what every training needs; `passes` of a micro-batch through the model, of
    PASSES, in their order: what is not `policy` runs without gradients; `sequences_per_row` of a data set, so many
    times `batch_size` sequences go through each pass; `losses` by the first version of `versioned_by` that has them,
    newest first (`versioned_by` None: one loss for ever); `automatic`: it may be chosen where nobody names a trainer;
    `usual`: why it then is; `instead`: the trainer to name where it breaks.

    `classifies`: it trains a sequence classifier where `--task classification` asks for one; `score_labels`: it trains
    one with so many labels whatever the task, as a reward model is (None: it does not).

    What it does to memory: `adapters_bfloat16`: adapters on a quantised base are cast to bfloat16 before training.
    `autocast`: forward runs under autocast in the compute dtype. `keeps_outputs`: logits live through backward.
    `micro_batches_stay`: what a micro-batch bound lives until the next one has taken its place. `upcasts`: it casts
    16-bit weights to float32. `embeddings_32bit`: 8-bit optimizers keep the states of embeddings in 32 bits
    (transformers 5.17 trainer.py, create_optimizer, for every `nn.Embedding`). `clips_gradients`: it clips them by
    their norm before each step. `frees_cache_first`: it empties the allocator's cache before its first step.
    `last_upcasting`: the last version whose preparing casts to float32.

    What it offers: `own_options` among OWN_OPTIONS; `launches`: it trains over a real data set, not for a measurement
    alone; `prepares_rows`: it turns samples into tokens by itself; `formats`: other tools that train through it.
    """

    name: str
    packages: tuple[str, ...] = ()
    passes: tuple[str, ...] = (POLICY,)
    sequences_per_row: int = 1
    versioned_by: str | None = None
    losses: tuple[tuple[Version, LossMemory], ...]
    classifies: bool = False
    score_labels: int | None = None
    automatic: bool = True
    usual: str
    instead: str | None = None
    autocast: bool
    adapters_bfloat16: bool
    keeps_outputs: bool
    micro_batches_stay: bool
    upcasts: bool = False
    last_upcasting: Version | None = None
    embeddings_32bit: bool
    clips_gradients: bool
    frees_cache_first: bool
    own_options: tuple[str, ...] = ()
    launches: bool
    prepares_rows: bool = False
    formats: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()

    def lacks(self, run: RunConfig) -> Iterator[str]:
        """Options that are on in `run` and that this trainer does not have."""
        return (name for name in OWN_OPTIONS if name not in self.own_options and getattr(run, name))

    def without_others(self) -> dict[str, bool]:
        """What a run has to switch off for this trainer."""
        return {name: False for name in OWN_OPTIONS if name not in self.own_options}


# Options of a run that not every trainer has.
OWN_OPTIONS = ("packing", "activation_offloading")


def _model_loss(name: str) -> tuple[tuple[Version, LossMemory], ...]:
    why = f"{name} holds the whole logits in the model's own loss"
    return (((0, 0), LossMemory(kind="full", why=why)),)


# trl's default loss by version: first version that has it, newest first (facts read from its released wheels).
_TRL_LOSSES: tuple[tuple[Version, LossMemory], ...] = (
    ((1, 15), LossMemory(kind="fused", why="trl 1.15 and later compute the loss in tiles inside the head")),
    ((1, 14), LossMemory(kind="chunked_no_copy", why="trl 1.14 computes the loss in chunks of 256 rows")),
    ((1, 7), LossMemory(kind="chunked", why="trl 1.7 to 1.13 chunk the loss but copy the head's weight to float32")),
    ((0, 0), LossMemory(kind="full", why="trl before 1.7 holds the whole logits, several times over")),
)
# trl up to 0.24 upcast through its own prepare step (removed in trl pull request 4457).
_TRL_LAST_UPCASTING = (0, 24)

# The first row is the default; rows are tried in this order where nobody names a trainer.
TRAINER_ROWS: dict[str, TrainerRow] = {
    row.name: row
    for row in (
        # trl 1.16 sft_trainer.py: casts LoRA weights of a quantised base; bf16 defaults to True.
        TrainerRow(
            name="trl-sft",
            packages=("trl", "datasets"),
            versioned_by="trl",
            losses=_TRL_LOSSES,
            usual="the usual; its loss needs no whole logits",
            instead="hf-trainer",
            autocast=True,
            adapters_bfloat16=True,
            keeps_outputs=False,
            micro_batches_stay=False,
            last_upcasting=_TRL_LAST_UPCASTING,
            embeddings_32bit=True,
            clips_gradients=True,
            frees_cache_first=True,
            own_options=OWN_OPTIONS,
            launches=True,
            prepares_rows=True,
            formats=("trl",),
            other_names=("trl", "sft", "sfttrainer"),
        ),
        TrainerRow(
            name="hf-trainer",
            losses=_model_loss("hf-trainer"),
            classifies=True,
            usual="transformers' own",
            autocast=True,
            adapters_bfloat16=False,
            keeps_outputs=False,
            micro_batches_stay=False,
            embeddings_32bit=True,
            clips_gradients=True,
            frees_cache_first=True,  # Trainer._inner_training_loop begins with accelerator.free_memory()
            launches=True,
            formats=("axolotl", "llama-factory"),
            other_names=("hf", "transformers", "trainer"),
        ),
        TrainerRow(
            name="loop",
            losses=_model_loss("loop"),
            usual="the plain PyTorch loop",
            autocast=False,
            adapters_bfloat16=False,
            keeps_outputs=True,
            micro_batches_stay=True,
            embeddings_32bit=False,
            clips_gradients=False,
            frees_cache_first=False,
            launches=False,
            other_names=("pytorch", "torch"),
        ),
    )
}
DEFAULT_TRAINER = next(iter(TRAINER_ROWS))
# What other tools and people call each trainer.
TRAINER_NAMES: Mapping[str, str] = {name: row.name for row in TRAINER_ROWS.values() for name in row.other_names}


def trainer_named(name: str | None) -> TrainerRow:
    """The facts of a run's trainer that no version changes; None is the default trainer."""
    return TRAINER_ROWS[name or DEFAULT_TRAINER]


def trainer_row(name: str | None, versions: Mapping[str, str]) -> tuple[TrainerRow, LossMemory]:
    """The trainer's facts and its loss for these library versions (the newest known where a version is absent)."""
    row = trainer_named(name)
    version = version_of(row, versions)
    loss = next(loss for first, loss in row.losses if version >= first)
    if row.last_upcasting is not None and version <= row.last_upcasting:
        row = replace(row, upcasts=True)
    return row, loss


def version_of(row: TrainerRow, versions: Mapping[str, str]) -> Version:
    """The version by which the trainer's loss differs: of its package, or of its only loss where none decides.

    A package that is not named counts as newer than every known version.
    """
    return row.losses[0][0] if row.versioned_by is None else parse_version(versions.get(row.versioned_by, "999"))


def trainer_of_format(name: str) -> TrainerRow:
    """The trainer through which another tool trains."""
    return next(row for row in TRAINER_ROWS.values() if name in row.formats)


def owner_of(option: str) -> TrainerRow:
    """The first trainer that has an option of OWN_OPTIONS."""
    return next(row for row in TRAINER_ROWS.values() if option in row.own_options)


def parse_version(text: str) -> Version:
    """Major and minor of a version; digits only, so `1.16.0rc1` is (1, 16)."""
    parts = [int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)
