"""Walk over transformers' causal-LM mapping: each class at a toy size, traced, against real CPU allocator events.

    walk.py                      every class, shallow and deep, with and without gradient checkpointing
    walk.py --types llama mamba  these classes alone
    walk.py --shallow --jobs 2   one layer of each kind, as traced; two processes

A class passes when every variant that the real class runs has the real run's bytes exactly. A class that the libraries
themselves refuse in this recipe counts as refused when tracing breaks in the same way; it is listed with the reason.
Exits with 1 where less than 90 % of the classes that run pass.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WANTED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One class: its outcomes by variant, and what was said where one is not `same`."""

    model_type: str
    outcomes: dict[str, str]
    words: tuple[str, ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """pass, refused or the first thing that went wrong."""
        found = set(self.outcomes.values())
        wrong = next((status for status in ("failed", "differs") if status in found), None)
        return wrong or ("pass" if "same" in found else "refused")


def walked(model_type: str, deep: bool) -> Line:
    """Every variant of one class."""
    from tests.tracing import real_cpu, walk

    real_cpu.quiet()
    gc.freeze()  # tracing collects garbage first: let it not look through the libraries each time
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    started = time.monotonic()
    outcomes: dict[str, str] = {}
    words: list[str] = []
    for checkpointing in (False, True):
        name = "checkpointing" if checkpointing else "plain"
        targets, outcome = walk.shallow(model_type, checkpointing)
        found = {name: outcome}
        if targets is not None and deep:
            found[f"{name}, deep"] = walk.deep(model_type, targets, checkpointing)
        if targets not in (None, "all-linear"):
            words.append(f"{name}: refused with all-linear, walked with {','.join(targets or ())}")
        for variant, each in found.items():
            outcomes[variant] = each.status
            if each.status != "same" or each.words.startswith("not compiled"):
                words.append(f"{variant}: {each.words}")
    taken = time.monotonic() - started
    return Line(model_type=model_type, outcomes=outcomes, words=tuple(dict.fromkeys(words)), seconds=taken)


def lines(types: Sequence[str], deep: bool, jobs: int) -> Iterator[Line]:
    """In the order of `types`; a fresh process every few classes, because each leaves modules behind."""
    with get_context("spawn").Pool(jobs, maxtasksperchild=40) as pool:
        yield from pool.imap(partial(walked, deep=deep), types)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="model types; all by default")
    parser.add_argument("--shallow", action="store_true", help="only one layer of each kind, nothing compiled")
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args(arguments)
    from tests.tracing.toys import MODEL_TYPES

    verdicts: dict[str, list[Line]] = {}
    for line in lines(chosen.types or MODEL_TYPES, not chosen.shallow, chosen.jobs):
        verdicts.setdefault(line.verdict, []).append(line)
        marks = " ".join(f"{status:8s}" for status in line.outcomes.values())
        print(f"{line.model_type:26s} {line.verdict:8s} {line.seconds:6.1f} s  {marks}", flush=True)
        for words in line.words:
            print(f"    {words}", flush=True)
    refused = verdicts.pop("refused", [])
    passed = len(verdicts.get("pass", []))
    running = sum(map(len, verdicts.values()))
    print(f"\n{passed} of {running} classes that run pass ({passed / max(running, 1):.1%}); {len(refused)} refused:")
    for line in refused:
        print(f"    {line.model_type}: {line.words[0]}")
    return 0 if running and passed >= WANTED * running else 1


if __name__ == "__main__":
    sys.exit(main())
