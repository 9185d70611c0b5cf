"""Which tapes are made again, where they end, and what is said of those that cannot be compiled."""

import gzip
import json
from pathlib import Path

import pytest

from qlora_planner.cli.regenerate_tapes import is_current
from qlora_planner.memory.resolve import resolve
from qlora_planner.memory.variant import usual_region
from qlora_planner.profile.tape import Segment, Tape
from qlora_planner.profiling.compile import NotPolynomialError, Point, compile_tapes
from qlora_planner.run import RunConfig
from qlora_planner.sources.catalogue import ModelCatalogue

PROFILES = Path(__file__).parents[2] / "profiles"
LLAMA = "meta-llama/Llama-3.1-8B"


def test_a_region_ends_with_the_table_of_positions() -> None:
    catalogue = ModelCatalogue([PROFILES / "models"])
    mpt, llama = catalogue.load("mosaicml/mpt-7b"), catalogue.load(LLAMA)
    assert usual_region(mpt, resolve(mpt, RunConfig(seq_len=1024)).run).high == 2048
    assert usual_region(llama, resolve(llama, RunConfig(seq_len=1024)).run).high == 4096


def test_only_a_tape_of_this_config_and_these_versions_is_current(tmp_path: Path) -> None:
    shipped = PROFILES / "tapes" / "single" / "meta-llama__Llama-3.1-8B.json.gz"
    document = json.loads(gzip.decompress(shipped.read_bytes()))
    profile = ModelCatalogue([PROFILES / "models"]).load(LLAMA)
    document |= {"config_sha256": profile.config_sha256, "versions": dict(profile.versions)}
    target = tmp_path / "one.json.gz"
    assert not is_current(target, LLAMA, PROFILES)
    target.write_bytes(gzip.compress(json.dumps(document).encode()))
    assert is_current(target, LLAMA, PROFILES)
    for change in ({"config_sha256": "0"}, {"versions": {"torch": "1.0"}}, {"schema": "other"}):
        target.write_bytes(gzip.compress(json.dumps(document | change).encode()))
        assert not is_current(target, LLAMA, PROFILES)


def test_a_loop_that_grows_with_the_sequence_is_named() -> None:
    def trace(point: Point) -> Tape:
        events = tuple((number + 1, 512) for number in range(point[1] // 64))
        segment = Segment(stage="forward", name="head", layer=-1, step=1, micro_step=1, start=0, stop=len(events))
        return Tape(events=events, segments=(segment,), places=(), kept=(), workspaces=frozenset())

    with pytest.raises(NotPolynomialError, match=r"grows with the sequence \(10 events at 640 tokens, 20 at 1280\)"):
        compile_tapes(trace, [(1, 640, 8), (1, 1280, 16)], (1, 960, 24), "any")
