"""What each trainer does to dtypes and to the loss, by library version."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.record import record


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

    `adapters_bfloat16`: adapters on a quantised base are cast to bfloat16 before training.
    `autocast`: forward runs under autocast in the compute dtype. `keeps_outputs`: logits live through backward.
    `embeddings_32bit`: 8-bit optimizers keep the states of embeddings in 32 bits (transformers 5.17 trainer.py,
    create_optimizer, for every `nn.Embedding`).
    """

    name: str
    packages: tuple[str, ...]
    autocast: bool
    adapters_bfloat16: bool
    keeps_outputs: bool
    upcasts: bool
    embeddings_32bit: bool


TRAINER_ROWS: dict[str, TrainerRow] = {
    row.name: row
    for row in (
        # trl 1.16 sft_trainer.py: casts LoRA weights of a quantised base; bf16 defaults to True.
        TrainerRow(
            name="trl-sft",
            packages=("trl",),
            autocast=True,
            adapters_bfloat16=True,
            keeps_outputs=False,
            upcasts=False,
            embeddings_32bit=True,
        ),
        TrainerRow(
            name="hf-trainer",
            packages=(),
            autocast=True,
            adapters_bfloat16=False,
            keeps_outputs=False,
            upcasts=False,
            embeddings_32bit=True,
        ),
        TrainerRow(
            name="loop",
            packages=(),
            autocast=False,
            adapters_bfloat16=False,
            keeps_outputs=True,
            upcasts=False,
            embeddings_32bit=False,
        ),
    )
}

# trl's default loss by version: first version that has it, newest first (facts read from its released wheels).
_TRL_LOSSES: tuple[tuple[tuple[int, int], LossMemory], ...] = (
    ((1, 15), LossMemory(kind="fused", why="trl 1.15 and later compute the loss in tiles inside the head")),
    ((1, 14), LossMemory(kind="chunked_no_copy", why="trl 1.14 computes the loss in chunks of 256 rows")),
    ((1, 7), LossMemory(kind="chunked", why="trl 1.7 to 1.13 chunk the loss but copy the head's weight to float32")),
    ((0, 0), LossMemory(kind="full", why="trl before 1.7 holds the whole logits, several times over")),
)
# trl up to 0.24 upcast through its own prepare step (removed in trl pull request 4457).
_TRL_LAST_UPCASTING = (0, 24)


def trainer_row(name: str, versions: dict[str, str]) -> tuple[TrainerRow, LossMemory]:
    """The trainer's facts and its loss for these library versions (the newest known where a version is absent)."""
    row = TRAINER_ROWS[name]
    if name != "trl-sft":
        return row, LossMemory(kind="full", why=f"{name} holds the whole logits in the model's own loss")
    version = parse_version(versions.get("trl", "999"))
    loss = next(loss for first, loss in _TRL_LOSSES if version >= first)
    if version <= _TRL_LAST_UPCASTING:
        row = replace(row, upcasts=True)
    return row, loss


def parse_version(text: str) -> tuple[int, int]:
    """Major and minor of a version; digits only, so `1.16.0rc1` is (1, 16)."""
    parts = [int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)
