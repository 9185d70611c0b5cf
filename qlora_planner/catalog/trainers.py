"""Every fact of each trainer: what it does to dtypes, memory and the loss by version, what it offers, its names.

A row here, a module that builds it (`train/trainers/`) and one that traces it (`profiling/tracing/trainers/`) make a
trainer; nothing else asks for one by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from qlora_planner.record import record
from qlora_planner.spec.run import BATCH_UNIT, RunConfig

Version = tuple[int, int]


# Passes through the model: with gradients; without them or adapters to compare with; and, without gradients, over
# completions of other prompts, from which KTO estimates how far the policy has gone.
POLICY, REFERENCE, DIVERGENCE = PASSES = ("policy", "reference", "divergence")


@record
class LossMemory:
    """How logits and loss are computed.

    `kind`: `full` (whole logits, several times over), `chunked` (rows in chunks, with a float32 copy of the head's
    weight), `chunked_no_copy`, `fused` (tiles inside the head).
    """

    kind: str
    why: str


@record
class Generation:
    """What a trainer that generates does where it is not told otherwise.

    `completion_len`, `num_generations`, `beta`: its config's defaults.
    `always_scores`: it takes the completions' log-probabilities before it trains on them, not only where the policy
    has moved since they were generated.
    """

    completion_len: int
    num_generations: int
    beta: float
    always_scores: bool


@record
class TrainerRow:
    """Facts of one trainer.

    What it is: `packages` it imports beside what every training needs; `passes` of a micro-batch through the model, of
    PASSES, in their order: what is not `policy` runs without gradients; `sequences_per_row` of a data set, so many
    times `batch_size` sequences go through each pass; `batch_unit`, what `batch_size` counts, of BATCH_UNITS;
    `scores_completions`: a row is a prompt and completions, and the loss looks at these alone; `loss_types` that it
    has, its own first, and `without_divergence` those of them that need no such pass; `losses` by the first version
    of `versioned_by` that has them, newest first (`versioned_by` None: one loss for ever); `automatic`: it may be
    chosen where nobody names a trainer; `usual`: why it then is; `instead`: the trainer to name where it breaks.
    `closed_forms`: they know its step; elsewhere only a trace does. `default_dropout`: its own LoRA dropout.

    `classifies`: it trains a sequence classifier where `--task classification` asks for one; `score_labels`: it trains
    one with so many labels whatever the task, as a reward model is (None: it does not).

    What it does to memory: `adapters_bfloat16`: adapters on a quantised base are cast to bfloat16 before training.
    `autocast`: forward runs under autocast in the compute dtype. `keeps_outputs`: logits live through backward.
    `micro_batches_stay`: what a micro-batch bound lives until the next one has taken its place. `upcasts`: it casts
    16-bit weights to float32. `embeddings_32bit`: 8-bit optimizers keep the states of embeddings in 32 bits
    (transformers 5.17 trainer.py, create_optimizer, for every `nn.Embedding`). `clips_gradients`: it clips them by
    their norm before each step. `frees_cache_first`: it empties the allocator's cache before its first step.
    `first_step_differs`: what it sets up in its first step decides what later ones take.
    `measured`: runs of its kind were measured, and what calibrates a card holds for it.
    `compiles_layers`: it hands them to torch's compiler where it can, and its traces are of layers as they are written.
    `last_upcasting`: the last version whose preparing casts to float32. `drops_dropout`: it switches dropout off.
    `adds_adapters`: it is given the base model and adds them itself; given them, it would keep a second set beside.
    `patches_libraries`: importing it changes the other libraries for the whole process, and it prepares a model itself.
    `trace_environment`: the variables under which it is imported in a process that traces it.
    `shards`: its step is played where cards share the weights. `loss_beside_head`: its loss meets counts that are on
    the first card, so that the head has to be there too.
    `generation`: it generates completions itself before it trains on them, with these defaults.

    What it offers: `own_options` among OWN_OPTIONS; `only` values of some options that it has or that are modelled of
    it; `loss_kernels` that may take the place of its
    loss (catalog/losses.py); `launches`: it trains over a real data set, not for a measurement
    alone; `prepares_rows`: it turns samples into tokens by itself; `row_shapes`: what rows it trains on (see
    `data.shapes`), none where they are texts; `trl_class`: what trl's config and trainer begin with; `formats`: other
    tools that train through it, as they train texts; `stages`: what they call this one (axolotl's `rl`,
    LLaMA-Factory's `stage`), `switches`: their key that hands a run over to it. `modelled_since`: the first version of
    its package that is, where not every one is.
    """

    name: str
    packages: tuple[str, ...] = ()
    passes: tuple[str, ...] = (POLICY,)
    sequences_per_row: int = 1
    batch_unit: str = "sequences"
    scores_completions: bool = False
    loss_types: tuple[str, ...] = ()
    without_divergence: tuple[str, ...] = ()
    versioned_by: str | None = None
    losses: tuple[tuple[Version, LossMemory], ...]
    classifies: bool = False
    score_labels: int | None = None
    automatic: bool = True
    closed_forms: bool = True
    default_dropout: float | None = None
    usual: str
    instead: str | None = None
    autocast: bool
    adapters_bfloat16: bool
    keeps_outputs: bool
    micro_batches_stay: bool
    upcasts: bool = False
    last_upcasting: Version | None = None
    generation: Generation | None = None
    embeddings_32bit: bool
    clips_gradients: bool
    frees_cache_first: bool
    first_step_differs: bool = False
    compiles_layers: bool = False
    measured: bool = True
    drops_dropout: bool = False
    adds_adapters: bool = False
    patches_libraries: bool = False
    trace_environment: Mapping[str, str] = field(default_factory=dict)
    shards: bool = False
    loss_beside_head: bool = False
    own_options: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    loss_kernels: tuple[str, ...] = ()
    launches: bool
    prepares_rows: bool = False
    row_shapes: tuple[str, ...] = ()
    trl_class: str = "SFT"
    modelled_since: Version | None = None
    stages: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()

    @property
    def one_pass(self) -> bool:
        """Whether a micro-batch is `batch_size` sequences, all of them scored, through the policy alone."""
        return self.passes == (POLICY,) and self.sequences_per_row == 1 and not self.scores_completions

    def lacks(self, run: RunConfig) -> Iterator[str]:
        """Options that are on in `run` and that this trainer does not have."""
        return (name for name in OWN_OPTIONS if name not in self.own_options and getattr(run, name))

    def without_others(self) -> dict[str, bool | None]:
        """What a run has to switch off, or leave out, for this trainer."""
        return {name: OWN_OPTIONS[name] for name in OWN_OPTIONS if name not in self.own_options}

    def passes_of(self, run: RunConfig) -> tuple[str, ...]:
        """The passes of a micro-batch of `run`: not those that were made once before training, or that it needs not."""
        passes = self.passes
        if run.loss_type in self.without_divergence:
            # The reference makes a pass of its own over them, before the last one.
            passes = (*(name for name in passes if name not in (DIVERGENCE, REFERENCE)), REFERENCE)
        return tuple(name for name in passes if name != REFERENCE) if run.precompute_ref_log_probs else passes


# Options of a run that not every trainer has, and what stands in them where it is not wanted.
OWN_OPTIONS: Mapping[str, bool | None] = {
    "packing": False,
    "activation_offloading": False,
    "prompt_len": None,
    "completion_len": None,
    "max_length": None,
    "loss_type": None,
    "beta": None,
    "precompute_ref_log_probs": None,
    "num_generations": None,
    "num_iterations": None,
    "steps_per_generation": None,
    "scale_rewards": None,
    "vllm": None,
    "vllm_gpu_memory_utilization": None,
    "vllm_enable_sleep_mode": None,
}
# The part of a card that trl lets vLLM take beside the trainer (trl 1.16, grpo_config.py and rloo_config.py).
VLLM_SHARE = 0.3
# What `batch_size` may count.
BATCH_UNITS = ("sequences", "pairs", "completions")


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
_TRL_PREFERENCE_LOSSES: tuple[tuple[Version, LossMemory], ...] = (
    ((1, 15), LossMemory(kind="fused", why="trl 1.15 and later score completions in tiles inside the head")),
    ((0, 0), LossMemory(kind="full", why="trl before 1.15 holds the whole logits of every pass")),
)
# trl up to 0.24 upcast through its own prepare step (removed in trl pull request 4457).
_TRL_LAST_UPCASTING = (0, 24)

# trl 1.16 dpo_config.py and kto_config.py: their loss types, the default first.
_DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_KTO_LOSSES = ("kto", "apo_zero_unpaired")
_PREFERENCE_OPTIONS = (
    "activation_offloading", "prompt_len", "completion_len", "max_length", "loss_type", "beta",
    "precompute_ref_log_probs",
)  # fmt: skip


# What every trainer of trl does with a model on one card, as transformers' Trainer below it does (trl 1.16).
_TRL: dict[str, Any] = {
    "packages": ("trl", "datasets"),
    "versioned_by": "trl",
    "autocast": True,
    "adapters_bfloat16": True,
    "keeps_outputs": False,
    "micro_batches_stay": False,
    "embeddings_32bit": True,
    "clips_gradients": True,
    "frees_cache_first": True,
}


def _preference_trainer(name: str, **own: Any) -> TrainerRow:
    """What trl's DPOTrainer and KTOTrainer share (trl 1.16): SFTTrainer's casts and head, no dropout, own adapters."""
    usual: dict[str, Any] = {
        **_TRL,
        "modelled_since": (1, 15),
        "scores_completions": True,
        "losses": _TRL_PREFERENCE_LOSSES,
        "automatic": False,
        "drops_dropout": True,
        "adds_adapters": True,
        "own_options": _PREFERENCE_OPTIONS,
        "launches": True,
        "prepares_rows": True,
        "row_shapes": ("preference",),
    }
    return TrainerRow(name=name, **(usual | own))


# Kernels that a model's own loss can be exchanged for.
_OF_MODELS = ("cut-cross-entropy", "liger-fused")

_ONLINE_OPTIONS = (
    "prompt_len", "completion_len", "beta", "num_generations", "num_iterations", "steps_per_generation", "vllm",
    "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode",
)  # fmt: skip
# What trl's online trainers share: SFT's casts and its head in tiles, completions that they generate.
_TRL_ONLINE: dict[str, Any] = {
    **_TRL,
    "modelled_since": (1, 16),
    "losses": (((1, 16), _TRL_LOSSES[0][1]), ((0, 0), _TRL_LOSSES[-1][1])),
    "automatic": False,
    "usual": "completions that it generates itself, with rewards",
    "batch_unit": "completions",
    "scores_completions": True,
    "adds_adapters": True,
    "launches": True,
    "prepares_rows": True,
    "row_shapes": ("prompts",),
}

# Unsloth on a machine without a card, with layers as they are written, and nothing asked of the network.
_UNSLOTH_WITHOUT_CARD: Mapping[str, str] = {
    "UNSLOTH_ALLOW_CPU": "1",
    "UNSLOTH_BLOCK_COMPILE": "0",
    "UNSLOTH_DISABLE_PINNED_MEMORY": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}
# unsloth 2026.10.9: its loader stores NF4 with double quantisation, its checkpoints go to the host by themselves.
_OF_UNSLOTH: Mapping[str, tuple[Any, ...]] = {
    "method": ("qlora", "lora"),
    "quant": ("nf4", "none"),
    "double_quant": (True,),
    "attention": ("sdpa", "flash_attention_2"),
    "upcast": (False,),
    "liger": (False,),
    "checkpoint_every": (None,),
    "checkpoint_offload": (False,),
    "modules_to_save": (None,),
    "expert_quant": (None,),
}

# The first row is the default; rows are tried in this order where nobody names a trainer.
TRAINER_ROWS: dict[str, TrainerRow] = {
    row.name: row
    for row in (
        # trl 1.16 sft_trainer.py: casts LoRA weights of a quantised base; bf16 defaults to True.
        TrainerRow(
            name="trl-sft",
            **_TRL,
            losses=_TRL_LOSSES,
            usual="the usual; its loss needs no whole logits",
            instead="hf-trainer",
            last_upcasting=_TRL_LAST_UPCASTING,
            shards=True,
            loss_beside_head=True,
            own_options=("packing", "activation_offloading"),
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
            loss_kernels=_OF_MODELS,
            autocast=True,
            adapters_bfloat16=False,
            keeps_outputs=False,
            micro_batches_stay=False,
            embeddings_32bit=True,
            clips_gradients=True,
            frees_cache_first=True,  # Trainer._inner_training_loop begins with accelerator.free_memory()
            shards=True,
            launches=True,
            formats=("axolotl", "llama-factory"),
            other_names=("hf", "transformers", "trainer"),
        ),
        TrainerRow(
            name="loop",
            losses=_model_loss("loop"),
            usual="the plain PyTorch loop",
            loss_kernels=_OF_MODELS,
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
        _preference_trainer(
            "trl-dpo",
            trl_class="DPO",
            stages={"axolotl": "dpo", "llama-factory": "dpo"},
            passes=(POLICY, REFERENCE),
            sequences_per_row=2,
            batch_unit="pairs",
            loss_types=_DPO_LOSSES,
            usual="pairs of completions against the model without its adapters",
            other_names=("dpo", "dpotrainer"),
        ),
        _preference_trainer(
            "trl-kto",
            trl_class="KTO",
            stages={"axolotl": "kto", "llama-factory": "kto"},
            passes=(DIVERGENCE, POLICY, REFERENCE, REFERENCE),
            batch_unit="completions",
            loss_types=_KTO_LOSSES,
            without_divergence=("apo_zero_unpaired",),
            row_shapes=("unpaired", "preference"),
            usual="completions with a label against the model without its adapters",
            other_names=("kto", "ktotrainer"),
        ),
        # trl 1.16 reward_trainer.py: a classifier with one label, whose whole rows are scored once.
        _preference_trainer(
            "trl-reward",
            trl_class="Reward",
            stages={"llama-factory": "rm"},
            modelled_since=(1, 7),
            sequences_per_row=2,
            batch_unit="pairs",
            scores_completions=False,
            score_labels=1,
            losses=(((0, 0), LossMemory(kind="full", why="a score for each token, of which the last one counts")),),
            own_options=("activation_offloading", "prompt_len", "completion_len", "max_length"),
            usual="a score for each of two texts, the better one higher",
            other_names=("reward", "rewardtrainer"),
        ),
        # trl 1.16 grpo_trainer.py, grpo_config.py
        TrainerRow(
            name="trl-grpo",
            **_TRL_ONLINE,
            trl_class="GRPO",
            own_options=(*_ONLINE_OPTIONS, "loss_type", "scale_rewards"),
            loss_types=("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo"),
            generation=Generation(completion_len=512, num_generations=8, beta=0.0, always_scores=False),
            other_names=("grpo", "grpotrainer"),
        ),
        # trl 1.16 rloo_trainer.py, rloo_config.py
        TrainerRow(
            name="trl-rloo",
            **_TRL_ONLINE,
            trl_class="RLOO",
            own_options=_ONLINE_OPTIONS,
            generation=Generation(completion_len=512, num_generations=2, beta=0.05, always_scores=True),
            other_names=("rloo", "rlootrainer"),
        ),
        # unsloth 2026.10.9 and unsloth_zoo 2026.10.9: prepare_model_for_training in training_utils.py (16-bit weights
        # stay as they are, adapters become float32), fused_losses/fused_linear.py (logits of some rows at a time),
        # models/rl.py (its SFTTrainer is trl's, without trl's casts and with the model's own loss).
        TrainerRow(
            name="unsloth",
            packages=("unsloth", "unsloth_zoo", "trl", "datasets"),
            # As Liger's: a chunk's logits become their gradient in place and are multiplied with the head at once.
            losses=(((0, 0), LossMemory(kind="liger", why="Unsloth holds the logits of some rows at a time")),),
            automatic=False,
            closed_forms=False,
            default_dropout=0.0,
            usual="its own kernels, loss and checkpointing",
            autocast=True,
            adapters_bfloat16=False,
            keeps_outputs=False,
            micro_batches_stay=False,
            embeddings_32bit=True,
            clips_gradients=True,
            frees_cache_first=True,
            first_step_differs=True,
            compiles_layers=True,
            measured=False,
            patches_libraries=True,
            trace_environment=_UNSLOTH_WITHOUT_CARD,
            only=_OF_UNSLOTH,
            launches=False,
            switches={"llama-factory": "use_unsloth"},
            other_names=("fastlanguagemodel", "unslothsfttrainer"),
        ),
    )
}
DEFAULT_TRAINER = next(iter(TRAINER_ROWS))
# What other tools and people call each trainer.
TRAINER_NAMES: Mapping[str, str] = {name: row.name for row in TRAINER_ROWS.values() for name in row.other_names}


def trainer_named(name: str | None) -> TrainerRow:
    """The facts of a run's trainer that no version changes; None is the default trainer."""
    return TRAINER_ROWS[name or DEFAULT_TRAINER]


def data_task(run: RunConfig) -> str | None:
    """What a dataset is read for: the run's task, else `prompts` where the trainer writes the answers itself, else
    None."""
    return run.task or ("prompts" if trainer_named(run.trainer).generation is not None else None)


def run_document(run: RunConfig) -> dict[str, Any]:
    """A run's options for a document, with what its batch counts."""
    return {**run.to_dict(), BATCH_UNIT: trainer_named(run.trainer).batch_unit}


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


def trainer_of_stage(tool: str, stage: str) -> TrainerRow | None:
    """The trainer that another tool calls so; None for one that is not modelled."""
    return next((row for row in TRAINER_ROWS.values() if row.stages.get(tool) == stage), None)


def trainer_of_switch(tool: str, key: str) -> TrainerRow:
    """The trainer to which a key of another tool hands a run over."""
    return next(row for row in TRAINER_ROWS.values() if row.switches.get(tool) == key)


def owner_of(option: str) -> TrainerRow:
    """The first trainer that has an option of OWN_OPTIONS."""
    return next(row for row in TRAINER_ROWS.values() if option in row.own_options)


def parse_version(text: str) -> Version:
    """Major and minor of a version; digits only, so `1.16.0rc1` is (1, 16)."""
    parts = [int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)
