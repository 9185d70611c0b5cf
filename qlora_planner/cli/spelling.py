"""Options as people type them who come from other tools: what to type here instead. Read only when one is unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

import click

# Our option -> what trl, transformers, axolotl, LLaMA-Factory, unsloth, torchtune and llama.cpp call it.
_SAME: Mapping[str, str] = {
    "seq-len": "ctx ctx-size c context context-len context-length context-size n-ctx num-ctx max-ctx max-context"
    " max-seq-len max-seq-length max-sequence-length max-len max-tokens maxlen sequence sequence-len"
    " sequence-length seq seq-length seqlen length tokens cutoff cutoff-len cutoff-length model-max-length block-size"
    " model-max-seq-length max-position-embeddings num-tokens",
    "batch-size": "batch b bs bsz mbs micro-batch micro-batch-size micro-bs device-batch-size train-batch-size"
    " per-device-batch-size per-device-train-batch-size per-gpu-batch-size per-gpu-train-batch-size batchsize",
    "grad-accum": "ga gas accum accumulate accumulation accumulation-steps grad-acc grad-accumulation grad-accum-steps"
    " gradient-accumulation gradient-accumulation-steps grad-accumulation-steps",
    "effective-batch": "effective-batch-size global-batch global-batch-size gbs total-batch-size",
    "rank": "r lora-r lora-rank lora-dim lora-rank-dim lora-size",
    "alpha": "a lora-alpha",
    "lora-dropout": "dropout lora-drop",
    "target-modules": "targets target target-module lora-target lora-targets lora-target-modules lora-modules"
    " lora-attn-modules",
    "modules-to-save": "lora-modules-to-save additional-target additional-targets",
    "method": "finetuning-type train-type training-type adapter peft-type fine-tune-type",
    "quant": "q quantization quantize quant-type bnb-4bit-quant-type quantization-type qtype bnb-quant-type",
    "double-quant": "use-double-quant bnb-4bit-use-double-quant use-nested-quant use-bnb-nested-quant nested-quant"
    " double-quantization use-dq",
    "compute-dtype": "dtype torch-dtype precision mixed-precision bnb-4bit-compute-dtype",
    "attention": "attn attn-implementation attn-impl attention-implementation flash-attn fa fa2",
    "optimizer": "optim opt optimiser",
    "gradient-checkpointing": "grad-checkpointing gradient-checkpoint grad-checkpoint checkpointing gc"
    " use-gradient-checkpointing enable-gradient-checkpointing activation-checkpointing"
    " enable-activation-checkpointing",
    "activation-offloading": "offload cpu-offload offload-activations activation-offload enable-activation-offloading",
    "packing": "sample-packing pack packed",
    "liger": "use-liger use-liger-kernel enable-liger-kernel liger-kernel",
    "dora": "use-dora peft-use-dora lora-use-dora",
    "rslora": "use-rslora peft-use-rslora",
    "eval-batch-size": "per-device-eval-batch-size eval-batch eval-bs eval-micro-batch-size",
    "trainer": "framework loop",
    "task": "task-type",
    "num-labels": "labels n-labels number-of-labels num-classes n-classes",
    "stack": "versions transformers-version trl-version torch-version",
    "alloc-conf": "pytorch-cuda-alloc-conf pytorch-alloc-conf cuda-alloc-conf",
    "gpu": "g card vram gpu-type gpu-name gpu-memory gpu-mem gpu-vram gpu-ram memory mem hardware vram-gb gpu-size"
    " cuda-device gpus",
    "reserve": "reserved overhead",
    "cap": "limit max-memory memory-limit gpu-memory-utilization memory-fraction",
    "data": "d dataset datasets dataset-name dataset-path data-path data-file data-files train-file train-data"
    " training-data dataset-dir data-dir",
    "tokenizer": "tokenizer-name tokenizer-path tokenizer-name-or-path",
    "epochs": "epoch num-epochs num-train-epochs n-epochs",
    "max-steps": "steps num-steps max-train-steps train-steps iters num-iterations",
    "learning-rate": "lr",
    "warmup": "warmup-steps warmup-ratio num-warmup-steps lr-warmup",
    "scheduler": "lr-scheduler lr-scheduler-type",
    "output": "o out output-dir out-dir save-path output-path outfile",
    "eval-split": "val-set-size val-size validation-split test-size",
    "report-to": "wandb tensorboard",
    "max-new-tokens": "n-predict n num-predict max-new",
    "prompt": "p",
    "temperature": "temp",
    "json": "as-json output-json j",
    "explain": "v verbose details detail why",
    "quiet": "silent no-warnings",
    "no-color": "no-colour plain",
    "all": "a full-list show-all",
    "yes": "y no-confirm assume-yes",
}  # fmt: skip

# What is no option here, or another one with a value: the whole of what to do.
_SAYS: Mapping[str, str] = {
    **dict.fromkeys(
        ("model", "m", "model-name", "model-path", "model-id", "model-name-or-path", "base-model", "model-dir",
         "pretrained-model-name-or-path", "hf-model", "checkpoint"),
        "the model is a word of its own, as `qlora-plan {verb} llama-3.1-8b`",
    ),
    **dict.fromkeys(("load-in-4bit", "4bit", "use-4bit", "int4", "q4", "nf4"), "write --quant nf4 (the default)"),
    **dict.fromkeys(("load-in-8bit", "8bit", "use-8bit", "int8", "q8"), "write --quant int8"),
    **dict.fromkeys(
        ("bits", "n-bits", "quantization-bit", "quant-bits", "nbits", "bit"),
        "write --quant nf4 for 4 bits, --quant int8 for 8, --method lora for 16",
    ),
    **dict.fromkeys(("bf16", "bfloat16", "use-bf16"), "write --compute-dtype bfloat16"),
    **dict.fromkeys(("fp16", "float16", "half", "use-fp16"), "write --compute-dtype float16"),
    **dict.fromkeys(("fp32", "float32", "tf32"), "write --compute-dtype float32"),
    **dict.fromkeys(("qlora", "use-qlora"), "write --method qlora (the default)"),
    **dict.fromkeys(("lora", "use-lora", "peft", "use-peft"), "write --method lora; qlora is the default"),
    **dict.fromkeys(("full", "full-finetune", "full-finetuning"), "write --method full"),
    **dict.fromkeys(
        ("flash-attention", "flash-attention-2", "use-flash-attn", "use-flash-attention", "use-flash-attention-2",
         "flash"),
        "write --attention flash_attention_2",
    ),
    **dict.fromkeys(("sdpa", "sdp-attention"), "write --attention sdpa"),
    **dict.fromkeys(("eager", "eager-attention"), "write --attention eager"),
    **dict.fromkeys(("lora-target-linear", "target-linear", "all-linear"), "write --target-modules all-linear"),
    **dict.fromkeys(("unsloth", "use-unsloth"), "write --trainer unsloth"),
    **dict.fromkeys(
        ("num-gpus", "n-gpus", "ngpus", "n-gpu", "gpu-count", "nproc-per-node", "nproc", "world-size", "num-processes",
         "multi-gpu"),
        "write the number of cards before the card: --gpu 2xrtx-3090",
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "zero", "ddp", "device-map", "tensor-split"),
        "write --parallel ddp, fsdp2, zero2, zero3 or pipeline, and --gpu 2xrtx-3090",
    ),
    **dict.fromkeys(
        ("tensor-parallel-size", "tp", "tensor-parallel"), "bitsandbytes' weights are not split so: --parallel fsdp2",
    ),
    **dict.fromkeys(("nnodes", "num-nodes", "num-machines"), "write --nodes 2 beside --gpu 8xa100-80gb"),
    **dict.fromkeys(
        ("ngl", "n-gpu-layers", "gpu-layers"), "training keeps every layer on the card; --activation-offloading moves "
        "activations to the host",
    ),
    **dict.fromkeys(("use-cache", "kv-cache", "cache-type-k"), "training keeps no cache of keys and values"),
}  # fmt: skip

_VERBS_WITH_MORE = ("plan", "train", "verify", "generate", "merge", "check", "survey", "table", "models", "tui")
_MOST_NAMES = 3


def answer(typed: str, args: Sequence[str], command: click.Command, ctx: click.Context) -> str:
    """What to type in place of the unknown option `typed` of `args`: one line, without a stop at its end."""
    word, value = _as_typed(typed, args)
    name = _plain(word)
    own = _options(command, ctx)
    unknown = f"no such option {word}"
    if name in _SAYS:
        return f"{unknown}: {_SAYS[name].format(verb=command.name)}"
    for target in (name, *(ours for ours, theirs in _SAME.items() if name in theirs.split())):
        if target in own:
            return f"{unknown}: write {_written(own[target], target, value)}"
        if elsewhere := _elsewhere(target, command.name or ""):
            verb, option = elsewhere
            return f"{unknown} here: `qlora-plan {verb}` has {_written(option, target, value)}"
    near = _nearest(name, own) or _nearly_theirs(name, own)
    if not near:
        return unknown
    if len(near) == 1:
        return f"{unknown}; did you mean {_written(own[near[0]], near[0], value)}?"
    return f"{unknown}; did you mean {' or '.join(_spelt(own[spelling], spelling) for spelling in near)}?"


def _as_typed(option: str, args: Sequence[str]) -> tuple[str, str | None]:
    """The word that click could not place, as it was typed, and the value behind it."""
    for index, arg in enumerate(args):
        word, equals, value = arg.partition("=")
        if word == option or (not option.startswith("--") and arg.startswith(option)):
            following = args[index + 1] if index + 1 < len(args) else None
            # A negative number is a value.
            is_value = following is not None and not (following.startswith("-") and not following[1:2].isdigit())
            return word, value if equals else following if is_value else None
    return option, None


def _plain(word: str) -> str:
    return word.lstrip("-").lower().replace("_", "-").removeprefix("no-")


def _options(command: click.Command, ctx: click.Context) -> dict[str, click.Option]:
    by_spelling = {}
    for parameter in command.get_params(ctx):
        if isinstance(parameter, click.Option):
            by_spelling.update(
                {spelling.lstrip("-"): parameter for spelling in (*parameter.opts, *parameter.secondary_opts)}
            )
    return by_spelling


def _written(option: click.Option, name: str, value: str | None) -> str:
    """`--batch-size 4`: the option with what was typed behind the unknown one, or with its placeholder."""
    spelt = _spelt(option, name)
    if option.is_flag:
        return spelt
    if value is None:
        metavar = option.metavar or ("NAME" if not isinstance(option.type, click.Choice) else option.type.choices[0])
        return f"{spelt} {metavar}"
    return f"{spelt} {value if len(value) <= 60 and value.isprintable() else 'VALUE'}"


def _spelt(option: click.Option, name: str) -> str:
    return next(
        (spelling for spelling in (*option.opts, *option.secondary_opts) if spelling.lstrip("-") == name),
        option.opts[0],
    )


def _elsewhere(name: str, verb: str) -> tuple[str, click.Option] | None:
    """Another verb that has this very option."""
    for other in _VERBS_WITH_MORE:
        if other == verb:
            continue
        command = import_module(f"qlora_planner.cli.{other}").command
        options = _options(command, click.Context(command))
        if name in options:
            return other, options[name]
    return None


def _nearly_theirs(name: str, own: Iterable[str]) -> list[str]:
    """The option that a mistyped name of another tool means: `--max-seq-lenght`."""
    meanings = {theirs: ours for ours, names in _SAME.items() for theirs in names.split()}
    near = get_close_matches(name, meanings, 1, 0.8)
    return [meanings[name] for name in near if meanings[name] in set(own)]


def _nearest(name: str, own: Iterable[str]) -> list[str]:
    """Options of this verb that are spelt most like `name`, the likeliest first; those that begin so, if any do."""
    spellings = [spelling for spelling in own if len(spelling) > 1]
    begun = [spelling for spelling in spellings if spelling.startswith(name)] if len(name) > 2 else []
    near = begun or get_close_matches(name, spellings, _MOST_NAMES, 0.7)
    if not near:
        # `--sequences-length` and `--seq-len` share a beginning of each word, though not many letters.
        parts = {part[:3] for part in name.split("-") if len(part) > 2}
        near = [
            spelling
            for spelling in spellings
            if len(parts & {part[:3] for part in spelling.split("-")}) >= max(1, len(parts) - 1)
        ]
    return near[:_MOST_NAMES]
