"""Every option once: its name, type, help and the section that `--help` shows it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from qlora_planner.cli import completing
from qlora_planner.cli.kinds import Kernel, Named, Tokens, notes_of, trainer_names
from qlora_planner.cli.sections import (
    CARD,
    DATA,
    OTHER,
    OUTPUT,
    RUN,
    CardOption,
    DataOption,
    OutputOption,
    RunOption,
    SectionOption,
)
from qlora_planner.spec.run import (
    BACKENDS,
    COMPUTE_DTYPES,
    EXPERT_QUANTS,
    LOAD_DTYPES,
    LOSS_KERNELS,
    METHODS,
    PLACES,
    QUANTS,
    SCALE_REWARDS,
    STORAGE_DTYPES,
    STRATEGIES,
    TASKS,
    TRAINERS,
    VLLM_MODES,
)
from qlora_planner.spec.spellings import (
    ATTENTION_NAMES,
    DTYPE_NAMES,
    LOSS_NAMES,
    METHOD_NAMES,
    PLACE_NAMES,
    QUANT_NAMES,
    STRATEGY_NAMES,
    TASK_NAMES,
)

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
Function = TypeVar("Function", bound=Callable[..., Any])


# Behind a switch: people write `--packing true`, as configs do.
TRUTHS: Mapping[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def option_name(arg: str) -> str:
    """The name of an option as it is spelt here: `--batch_size=4` is `--batch-size`."""
    return arg.partition("=")[0].replace("_", "-") if arg.startswith("--") else arg


class Verb(click.Command):
    """A command whose help shows its options by section, and which knows how other tools call them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as any command does. Raises UsageError that says what to type for an option that is unknown."""
        typed = list(args)
        try:
            return super().parse_args(ctx, self._respelt(ctx, args))
        except click.NoSuchOption as error:
            from qlora_planner.cli import spelling

            raise click.UsageError(spelling.answer(error.option_name, typed, self, ctx), ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Say what was taken for what, then do it."""
        if not ctx.params.get("quiet"):
            from qlora_planner.cli.streams import say

            for note in notes_of(ctx):
                say(note)
        return super().invoke(ctx)

    def _respelt(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        """Underscores in the names of options made hyphens, and `--packing false` made `--no-packing`."""
        options = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option):
                options.update(dict.fromkeys((*parameter.opts, *parameter.secondary_opts), parameter))
        respelt: list[str] = []
        waiting = list(reversed(args))
        while waiting:
            arg = waiting.pop()
            if arg == "--":
                return [*respelt, arg, *reversed(waiting)]
            option = options.get(arg) or options.get(name := option_name(arg))
            if option is None:
                respelt.append(arg)
                continue
            _, equals, value = arg.partition("=")
            name = arg.partition("=")[0] if arg.partition("=")[0] in options else name
            if option.is_flag:
                said = value if equals else waiting[-1] if waiting else ""
                truth = TRUTHS.get(said.lower())
                if truth is None:
                    respelt.append(name + equals + value)
                    continue
                if not equals:
                    waiting.pop()
                respelt += _switched(option, name, truth)
            else:
                respelt.append(name + equals + value)
                if not equals and waiting:
                    respelt.append(waiting.pop())
        return respelt

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One block per section."""
        blocks: dict[str, list[tuple[str, str]]] = {OTHER: [], CARD: [], DATA: [], RUN: [], OUTPUT: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                section = OUTPUT if parameter.name == "help" else getattr(parameter, "section", OTHER)
                blocks[section].append(record)
        for name, records in blocks.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def _switched(option: click.Option, name: str, on: bool) -> list[str]:
    """The spelling of a switch that is on or off; none for one that is off when it is left out."""
    if on:
        return [name]
    if not option.secondary_opts:
        return []
    return [option.secondary_opts[0] if name in option.opts else option.opts[0]]


def _switch(name: str, text: str) -> click.Option:
    return RunOption([f"--{name}/--no-{name}"], default=None, help=text)


def _value(name: str, kind: Any, text: str, metavar: str | None = None, complete: Any = None) -> click.Option:
    return RunOption([f"--{name}"], type=kind, default=None, help=text, metavar=metavar, shell_complete=complete)


def _run_options() -> list[click.Option]:
    return [
        _value("method", Named(METHODS, METHOD_NAMES), "What is trained (qlora)."),
        _value("quant", Named(QUANTS, QUANT_NAMES), "How the base is stored (nf4 for qlora, else none)."),
        _switch("double-quant", "Quantise the constants too (on)."),
        _value("compute-dtype", Named(COMPUTE_DTYPES, DTYPE_NAMES), "Arithmetic (bfloat16 where the card has it)."),
        _value(
            "load-dtype", Named(LOAD_DTYPES, DTYPE_NAMES), "What is not quantised (bfloat16 where the card has it)."
        ),
        _value("seq-len", Tokens(), "Tokens per sequence (2048); 8k is 8192.", "N"),
        _value("batch-size", int, "Sequences, pairs or completions per device and micro-batch (1).", "N"),
        _value("grad-accum", int, "Micro-batches per optimizer step (1).", "N"),
        _value("rank", int, "LoRA rank (16).", "N"),
        _value("alpha", int, "LoRA alpha (2 x rank).", "N"),
        _value("target-modules", str, "all-linear, attention or names (all-linear where PEFT accepts it).", "NAME,.."),
        _value("modules-to-save", str, "Modules trained whole beside the adapters (none).", "NAME,.."),
        _value("lora-dropout", float, "Dropout before the adapters (0.05; 0 where PEFT refuses dropout).", "F"),
        _switch("dora", "Weight-decomposed LoRA (off)."),
        _switch("rslora", "Rank-stabilised scaling; costs no memory (off)."),
        _switch("gradient-checkpointing", "Keep layer inputs only, compute the rest again (on)."),
        _switch("use-reentrant", "The old kind of checkpointing (off)."),
        _value("attention", Kernel(ATTENTIONS, ATTENTION_NAMES), "Attention kernel (sdpa where the class has it)."),
        _value("optimizer", str, "A transformers name (paged_adamw_8bit).", "NAME", completing.optimizers),
        _value(
            "trainer",
            Named(TRAINERS, trainer_names),
            f"Who runs the steps: {', '.join(TRAINERS)} (trl-sft where it works).",
            "NAME",
        ),
        _switch("upcast", "PEFT's cast of 16-bit weights to float32 (what the trainer does)."),
        _switch("liger", "Liger's fused kernels (off)."),
        _switch("activation-offloading", "Keep checkpoints in host memory (off)."),
        _value("alloc-conf", str, "torch's allocator settings, as expandable_segments:True.", "TEXT"),
        RunOption(["--packing/--no-packing"], default=None, help="Fill every row with several samples (off)."),
        _switch("padding", "Rows hold sequences of unequal length (off for batch 1 or packing)."),
        _value("checkpoint-every", int, "Checkpoint every N-th layer alone; the others keep all (every layer).", "N"),
        _switch("checkpoint-offload", "Keep layer inputs in pinned host memory, copied in step (off)."),
        _value("expert-quant", Named(EXPERT_QUANTS, {"4bit": "nf4", "16bit": "none"}), "How fused experts are stored."),
        _value("loss-kernel", Named(LOSS_KERNELS, LOSS_NAMES), "What computes the loss (what the trainer does)."),
        _value("eval-batch-size", int, "Evaluate with this batch size (no evaluation).", "N"),
        _value("task", Named(TASKS, TASK_NAMES), "What is learnt, where it is not text: classification (text)."),
        _value("num-labels", int, "Labels of a classifier (2).", "N"),
        _value("prompt-len", Tokens(), "Tokens of a prompt (half of seq-len, or what completion-len leaves).", "N"),
        _value("completion-len", Tokens(), "Tokens of a completion (what prompt-len leaves of seq-len).", "N"),
        _value("max-length", Tokens(), "Preferences: longer sequences are cut to it (not at all).", "N"),
        _value("loss-type", str, "Preferences: trl's name of the loss (the trainer's default).", "NAME"),
        _value("beta", float, "Preferences: how far the policy may go (the trainer's default).", "F"),
        _switch("precompute-ref-log-probs", "Preferences: ask the reference once, before training (off)."),
        _value("num-generations", int, "GRPO, RLOO: completions of each prompt (the trainer's default).", "N"),
        _value("num-iterations", int, "GRPO, RLOO: updates with the same completions (1).", "N"),
        _value("steps-per-generation", int, "GRPO, RLOO: micro-batches generated together (grad-accum).", "N"),
        _value("scale-rewards", click.Choice(SCALE_REWARDS), "GRPO: by what rewards are scaled; costs no memory."),
        _value(
            "parallel", Named(STRATEGIES, STRATEGY_NAMES), "How several cards share it (ddp where a card holds it)."
        ),
        _value("quant-storage", Named(STORAGE_DTYPES, DTYPE_NAMES), "Dtype that 4-bit weights lie in (as they shard)."),
        _switch("reshard-after-forward", "FSDP2 gives gathered weights back after each layer (on)."),
        _value("load-on", Named(PLACES, PLACE_NAMES), "Where each rank of several loads (gpu; cpu for FSDP)."),
        _value("ddp-backend", click.Choice(BACKENDS), "What ranks of several cards talk over (nccl)."),
        _value("image-size", str, "Pixels of every image, for a vision-language model with its tower.", "WxH"),
        _value("images", int, "Images in each sequence (1 where their size is given); 0 loads the tower alone.", "N"),
        _value("image-tokens", int, "Tokens of one image, where its size is not given.", "N"),
        _value("exclude-modules", str, "Modules without adapters, or a regular expression (none).", "NAME,.."),
        _value("vllm", click.Choice(VLLM_MODES), "GRPO, RLOO: where vLLM generates (none: transformers does)."),
        _value("vllm-gpu-memory-utilization", float, "Its part of this card, with --vllm colocate (0.3).", "F"),
        _switch("vllm-enable-sleep-mode", "It gives its part back while the trainer trains (off)."),
        RunOption(["--stack"], multiple=True, metavar="PACKAGE=VERSION,..", help="Plan for versions, as trl=1.13."),
    ]


def _card_options() -> list[click.Option]:
    return [
        CardOption(
            ["--gpu"],
            shell_complete=completing.cards,
            metavar="GPU",
            help="24GB, 24564MiB, a name such as rtx-4090, 2xrtx-4090, or local.",
        ),
        CardOption(["--nodes"], type=click.IntRange(1, 1024), metavar="N", help="Machines with such cards (1)."),
        CardOption(["--node-network"], metavar="RATE", help="What each node reaches others over, as 100Gb or 8x400Gb."),
        CardOption(["--reserve"], metavar="SIZE", help="Held back for a desktop or other processes, as 800MiB."),
        CardOption(["--cap"], metavar="SIZE", help="torch's per-process limit on a larger card, as 20GiB."),
        CardOption(
            ["--risk"], metavar="PERCENT", help="The highest chance of running out that passes (5%); 5 is 5%, 0.05 too."
        ),
    ]


def _data_options() -> list[click.Option]:
    bad_rows = click.Choice(("refuse", "skip"))
    return [
        DataOption(
            ["--data"],
            shell_complete=completing.files,
            metavar="FILE|ID",
            help="jsonl, json, csv, parquet, a folder or pattern of them, a Hub id.",
        ),
        DataOption(["--tokenizer"], metavar="NAME|DIR", help="Whose tokens are counted (the model's own)."),
        DataOption(["--chars-per-token"], type=float, metavar="F", help="Guess the tokens from characters, as 4."),
        DataOption(["--bad-rows"], type=bad_rows, default="refuse", help="About rows that cannot be used (refuse)."),
    ]


def _output_options(*, csv: bool, every: bool) -> list[click.Option]:
    options: list[click.Option] = [OutputOption(["--json"], is_flag=True, help="One JSON document.")]
    if csv:
        options.append(OutputOption(["--csv"], is_flag=True, help="Every row as CSV."))
    if every:
        options.append(OutputOption(["--all"], is_flag=True, help="Every row, none folded away."))
    return [
        *options,
        OutputOption(["--explain"], is_flag=True, help="Show where the figures come from."),
        OutputOption(["--quiet"], is_flag=True, help="No notes or warnings on stderr."),
        OutputOption(["--no-color"], is_flag=True, help="Plain text on a terminal, as with NO_COLOR."),
        OutputOption(["--profiles"], metavar="DIR", help="A folder with models/ or gpus/ to look in first."),
    ]


def adding(options: Sequence[click.Option]) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        # click collects what decorators add in reverse order.
        waiting: list[click.Parameter] = function.__dict__.setdefault("__click_params__", [])
        waiting.extend(reversed(options))
        return function

    return add


def run_options(*, only: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Add the run options, or some of them by their field names."""
    return adding([option for option in _run_options() if not only or option.name in only])


def card_options() -> Callable[[Function], Function]:
    """Add --gpu, --reserve, --cap and --risk."""
    return adding(_card_options())


def reward_option() -> Callable[[Function], Function]:
    """Add --reward."""
    return click.option(
        "--reward", cls=SectionOption, multiple=True, metavar="FILE:NAME",
        help="GRPO, RLOO: a function of a Python file, as rewards.py:length, or one of trl's own; again for more.",
    )  # fmt: skip


def share_option() -> Callable[[Function], Function]:
    """Add --share."""
    return adding(
        [SectionOption(["--share"], metavar="FILE", help="The screen as a picture to show: .svg, or .png by cairosvg.")]
    )


def data_options(*, only: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Add --data, --tokenizer, --chars-per-token and --bad-rows, or some of them by their parameter names."""
    return adding([option for option in _data_options() if not only or option.name in only])


def output_options(*, csv: bool = False, every: bool = False) -> Callable[[Function], Function]:
    """Add --json, --explain, --quiet, --no-color and --profiles, and where asked --csv and --all."""
    return adding(_output_options(csv=csv, every=every))


def flags_and_values() -> tuple[frozenset[str], frozenset[str]]:
    """Every spelling of a switch and of an option with a value that a model or a card alone can be asked with."""
    flags: set[str] = {"--help", "--adjust"}
    values: set[str] = {
        "--objective", "--effective-batch", "--compare", "--save", "--export", "--format", "--model", "--report",
        "--parquet", "--share",
    }  # fmt: skip
    for option in (*_run_options(), *_card_options(), *_data_options(), *_output_options(csv=True, every=True)):
        spellings = {*option.opts, *option.secondary_opts}
        (flags if option.is_flag else values).update(spellings)
    return frozenset(flags), frozenset(values)
