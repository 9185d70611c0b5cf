"""merge: the adapters of a run merged into its base, one file of weights at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import output_from
from qlora_planner.session.after.merge import DTYPES, GGUF_SCHEMA, adapter_to_gguf, merge_run
from qlora_planner.text import plain
from qlora_planner.units import format_size

if TYPE_CHECKING:
    from qlora_planner.session.after.merge import GgufFile, MergedRun


@click.command("merge", cls=Verb)
@click.argument("run", metavar="RUN", shell_complete=completing.files)
@click.option("--output", "target", cls=SectionOption, metavar="DIR", help="Where to (RUN-merged).")
@click.option("--base", cls=SectionOption, metavar="DIR|ID", help="The full-precision base (what RUN names).")
@click.option("--dtype", cls=SectionOption, type=click.Choice(DTYPES), default="bfloat16", help="Stored as (bfloat16).")
@click.option("--force", cls=SectionOption, is_flag=True, help="Write over a merged model.")
@click.option(
    "--gguf", cls=SectionOption, type=click.Choice(["model", "adapter"]), default=None,
    help="Also a GGUF file of the merged model, or of the adapter alone, by llama.cpp's converter.",
)  # fmt: skip
@output_options()
def command(
    run: str, target: str | None, base: str | None, dtype: str, force: bool, gguf: str | None, **given: Any
) -> int:
    """Merge the adapters of RUN, a folder of `train` or of PEFT, into its base and write a model folder.

    On the host, by PEFT's own arithmetic, one file of weights at a time. Exits with 1 when memory or disk is too small.
    --gguf takes the converter of LLAMA_CPP_DIR or PATH: `model` converts what was merged, `adapter` merges nothing.
    """
    output = output_from(given)
    if gguf == "adapter":
        made = adapter_to_gguf(output.session, run, output=target, base=base, dtype=dtype, force=force)
        if output.json:
            answer_json({"schema": GGUF_SCHEMA, **made.to_dict()})
        else:
            answer(_gguf_words(made))
        return 0
    merged = merge_run(output.session, run, output=target, base=base, dtype=dtype, force=force, gguf=gguf is not None)
    if output.json:
        answer_json(merged.to_dict())
    else:
        answer(_words(merged) + ("" if merged.gguf is None else f"\n{_gguf_words(merged.gguf)}"))
    return 0


def _gguf_words(made: GgufFile) -> str:
    return f"{plain(made.path)}\n  {format_size(made.size_bytes)}: the {made.kind} as GGUF in {made.outtype}"


def _words(merged: MergedRun) -> str:
    plan, base = merged.plan, merged.base
    untied = f"; no longer tied: {', '.join(plan.untied)}" if plan.untied else ""
    replaced = f", {plan.count('replace')} replaced" if plan.count("replace") else ""
    return (
        f"{plain(merged.merged.folder)}\n"
        f"  {format_size(merged.merged.total_bytes)} in {merged.dtype}: {plan.count('merge')} weights merged{replaced},"
        f" {plan.count('copy')} as in {plain(base.name)}{untied}\n"
        f"  host memory: predicted {format_size(merged.predicted_peak_bytes)}, measured"
        f" {format_size(merged.measured_peak_bytes)} at the peak"
    )
