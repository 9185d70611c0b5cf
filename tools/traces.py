"""`make tapes`: trace the default recipe of every catalogue model and compile it into profiles/tapes.

Called with a folder, `single`, `batched`, `moments`, `stamp` or `index`, then model ids (none: all), and `--resume` to
skip what is current and `--jobs=N` for N processes. `moments` traces nothing: it takes the moments anew from the tapes
that are there, as after a change of how tapes are played. `stamp` is for a change of the tracer that changes no tape:
it traces the models that are named (none: the six smallest) again and, where every file comes out equal to the byte,
puts the digest of the present tracer into all tapes that are current but for it; where one differs it writes nothing
and ends with 1. `index` writes the index alone, with which the others end too.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import qlora_planner.profiling as profiling
from qlora_planner.errors import PlannerError
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.sweep.polynomials import PeakPolynomials
from qlora_planner.memory.sweep.validity import LEAST_TOKENS, ValidityRange, trace_key, validity_ranges
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import RawConfig, read_config
from qlora_planner.sources.tapes import KINDS, TAPE_SCHEMA, StoredTape, encode, header_of, stored_tapes, tape_path
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape
from tools import compiling
from tools.compiling import NotPolynomialError, Point, compile_tapes
from tools.peaks import peak_polynomials_of
from tools.profiles import write_index
from tools.ranges import compile_run

# What is shipped: the default recipe at batch 1 and at larger batches, for cards of compute capability 9.0 and later.
SHIPPED = {"single": RunConfig(), "batched": RunConfig(batch_size=8)}
# The families most used come first, so that a run that is stopped has made what is asked for most.
FIRST = (
    "meta-llama/Llama-3", "Qwen/Qwen3-", "Qwen/Qwen2.5-", "mistralai/", "google/gemma-3", "google/gemma-2",
    "microsoft/", "openai/gpt-oss", "meta-llama/",
)  # fmt: skip


# How many models `stamp` traces again, at both batches, where none are named.
SAMPLED = 6
_GROWS = "a loop in the model's code grows"  # profiling/compile.py
# Lengths of one row that are traced by themselves where a model's own loops grow with it: those asked for most.
_LENGTHS = (1024, 2048, 4096)
# Where a region below 512 tokens is cut when its traces differ; how far fused kernels go depends on widths.
_CUTS = (256, 128, 384, 320, 448, 192)


def fingerprint() -> str:
    """A digest of the code that decides what a tape holds: tapes traced by other code are stale.

    It is taken over what the code does, not over comments, docstrings, imports and the names of files, so that moving a
    module makes no tape stale.
    """
    files = [*(Path(profiling.__path__[0]) / "tracing").rglob("*.py"), Path(compiling.__file__)]
    return digest_of(path.read_text("utf-8") for path in files)


def digest_of(sources: Iterable[str]) -> str:
    """What Python sources do, whatever file each is in, as 16 hexadecimal digits."""
    parts = sorted(ast.dump(_Bare().visit(ast.parse(source))) for source in sources)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _Bare(ast.NodeTransformer):
    """Leaves out imports and texts that stand alone."""

    def visit_Import(self, _node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, _node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def compiled(
    name: str, root: Path, which: str
) -> Iterator[tuple[ValidityRange, tuple[StoredTape, PeakPolynomials] | PlannerError]]:
    """By region, the tape of one model's default recipe and its moments, or why it has none.

    In small models bitsandbytes' fused kernels switch inside the shortest region, which is then cut up.
    """
    profile = ModelCatalogue([root / "models"]).load(name)
    raw = read_config(root / "configs" / (name.replace("/", "__") + ".json"))
    resolution = resolve(profile, SHIPPED[which])
    waiting = list(validity_ranges(profile, which == "batched"))
    while waiting:
        region = waiting.pop(0)
        try:
            tape = compile_run(raw, resolution, None, region)
        except NotPolynomialError as error:
            parts = _parts(region)
            waiting = [*parts, *waiting]
            if not parts:
                yield region, error
            if _GROWS in str(error) and not region.batched:
                for seq in (seq for seq in _LENGTHS if region.holds(1, seq)):
                    yield at_length(raw, resolution, region, seq)
        except PlannerError as error:
            yield region, error
        else:
            moments = peak_polynomials_of(tape, resolution.run, region, peaks_only=True)
            yield region, (StoredTape(tape=tape, region=region), moments)


def at_length(
    raw: RawConfig, resolution: Resolution, region: ValidityRange, seq: int
) -> tuple[ValidityRange, tuple[StoredTape, PeakPolynomials] | PlannerError]:
    """The tape of one row of `seq` tokens, of any rank, and its moments, or why there is none."""
    narrow = replace(region, low=seq - 1, high=seq)

    def trace_at(point: Point) -> Tape:
        sized = replace(resolution, run=resolution.run.with_(batch_size=1, seq_len=seq, rank=point[2]))
        return trace_run(raw, sized, None)

    points = [(1, seq, rank) for rank in (8, 24, 40)]
    try:
        variant = trace_key(resolution.run, resolution.stack, None)
        tape = compile_tapes(trace_at, points[:-1], points[-1], variant)
    except PlannerError as error:
        return narrow, error
    moments = peak_polynomials_of(tape, resolution.run, narrow, peaks_only=True)
    return narrow, (StoredTape(tape=tape, region=narrow), moments)


def _parts(region: ValidityRange) -> list[ValidityRange]:
    """Two pieces of a short region at batch 1; none of others, or where the pieces would be too narrow to trace."""
    cut = next((edge for edge in _CUTS if region.low < edge < region.high), None)
    if region.batched or region.high > LEAST_TOKENS or cut is None:
        return []
    return [replace(region, high=cut), replace(region, low=cut)]


def is_current(target: Path, name: str, root: Path, tracer: str) -> bool:
    """Whether `target` holds tapes of this config, traced by this tracer with the versions that the profile names."""
    if not target.is_file():
        return False
    profile, kept = ModelCatalogue([root / "models"]).load(name), header_of(target)
    found = tuple(kept.get(key) for key in ("schema", "config_sha256", "versions", "tracer"))
    return found == (TAPE_SCHEMA, profile.config_sha256, dict(profile.versions), tracer)


def main(root: Path, which: str, names: Sequence[str] = (), resume: bool = False, jobs: int = 1) -> int:
    """Make the tapes called `which` (single or batched) of `names`, or of all models under `root`; then the index.

    Those that fail are listed. With `resume`, models whose tapes are current are left as they are. `jobs` processes
    trace side by side.
    """
    catalogue = ModelCatalogue([root / "models"])
    failed: list[str] = []
    tracer = fingerprint()
    wanted = names or sorted(catalogue.names(), key=_turn)
    for name in wanted if which == "moments" else ():
        for kind in KINDS:
            _renew(tape_path(root / "tapes", kind, name), name, root, kind)
    waiting = [
        (target, name, root, which, tracer)
        for name in (wanted if which in KINDS else ())
        for target in [tape_path(root / "tapes", which, name)]
        if not (resume and is_current(target, name, root, tracer))
    ]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            failed += [line for lines in pool.map(_make, *zip(*waiting, strict=True)) for line in lines]
    else:
        failed += [line for given in waiting for line in _make(*given)]
    write_index(root, (catalogue.load(name) for name in catalogue.names()))
    print("\n".join(["not traced:", *failed]) if failed else "all traced")
    return 0


def _make(target: Path, name: str, root: Path, which: str, tracer: str) -> list[str]:
    """Write one model's file and say how long it took; the validity_ranges that failed, with the reason."""
    started = time.perf_counter()
    data, count, failed = traced_file(name, root, which, tracer)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, data)
    print(f"{name}: {count} tapes, {time.perf_counter() - started:.1f} s", flush=True)
    return failed


def traced_file(name: str, root: Path, which: str, tracer: str) -> tuple[bytes, int, list[str]]:
    """One model's file, traced now, with the digest that it is to bear; how many tapes it has, and what failed."""
    profile = ModelCatalogue([root / "models"]).load(name)
    kept, failed = [], []
    for region, outcome in compiled(name, root, which):
        if isinstance(outcome, PlannerError):
            failed.append(f"{name}, {region.low} to {region.high} tokens: {outcome}")
            print(f"failed: {failed[-1]}", flush=True)
        else:
            kept.append(outcome)
    header = {
        "id": name, "config_sha256": profile.config_sha256, "versions": dict(profile.versions), "tracer": tracer,
        "failed": failed,
    }  # fmt: skip
    return encode(header, kept), len(kept), failed


def _write(target: Path, data: bytes) -> None:
    partial = target.with_suffix(".part")
    partial.write_bytes(data)
    partial.replace(target)


def stamp(root: Path, names: Sequence[str] = ()) -> int:
    """Prove on a sample that the present tracer traces what is stored, then put its digest into every other tape.

    `names` are the sample, the SAMPLED smallest models without any. Returns 1 and writes nothing where one differs.
    """
    catalogue = ModelCatalogue([root / "models"])
    smallest = sorted(catalogue.names(), key=lambda name: catalogue.load(name).params)[:SAMPLED]
    for name in names or smallest:
        for which in KINDS:
            stored = tape_path(root / "tapes", which, name)
            if not stored.is_file():
                continue
            started = time.perf_counter()
            data, count, _ = traced_file(name, root, which, header_of(stored)["tracer"])
            if data != stored.read_bytes():
                print(f"{stored}: traced now it is another; nothing is stamped, `make tapes` traces anew")
                return 1
            print(f"{name}, {which}: {count} tapes as stored, {time.perf_counter() - started:.1f} s", flush=True)
    tracer, stamped = fingerprint(), 0
    for name in catalogue.names():
        for which in KINDS:
            path = tape_path(root / "tapes", which, name)
            if path.is_file() and is_current(path, name, root, header_of(path)["tracer"]):
                stamped += _stamp(path, tracer)
    print(f"{stamped} files bear {tracer} now")
    return 0


def _stamp(path: Path, tracer: str) -> bool:
    """Put `tracer` into the header of a file and leave the rest as it is; whether there was another."""
    header, *tapes = gzip.decompress(path.read_bytes()).split(b"\n")
    fields = json.loads(header)
    if fields["tracer"] == tracer:
        return False
    first = json.dumps({**fields, "tracer": tracer}, separators=(",", ":")).encode()
    _write(path, gzip.compress(b"\n".join([first, *tapes]), mtime=0))
    return True


def _renew(target: Path, name: str, root: Path, which: str) -> None:
    """Take the moments of one file's tapes again."""
    profile = ModelCatalogue([root / "models"]).load(name)
    run = resolve(profile, SHIPPED[which]).run
    tapes = stored_tapes(profile, which, [root / "tapes"])
    if tapes:
        kept = [(one, peak_polynomials_of(one.tape, run, one.region, peaks_only=True)) for one in tapes]
        target.write_bytes(encode(header_of(target), kept))


def _turn(name: str) -> tuple[int, str]:
    return next((at for at, start in enumerate(FIRST) if name.startswith(start)), len(FIRST)), name


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    side = next((int(word.partition("=")[2]) for word in sys.argv if word.startswith("--jobs=")), 1)
    if words[1] == "stamp":
        sys.exit(stamp(Path(words[0]), words[2:]))
    sys.exit(main(Path(words[0]), words[1], words[2:], resume="--resume" in sys.argv, jobs=side))
