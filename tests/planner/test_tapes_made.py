"""Which tapes are made again, where they end, and what is said of those that cannot be compiled."""

from pathlib import Path

import pytest

from qlora_planner.errors import InputError
from qlora_planner.memory.sweep.validity import validity_ranges
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import encode, header_of, stored_sweep, stored_tape, stored_tapes, tape_path
from qlora_planner.spec.trace import Segment, Tape
from tools import traces
from tools.compiling import NotPolynomialError, Point, compile_tapes, points_in
from tools.traces import digest_of, is_current

PROFILES = Path(__file__).parents[2] / "profiles"
LLAMA = "meta-llama/Llama-3.1-8B"
SMALLER = "EleutherAI/pythia-14m"


def edges(model: str, batched: bool = False) -> list[tuple[int, int]]:
    return [(r.low, r.high) for r in validity_ranges(ModelCatalogue([PROFILES / "models"]).load(model), batched)]


def test_regions_part_where_kernels_switch_and_end_with_the_table_of_positions() -> None:
    assert edges(LLAMA) == [(0, 512), (512, 4096), (4096, 1 << 24)]
    assert edges("openai/gpt-oss-20b") == [(0, 128), (128, 512), (512, 4096), (4096, 1 << 24)]
    assert edges("mosaicml/mpt-7b") == [(0, 512), (512, 2048)]


def test_at_batch_one_every_length_has_one_region() -> None:
    catalogue = ModelCatalogue([PROFILES / "models"])
    for name in catalogue.names():
        profile = catalogue.load(name)
        end = int(profile.dims.get("position_rows") or profile.dims.get("max_position_embeddings") or 4096)
        for seq_len in {1, 64, 511, 512, 513, 1024, 2048, 4096, 4097, end} - set(range(end + 1, 4098)):
            assert sum(region.holds(1, seq_len) for region in validity_ranges(profile, False)) == 1, (name, seq_len)


@pytest.mark.parametrize("batched", [False, True])
def test_points_lie_in_their_region_and_differ(batched: bool) -> None:
    catalogue = ModelCatalogue([PROFILES / "models"])
    for name in (LLAMA, "openai/gpt-oss-20b", "google/gemma-3-1b", "mistralai/Mistral-7B-v0.1", "microsoft/phi-2"):
        for region in validity_ranges(catalogue.load(name), batched):
            points = points_in(region)
            assert all(region.holds(batch, seq_len) for batch, seq_len, _ in points), (name, region, points)
            lengths = min(4, region.high - region.low)  # a window and a tile may leave one length between them
            assert len({seq_len for _, seq_len, _ in points}) >= lengths, (name, region, points)
            assert len({rank for _, _, rank in points}) >= 4, (name, region, points)


def test_only_a_tape_of_this_config_tracer_and_versions_is_current(tmp_path: Path) -> None:
    profile = ModelCatalogue([PROFILES / "models"]).load(LLAMA)
    header = {"config_sha256": profile.config_sha256, "versions": dict(profile.versions), "tracer": "one"}
    target = tmp_path / "single" / "a.jsonl.gz"
    assert not is_current(target, LLAMA, PROFILES, "one")
    target.parent.mkdir()
    target.write_bytes(encode(header, []))
    assert is_current(target, LLAMA, PROFILES, "one")
    assert not is_current(target, LLAMA, PROFILES, "two")
    for change in ({"config_sha256": "0"}, {"versions": {"torch": "1.0"}}):
        target.write_bytes(encode(header | change, []))
        assert not is_current(target, LLAMA, PROFILES, "one")


@pytest.mark.parametrize("differs", [False, True])
def test_tapes_bear_a_new_digest_only_where_a_sample_is_traced_as_stored(
    differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models, of which one is the sample: both are stamped, or neither."""
    for name in (LLAMA, SMALLER):
        for path in (PROFILES / "models").glob(name.replace("/", "__") + ".*"):
            (tmp_path / "models").mkdir(exist_ok=True)
            (tmp_path / "models" / path.name).write_bytes(path.read_bytes())
        profile = ModelCatalogue([tmp_path / "models"]).load(name)
        header = {"config_sha256": profile.config_sha256, "versions": dict(profile.versions), "tracer": "old"}
        path = tape_path(tmp_path / "tapes", "single", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(header, []))

    def traced_again(name: str, root: Path, which: str, tracer: str) -> tuple[bytes, int, list[str]]:
        stored = tape_path(root / "tapes", which, name).read_bytes()
        return (b"another" if differs else stored), 0, []

    monkeypatch.setattr(traces, "traced_file", traced_again)
    assert traces.stamp(tmp_path, [SMALLER]) == int(differs)
    headers = [header_of(tape_path(tmp_path / "tapes", "single", name)) for name in (LLAMA, SMALLER)]
    assert [header["tracer"] for header in headers] == ["old" if differs else traces.fingerprint()] * 2
    assert all(header["versions"] for header in headers)


def test_a_tape_file_gives_back_what_was_put_in(tmp_path: Path) -> None:
    profile = ModelCatalogue([PROFILES / "models"]).load(LLAMA)
    kept = stored_tapes(profile, "single", [PROFILES / "tapes"])
    sweep = stored_sweep(profile, [PROFILES / "tapes"])
    assert sweep is not None
    path = tape_path(tmp_path, "single", LLAMA)
    path.parent.mkdir()
    single = [part for part in sweep.parts if not part.region.batched]
    pairs = [(tape, part.moments) for tape, part in zip(kept, single, strict=True)]
    path.write_bytes(encode({"config_sha256": profile.config_sha256}, pairs))
    assert stored_tapes(profile, "single", [tmp_path]) == kept
    again = stored_sweep(profile, [tmp_path])
    assert again is not None
    assert list(again.parts) == single
    for seq_len in (64, 2048, 9000):
        found = stored_tape(profile, [tmp_path], 1, seq_len)
        assert found is not None
        assert found.region.low < seq_len <= found.region.high
    path.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="make tapes"):
        stored_tape(profile, [tmp_path])


def test_a_loop_that_grows_with_the_sequence_is_named() -> None:
    def trace(point: Point) -> Tape:
        events = tuple((number + 1, 512) for number in range(point[1] // 64))
        segment = Segment(stage="forward", name="head", layer=-1, step=1, micro_step=1, start=0, stop=len(events))
        return Tape(events=events, segments=(segment,), places=(), kept=(), workspaces=frozenset())

    with pytest.raises(NotPolynomialError, match=r"grows with the sequence \(10 events at 640 tokens, 20 at 1280\)"):
        compile_tapes(trace, [(1, 640, 8), (1, 1280, 16)], (1, 960, 24), "any")


def test_the_tracers_digest_is_of_what_its_code_does() -> None:
    """Moving a module, or saying more about it, makes no tape stale; another number does."""
    source = '"""Doc."""\nfrom a import b\n\ndef size(n: int) -> int:\n    """Bytes."""\n    return b(n) + 512\n'
    moved = '"""Other."""\nfrom c.d import b\n\n\ndef size(n: int) -> int:\n    # said\n    return b(n) + 512\n'
    changed = source.replace("512", "1024")
    assert digest_of([source, "X = 1\n"]) == digest_of(["X = 1  # why\n", moved])
    assert digest_of([source]) != digest_of([changed])
    assert digest_of([source]) != digest_of([source, "X = 1\n"])
