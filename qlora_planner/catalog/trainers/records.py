"""What is stated of a trainer: records, and the words that their fields are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from qlora_planner.record import record, replaced
from qlora_planner.spec.run import RunConfig

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
    `scores_completions`: a row is a prompt and completions, and the loss looks at these alone; `pads_sides`: chosen and
    rejected texts are padded apart, and then to the width of the wider ones; `loss_types` that it has, its own first,
    and `without_divergence` those of them that need no such pass; `losses` by the first version of
    `versioned_by` that has them, newest first (`versioned_by` None: one loss for ever); `automatic`: it may be
    chosen where nobody names a trainer; `usual`: why it then is; `instead`: the trainer to name where it breaks.
    `closed_forms`: they know its step; elsewhere only a trace does. `default_dropout`: its own LoRA dropout.

    `classifies`: it trains a sequence classifier where `--task classification` asks for one; `score_labels`: it trains
    one with so many labels whatever the task, as a reward model is (None: it does not).

    What it does to memory: `adapters_bfloat16`: adapters on a quantised base are cast to bfloat16 before training.
    `autocast`: forward runs under autocast in the compute dtype. `keeps_outputs`: logits live through backward.
    `micro_batches_stay`: what a micro-batch bound lives until the next one has taken its place. `upcasts`: it casts
    16-bit weights to float32; `prepares_quantized`: it does so to a quantised base, by PEFT's
    `prepare_model_for_kbit_training`, and then casts embeddings and head back. `embeddings_32bit`: 8-bit optimizers
    keep the states of embeddings in 32 bits (transformers 5.17 trainer.py, create_optimizer, for every `nn.Embedding`).
    `clips_gradients`: it clips them by their norm before each step. `frees_cache_first`: it empties the allocator's
    cache before its first step. `first_step_differs`: what it sets up in its first step decides what later ones take.
    `frees_cache_before_backward`: it empties the cache between forward and backward of its first step, too.
    `multiplies_at_import`: cuBLAS has its workspace before weights are loaded. `offloads_inputs`: checkpoints
    go to the host and back on a stream of their own. `alloc_conf`: what it sets for torch's
    allocator where nothing is set.
    `measured`: runs of its kind were measured, and what calibrates a card holds for it. `compiles_layers`: it hands
    them to torch's compiler where it can, and its traces are of layers as they are written. `joins_rows`: a batch is
    its rows end to end with their lengths, packed or not. `last_upcasting`: the last version whose preparing casts to
    float32. `drops_dropout`: it switches dropout off. `quantizes_experts`: it stores fused experts in 4 bits by itself,
    where it stores linear layers so. `adds_adapters`: it is given the base model and
    adds them itself; given them, it would keep a second set beside. `patches_libraries`: importing it changes the other
    libraries for the whole process, and it prepares a model itself. `trace_environment`: the variables under which it
    is imported in a process that traces it.`traced_types`: the model types that it has written layers for; models of
    others go through torch's compiler whole, which no trace sees (none: it is traced of every type). `shards`: its step
    is played where cards share the weights.
    `loss_beside_head`: its loss meets counts that are on the first card, so that the head has to be there too.
    `generation`: it generates completions itself before it trains on them, with these defaults.

    What it offers: `own_options` among OWN_OPTIONS; `only` values of some options that it has or that are modelled of
    it; `loss_kernels` that may take the place of its loss (catalog/losses.py); `launches`: it trains over a real data
    set, not for a measurement alone; `prepares_rows`: it turns samples into tokens by itself; `row_shapes`: what rows
    it trains on (see `data.shapes`), none where they are texts; `trl_class`: what trl's config and trainer begin with,
    in `trl_module`; `formats`: other tools that train through it, as they train texts; `stages`: what they call this
    one (axolotl's `rl`, LLaMA-Factory's `stage`), `switches`: their key that hands a run over to it. `modelled_since`:
    the first version of its package that is, where not every one is.
    """

    name: str
    packages: tuple[str, ...] = ()
    passes: tuple[str, ...] = (POLICY,)
    sequences_per_row: int = 1
    batch_unit: str = "sequences"
    scores_completions: bool = False
    pads_sides: bool = False
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
    prepares_quantized: bool = False
    last_upcasting: Version | None = None
    generation: Generation | None = None
    embeddings_32bit: bool
    clips_gradients: bool
    frees_cache_first: bool
    first_step_differs: bool = False
    frees_cache_before_backward: bool = False
    multiplies_at_import: bool = False
    offloads_inputs: bool = False
    alloc_conf: str | None = None
    compiles_layers: bool = False
    joins_rows: bool = False
    measured: bool = True
    drops_dropout: bool = False
    quantizes_experts: bool = False
    adds_adapters: bool = False
    patches_libraries: bool = False
    reads_saved_folders: bool = False  # weights come from a folder alone, where save_pretrained writes tied ones once
    trace_environment: Mapping[str, str] = field(default_factory=dict)
    traced_types: tuple[str, ...] = ()
    shards: bool = False
    loss_beside_head: bool = False
    own_options: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    loss_kernels: tuple[str, ...] = ()
    launches: bool
    prepares_rows: bool = False
    row_shapes: tuple[str, ...] = ()
    trl_class: str = "SFT"
    trl_module: str = "trl"
    modelled_since: Version | None = None
    stages: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()

    @property
    def one_pass(self) -> bool:
        """Whether a micro-batch is `batch_size` sequences, all of them scored, through the policy alone."""
        return self.passes == (POLICY,) and self.sequences_per_row == 1 and not self.scores_completions

    @property
    def tiles_completions(self) -> bool:
        """Whether completions are scored in tiles of tokens, by the newest version."""
        return self.scores_completions and self.losses[0][1].kind != "full"

    def casts_back(self, run: RunConfig) -> bool:
        """Whether the weights named in CAST_BACK are 16 bits wide again while `run`, resolved, trains: trl 1.16
        experimental/utils.py, peft_module_casting_to_bf16, which ORPOTrainer calls for a 4-bit base with `bf16`."""
        four_bits = run.quant in ("nf4", "fp4") and run.method != "full"
        return self.prepares_quantized and bool(run.upcast) and four_bits and run.compute_dtype == "bfloat16"

    def loads_tied(self, stored: bool | None) -> bool:
        """Whether a checkpoint holds tied tensors twice; `stored` says so of its files, None where there are none."""
        return not self.reads_saved_folders if stored is None else stored

    def lacks(self, run: RunConfig) -> Iterator[str]:
        """Options that are on in `run` and that this trainer does not have."""
        return (name for name in OWN_OPTIONS if name not in self.own_options and getattr(run, name))

    def without_others(self) -> dict[str, bool | None]:
        """What a run has to switch off, or leave out, for this trainer."""
        return {name: OWN_OPTIONS[name] for name in OWN_OPTIONS if name not in self.own_options}

    def of_run(self, run: RunConfig) -> TrainerRow:
        """The row with the passes of this run."""
        passes = self.passes_of(run)
        return self if passes == self.passes else replaced(self, passes=passes)

    def passes_of(self, run: RunConfig) -> tuple[str, ...]:
        """The passes of a micro-batch of `run`: not those that were made once before training, or that it needs not."""
        passes = self.passes
        if run.loss_type in self.without_divergence:
            # The reference makes a pass of its own over them, before the last one.
            passes = (*(name for name in passes if name not in (DIVERGENCE, REFERENCE)), REFERENCE)
        return tuple(name for name in passes if name != REFERENCE) if run.precompute_ref_log_probs else passes


# Modules whose float32 weights are cast back, by a part of their name.
CAST_BACK = ("lm_head", "embed_tokens", "wte", "wpe")
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
