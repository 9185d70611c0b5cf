"""Which families hold for the libraries installed here too: each tape beside a trace of its class with these libraries.

ENVIRONMENT/bin/python -m tools.families.stacks PIECES OUT [--jobs N] [--seconds S] [--names A,B] [--recipes A,B]
[--regions A,B] [--compare]

Run by the python of another environment. Of each piece of PIECES (what `tools.families.make` wrote) a toy is traced at
the piece's own sizes: where births, deaths, order and every size are the piece's to the byte, a line of
OUT/holds.jsonl says so. Where not, the line says what differs, and whether the peak does; without --compare the piece
for these libraries goes to OUT/pieces.jsonl: from two toys where each of its sizes is one of the piece's own, else made
anew. Lines that are there are not made again. `tools.families.pack` reads both files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from difflib import SequenceMatcher
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.memory.sweep.tasks import is_task
from qlora_planner.session import load_gpu
from qlora_planner.spec.family import FamilyTape, with_dims
from qlora_planner.spec.tiles import TileLoop
from qlora_planner.spec.trace import CompiledTape, Tape
from tools.compiling import NotPolynomialError, Point, aligned_codes
from tools.families.make import FIRST, made, quieten, region_for, toys_for
from tools.families.recipes import RECIPES
from tools.families.regions import Region
from tools.families.tracing import CONFIGS, TracedToy, toy_dims, traced_toy

HOLDS = "holds.jsonl"
KEY = ("name", "recipe", "region")
# Sizes of a piece, counted from 1, by what each is on two toys, whether a library keeps it and a last tile holds it.
Known = dict[tuple[tuple[int, ...], bool, bool], int]


def digest(piece: Mapping[str, Any]) -> str:
    """A word for what a piece says: its tape, symbols and kinds of layers."""
    text = json.dumps([piece["tape"], piece["symbols"], piece["kinds"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def proved(piece: dict[str, Any], raw: dict[str, Any], compare: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Whether a piece holds here, and where it does not, the piece that does."""
    from qlora_planner.sources.profile_cache import installed_versions

    started = time.process_time()
    quieten()
    key = {name: piece[name] for name in KEY}
    line: dict[str, Any] = {**key, "digest": digest(piece), "versions": installed_versions()}
    here: Here | None = None
    try:
        here = Here(piece, raw)
        line |= here.difference()
    except Exception as error:  # what these libraries refuse is a difference as well
        line |= {"same": False, "where": f"{type(error).__name__}: {error}"[:300]}
    own: dict[str, Any] | None = None
    if not line["same"] and not compare:
        own = here.derived() if here is not None and "events" in line else None
        own = own or made((key["name"], key["recipe"], key["region"]), raw)
        own |= {"versions": line["versions"]}
    return line | {"seconds": round(time.process_time() - started, 1)}, own


class Here:
    """One piece, and its class's toys traced with the libraries that are installed here."""

    def __init__(self, piece: Mapping[str, Any], raw: dict[str, Any]) -> None:
        region = region_for(piece["recipe"], piece["region"])
        assert isinstance(region, Region)
        self.piece, self.region = piece, region
        self.toys = toys_for(json.dumps(raw), self.region.windows, self.region.tiled)
        # Others for each piece, so that over the pieces of a class all toys have their turn.
        self._first = zlib.crc32(" ".join(str(piece[name]) for name in KEY).encode()) % CONFIGS
        self._traced: dict[int, TracedToy] = {}
        self._run, before_80 = RECIPES[piece["recipe"]]
        self._gpu = load_gpu("t4") if before_80 else None

    def difference(self) -> dict[str, Any]:
        """Whether a toy's tape is the piece's, else where they part and whether the peaks are alike."""
        piece, toys = self.piece, self.toys
        if list(toys.kinds) != piece["kinds"]:
            return {"same": False, "where": f"kinds of layers: {piece['kinds']}, here {list(toys.kinds)}"}
        if list(toys.symbols) != piece["symbols"][: len(toys.symbols)]:
            return {"same": False, "where": f"dimensions: {piece['symbols']}, here {list(toys.symbols)}"}
        toy = self._toy(self._first)
        expected = self._at(self._first).at(*toy.point)
        where = first_difference(expected, toy.tape)
        if where is None:
            return {"same": True}
        return {
            "same": False, "where": where, "peak": _peak(toy.tape) - _peak(expected),
            "events": _edits(expected, toy.tape),
        }  # fmt: skip

    def derived(self) -> dict[str, Any] | None:
        """The piece for these libraries, where two toys agree on the events and each size is one of the piece's own."""
        own = self.piece["tape"]
        if "scans" in own:
            return None
        pairs = ((self._first, (self._first + step) % CONFIGS) for step in range(1, CONFIGS))
        pair, known = next(((pair, known) for pair in pairs if (known := self._told_apart(pair))), (None, None))
        if pair is None or known is None:
            return None
        toys = [self._toy(at) for at in pair]
        if toys[0].loops != toys[1].loops:
            return None
        try:
            codes = aligned_codes([toy.tape for toy in toys], [toy.point for toy in toys])
        except NotPolynomialError:
            return None
        last = _in_last(toys[0].loops)
        events = []
        for at, (code, *births) in enumerate(zip(codes, *(toy.tape.events for toy in toys), strict=True)):
            if code == 0:
                size = tuple(size for _, size in births)
                code = known.get((size, births[0][0] in toys[0].tape.workspaces, at in last), 0)
            if code == 0:
                return None
            events.append(code)
        segments = [[s.stage, s.name, s.layer, s.step, s.micro_step, s.start, s.stop] for s in toys[0].tape.segments]
        tape = {**own, "events": events, "segments": segments}
        if toys[0].loops:
            tape["loops"] = [loop.words for loop in toys[0].loops]
        return {**self.piece, "tape": tape}

    def _told_apart(self, pair: tuple[int, int]) -> Known | None:
        """The piece's sizes by what they are on two toys; None where those do not tell them apart."""
        own, points = self.piece["tape"], self.region.points(CONFIGS)
        values = list(zip(*(_values(self._at(at), points[at]) for at in pair), strict=True))
        known: Known = {}
        workspaces, last = set(own["workspace_sizes"]), _in_last(TileLoop.of(*loop) for loop in own.get("loops", ()))
        for at, code in enumerate(own["events"]):
            if code > 0:
                key = values[code - 1], code - 1 in workspaces, at in last
                if known.setdefault(key, code) != code:
                    return None
        return known

    def _toy(self, at: int) -> TracedToy:
        if at not in self._traced:
            toy = traced_toy(self.toys, self._run, self._gpu, self.region, at)
            if toy.variant != self.piece["tape"]["variant"]:
                raise InputError(f"variant: {self.piece['tape']['variant']}, here {toy.variant}")
            self._traced[at] = toy
        return self._traced[at]

    def _at(self, at: int) -> CompiledTape:
        """The piece's tape with a toy's dimensions for letters."""
        piece, dims = self.piece, toy_dims(self.toys, self._run, self._gpu, self.region, at)
        family = FamilyTape.from_dict(piece["tape"], piece)
        sizes = [with_dims(terms, dims) for terms in family.sizes]
        if None in sizes:
            raise InputError(f"dimensions: {piece['symbols']}, here {list(dims)}")
        return replace(family.tape, sizes=tuple(terms or () for terms in sizes))


def _in_last(loops: Iterable[TileLoop]) -> set[int]:
    """Events of last tiles."""
    return {at for loop in loops for at in range(loop.last, loop.stop)}


def _values(tape: CompiledTape, point: Point) -> list[int]:
    """What each of a tape's sizes is at a point."""
    births = replace(tape, events=tuple(range(1, len(tape.sizes) + 1)))
    return [size for _, size in births.at(*point).events]


def _peak(tape: Tape) -> int:
    """The most bytes that live at once, of one traced layer of each place, without rounding."""
    live: dict[int, int] = {}
    now = most = 0
    for storage, size in tape.events:
        now += size - live.get(storage, 0)
        live[storage] = size
        most = max(most, now)
    return most


def _edits(expected: Tape, found: Tape) -> int:
    """How many births and deaths would have to be taken out or put in."""
    one, other = _marks(expected), _marks(found)
    pairs = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return sum(stop - start + end - begin for what, start, stop, begin, end in pairs if what != "equal")


def _marks(tape: Tape) -> list[int]:
    """Births and deaths by their bytes."""
    born: dict[int, int] = {}
    return [born.setdefault(storage, size) if size else -born[storage] for storage, size in tape.events]


def first_difference(expected: Tape, found: Tape) -> str | None:
    """Where two tapes of one run part, with the stage and layer; None where they are the same to the byte."""
    number: dict[int, int] = {}
    events = []
    for storage, size in found.events:
        events.append((number.setdefault(storage, len(number) + 1), size))
    workspaces = {number[storage] for storage in found.workspaces}
    for at, (one, other) in enumerate(zip(expected.events, events, strict=False)):
        if one != other:
            what = "size" if one[1] and other[1] else "order"
            return f"{what} at event {at} of {len(expected.events)} ({_segment(expected, at)}): {one}, here {other}"
    if len(expected.events) != len(events):
        return f"length: {len(expected.events)} events, here {len(events)}"
    if expected.segments != found.segments:
        return "segments"
    return None if expected.workspaces == workspaces else "workspaces"


def _segment(tape: Tape, at: int) -> str:
    within = next((s for s in tape.segments if s.start <= at < s.stop), None)
    return "between" if within is None else f"{within.stage} {within.name} {within.layer}"


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pieces", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("profiles"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--compare", action="store_true", help="say what differs, make nothing")
    for option in ("names", "recipes", "regions", "classes"):
        parser.add_argument(f"--{option}", type=lambda text: text.split(","))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    holds = given.out / HOLDS
    lines = map(json.loads, holds.read_text("utf-8").splitlines()) if holds.is_file() else ()
    done = {(line["digest"], *(line[name] for name in KEY)) for line in lines}
    waiting = [
        (piece, raw) for piece, raw in _chosen(given) if (digest(piece), *(piece[name] for name in KEY)) not in done
    ]
    print(len(waiting), "pieces", flush=True)
    same, until = 0, time.monotonic() + given.seconds
    with (
        ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool,
        holds.open("a", encoding="utf-8") as to,
        (given.out / "pieces.jsonl").open("a", encoding="utf-8") as anew,
    ):
        futures = [pool.submit(proved, piece, raw, given.compare) for piece, raw in waiting]
        try:
            for future in as_completed(futures, timeout=max(1.0, until - time.monotonic())):
                line, own = future.result()
                same += line["same"]
                if own is not None:  # before the line that says so, so that a piece is never left out
                    anew.write(json.dumps(own, separators=(",", ":")) + "\n")
                    anew.flush()
                to.write(json.dumps(line, separators=(",", ":")) + "\n")
                to.flush()
        except TimeoutError:
            pass
        for process in list(pool._processes.values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
    print(f"{same} the same to the byte", flush=True)
    os._exit(0)


def _chosen(given: argparse.Namespace) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pieces to look at with their configs, popular classes and the usual recipes first."""
    order = list(RECIPES)
    chosen = []
    configs: dict[str, dict[str, Any]] = {}
    for line in given.pieces.read_text("utf-8").splitlines():
        piece = json.loads(line)
        wanted = all(
            getattr(given, option) is None or piece[option[:-1]] in getattr(given, option)
            for option in ("names", "recipes", "regions")
        )
        # Of a task only the catalogue's versions are known.
        if "tape" not in piece or not wanted or is_task(RECIPES[piece["recipe"]][0]):
            continue
        name = piece["name"]
        if name not in configs:
            configs[name] = json.loads((given.root / "configs" / f"{name}.json").read_text("utf-8"))
        model_type = configs[name]["model_type"]
        if given.classes is not None and model_type not in given.classes:
            continue
        turn = FIRST.index(model_type) if model_type in FIRST else len(FIRST)
        chosen.append((order.index(piece["recipe"]) + (0 if turn < len(FIRST) else 6), turn, piece, configs[name]))
    return [(piece, raw) for _, _, piece, raw in sorted(chosen, key=lambda row: row[:2])]


if __name__ == "__main__":
    main()
