"""`make tables`: write what the README and pages of docs show of the program between their markers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.report.parts.table import advice_lines, markdown_advice, markdown_cards, markdown_memory
from qlora_planner.session import Session
from qlora_planner.session.surveying.tables import TablesAnswer
from qlora_planner.sources.evidence import read_calibration
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import GIB
from tools.accuracy import holdout_line, holdout_table
from tools.console import ROOT, Shown, console_block

TASK_MODEL = "meta-llama/Llama-3.1-8B"


def _rollouts(trainer: str, batch: int) -> RunConfig:
    return RunConfig(trainer=trainer, batch_size=batch, prompt_len=512, completion_len=512)


@cache
def _tables() -> TablesAnswer:
    return Session().table()


def _memory() -> str:
    return f"{markdown_memory(_tables().tables)}\n\n{markdown_advice(_tables().tables)}"


def timed_cards(profiles: Path) -> str:
    """The cards whose speed somebody measured, by the calibrations that ship; the others are predicted."""
    learnt = read_calibration([profiles / "calibrations"])
    counts = {} if learnt is None else {card: traits.count for card, traits in learnt.speed.items()}
    cards = ", ".join(f"{card} ({count} runs)" for card, count in sorted(counts.items()))
    return (
        f"Timed by somebody so far: {cards or 'none'}; elsewhere speed is predicted, and says so."
        " [Add yours](docs/calibration.md#share-a-row)."
    )


def _myths() -> str:
    return "\n".join(f"- {text}" for text in list(advice_lines(_tables().tables))[:3])


# What the table of tasks is of: a name, what a row of it is, and the run.
TASKS: tuple[tuple[str, str, RunConfig], ...] = (
    ("fine-tuning on texts", "4 x 1,024 tokens", RunConfig(batch_size=4, seq_len=1024)),
    ("`--trainer trl-dpo`", "4 pairs of 1,024 tokens", RunConfig(trainer="trl-dpo", batch_size=4, seq_len=1024)),
    ("`--trainer trl-kto`", "4 completions, rows of 1,024", RunConfig(trainer="trl-kto", batch_size=4, seq_len=1024)),
    ("`--trainer trl-orpo`", "4 pairs of 1,024 tokens", RunConfig(trainer="trl-orpo", batch_size=4, seq_len=1024)),
    ("`--trainer trl-reward`", "4 pairs of 1,024 tokens", RunConfig(trainer="trl-reward", batch_size=4, seq_len=1024)),
    ("`--trainer trl-grpo`", "8 completions of 512 after prompts of 512", _rollouts("trl-grpo", 8)),
    ("`--trainer trl-rloo`", "8 completions of 512 after prompts of 512", _rollouts("trl-rloo", 8)),
    ("`--task classification`", "16 x 512 tokens", RunConfig(task="classification", batch_size=16, seq_len=512)),
)


def task_table() -> str:
    """A row for each of TASKS on an 8B model and a card of 24 GB, from traces that ship."""
    bench = Session(stored_only=True).open(TASK_MODEL, "24GB")
    lines = [
        "| task | batch | peak, GiB | needs at least, GiB | at its highest in |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for name, size, run in TASKS:
        answer = bench.estimate(run)
        if answer.method != TRACED:
            raise InputError(f"docs/memory.md: no trace of {name} ships for {TASK_MODEL}")
        figures = (answer.peak.device_bytes / GIB, answer.floor_bytes / GIB)
        lines.append(f"| {name} | {size} | {figures[0]:.1f} | {figures[1]:.1f} | {answer.peak.phase} |")
    return "\n".join(lines)


# Page -> marker -> what makes that which stands between it and its end.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "survey": lambda: console_block("qlora-plan --gpu 24GB", Shown(1, 5)),
        "plan": lambda: console_block("qlora-plan llama-3.1-8b --gpu rtx-4090", Shown(0), Shown(1), Shown(2)),
        "check": lambda: console_block("qlora-plan check examples/trl-sft.yaml --gpu 10GB", Shown(0), Shown(4, 5)),
        "accuracy": lambda: f"{holdout_line()}\n{timed_cards(ROOT / 'profiles')}",
        "myths": _myths,
    },
    "docs/plans.md": {"plan": lambda: console_block("qlora-plan llama-3.1-8b --gpu rtx-4090")},
    "docs/memory.md": {"memory": _memory, "cards": lambda: markdown_cards(_tables().tables), "tasks": task_table},
    "docs/situations.md": {
        "laptop": lambda: console_block("qlora-plan qwen2.5-3b --gpu rtx-4060-laptop"),
        "t4": lambda: console_block("qlora-plan llama-3.2-3b --gpu t4"),
        "too-large": lambda: console_block("qlora-plan llama-3.1-405b --gpu 24GB"),
        "one-card-70b": lambda: console_block("qlora-plan llama-3.1-70b --gpu l40s"),
        "throughput": lambda: console_block("qlora-plan llama-3.1-8b --gpu h200 --compare h100-sxm,a100-80gb"),
    },
    "docs/accuracy.md": {"holdout": holdout_table},
}


def sections(page: str) -> dict[str, str]:
    """Marker -> what stands between it and its end on a page of PAGES, by the code and the profiles of now."""
    return {name: make() for name, make in PAGES[page].items()}


def regenerated(text: str, bodies: dict[str, str], page: str = "README.md") -> str:
    """`text` with every section replaced. Raises InputError naming a marker that is not there once."""
    for name, body in bodies.items():
        start, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
        pattern = re.compile(f"{re.escape(start)}\n.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise InputError(f"{page}: {start} and {end} must be there once, on lines of their own")
        text = pattern.sub(lambda _, whole=f"{start}\n{body}\n{end}": whole, text)  # type: ignore[misc]
    return text


def main(root: Path) -> int:
    """Rewrite every page of PAGES; says whether anything changed."""
    for page in PAGES:
        path = root / page
        old = path.read_text(encoding="utf-8")
        new = regenerated(old, sections(page), page)
        path.write_text(new, encoding="utf-8")
        print(f"{page}: {'rewritten' if new != old else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
