"""One reader under mutated inputs for some seconds: what it raised but its own faults, how long it took, what memory.

python -m tests.fuzz.run --seconds 600 [--reader NAME] [--seed N] prints a line for each reader, and each find once;
the input of a find is written beside it. Exits with 1 where there is any.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from qlora_planner.errors import PlannerError
from tests.fuzz.mutate import mutated
from tests.fuzz.readers import Reader, readers

LONGEST_S, MOST_BYTES, LONGEST_FAULT = 5.0, 300 << 20, 5_000


class Find(NamedTuple):
    """What must not happen, and the input that made it."""

    what: str
    content: bytes


def attempts(reader: Reader, seed: int) -> Iterator[bytes]:
    """The sound inputs, then mutated ones for ever, the same for the same seed."""
    drawn = random.Random(seed)
    yield from reader.seeds
    while True:
        yield mutated(drawn.choice(reader.seeds), drawn)


def fault(reader: Reader, folder: Path, content: bytes) -> str | None:
    """What reading `content` does that it must not; None for an answer or a fault of one printable line."""
    path = folder / reader.name
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    try:
        reader.read(path)
    except PlannerError as error:
        if not str(error).isprintable():
            return f"a fault that a terminal would obey: {error!r}"[:200]
        if len(str(error)) > LONGEST_FAULT:
            return f"a fault of {len(str(error))} characters"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"[:200]
    took_s = time.monotonic() - begun
    if took_s > LONGEST_S:
        return f"{took_s:.1f} s"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    return f"{grown >> 20} MiB more" if grown > MOST_BYTES else None


def fuzz(reader: Reader, *, seed: int, seconds: float | None = None, most: int | None = None) -> tuple[int, list[Find]]:
    """How many inputs were tried within `seconds` or up to `most`, and what was found, one of each place."""
    finds: dict[str, Find] = {}
    tried = 0
    with TemporaryDirectory() as folder:
        fault(reader, Path(folder), reader.seeds[0])  # what it imports is no input's fault
        until = time.monotonic() + (seconds if seconds is not None else 1e9)
        for content in attempts(reader, seed):
            if time.monotonic() > until or tried == most:
                break
            tried += 1
            what = fault(reader, Path(folder), content)
            if what is not None:
                finds.setdefault(what.partition(": ")[0], Find(what, content))
    return tried, list(finds.values())


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--reader", action="append")
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFF)
    parser.add_argument("--out", type=Path, default=Path("fuzz-finds"))
    given = parser.parse_args()
    found = 0
    for name, reader in readers().items():
        if given.reader and name not in given.reader:
            continue
        tried, finds = fuzz(reader, seed=given.seed, seconds=given.seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(
            f"{name}: {tried:,} inputs in {given.seconds:.0f} s, seed {given.seed}, process at {peak} MiB", flush=True
        )
        for number, find in enumerate(finds):
            given.out.mkdir(exist_ok=True)
            (given.out / f"{number}-{reader.name}").write_bytes(find.content)
            print(f"  {find.what!r}", flush=True)
        found += len(finds)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
