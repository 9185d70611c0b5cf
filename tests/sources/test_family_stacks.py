"""A family answers for the versions of libraries that it was made with or proved at, and for no others."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.session import load_model, packages, tape_for
from qlora_planner.sources import profile_cache
from qlora_planner.sources.families import INDEX, family_tape
from qlora_planner.sources.tapes import lines_of, packed, tape_in
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).parents[2] / "profiles"
OLDER = {"transformers": "5.17.0", "torch": "2.13.0"}
NEWER = {"transformers": "5.24.0", "torch": "2.13.0"}
KEPT = RunConfig(gradient_checkpointing=False)


@pytest.fixture(scope="module")
def llama() -> ModelProfile:
    return load_model("llama-3.1-8b", build="never")


def variant_of(profile: ModelProfile, run: RunConfig) -> str:
    resolution = resolve(profile, run)
    return trace_key(resolution.run, resolution.stack, None)


def shipped(profile: ModelProfile) -> list[dict[str, Any]]:
    """The documents of the file that answers for a model."""
    name = json.loads((ROOT / "families" / INDEX).read_text("utf-8"))["configs"][profile.config_sha256]
    header, *lines = lines_of(ROOT / "families" / f"{name}.jsonl.gz", "family")
    return [json.loads(header), *map(tape_in, lines)]


def with_stacks(profile: ModelProfile, folder: Path, numbers: list[list[int]]) -> list[Path]:
    """A folder with one tape of the model's family, once for each of `numbers`, every copy an event shorter."""
    header, *tapes = shipped(profile)
    wanted = {"variant": variant_of(profile, KEPT), "region": "single middle"}
    at = next(
        at for at, made in enumerate(header["tapes"])
        if {name: made[name] for name in wanted} == wanted and 0 in made.get("stacks", [0])
    )  # fmt: skip
    copies = [{**tapes[at], "events": tapes[at]["events"][: -1 - number]} for number in range(len(numbers))]
    header = {**header, "versions": [OLDER, NEWER], "tapes": [{**wanted, "stacks": stacks} for stacks in numbers]}
    (folder / "families").mkdir()
    (folder / "families" / INDEX).write_text(json.dumps({"configs": {profile.config_sha256: "llama-9"}}))
    (folder / "families" / "llama-9.jsonl.gz").write_bytes(packed([header, *copies]))
    return [folder / "families"]


@pytest.mark.parametrize(
    ("version", "copy"), [("5.17.0", 0), ("5.18", 0), ("5.19", 1), ("5.24", 1), ("5.24.0.dev0", 1)]
)
def test_each_version_is_answered_by_the_tape_of_its_code(
    version: str, copy: int, llama: ModelProfile, tmp_path: Path
) -> None:
    folders = with_stacks(llama, tmp_path, [[0], [1]])
    stack = {**llama.versions, "transformers": version}
    answer, older, newer = (
        family_tape(llama, variant_of(llama, KEPT), folders, stack=versions) for versions in (stack, OLDER, NEWER)
    )
    assert answer is not None and older is not None and newer is not None
    assert answer.tape == (older, newer)[copy].tape
    assert len(older.tape.events) == len(newer.tape.events) + 1


@pytest.mark.parametrize(("numbers", "answered"), [([0], False), ([0, 1], True), ([1], True)])
def test_a_tape_is_taken_for_other_libraries_where_it_was_proved_there_alone(
    numbers: list[int], answered: bool, llama: ModelProfile, tmp_path: Path
) -> None:
    folders = with_stacks(llama, tmp_path, [numbers])
    assert (family_tape(llama, variant_of(llama, KEPT), folders, stack=NEWER) is not None) == answered


def test_a_header_of_one_stack_is_read_as_before(llama: ModelProfile) -> None:
    header = shipped(llama)[0]
    assert family_tape(llama, variant_of(llama, KEPT), [ROOT / "families"], stack=OLDER) is not None
    assert header["schema"] == "qlora-plan/family/2"


def test_a_trace_of_other_libraries_that_stands_in_is_said_to(
    llama: ModelProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    monkeypatch.setattr("qlora_planner.session.traces.families_dirs", lambda _: with_stacks(llama, tmp_path, [[0]]))
    said: list[str] = []
    run = KEPT.with_(stack={"transformers": "5.24"})
    assert tape_for(llama, run, tell=said.append) is not None
    assert said == [
        "meta-llama/Llama-3.1-8B: no trace with transformers 5.24 ships for this run; its trace with transformers"
        " 5.17.0 answers"
    ]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    versions = {"torch": "2.13.0", "transformers": "5.24.0", "peft": "0.21.2"}
    monkeypatch.setattr(packages, "missing_packages", lambda *_: [])
    monkeypatch.setattr(profile_cache, "installed_versions", lambda: versions)
    return versions


def test_installed_versions_count_without_being_named(installed: dict[str, str]) -> None:
    stack = resolve(load_model("llama-3.1-8b"), RunConfig()).stack
    assert {name: stack[name] for name in installed} == installed
    assert resolve(load_model("gemma-2-9b"), RunConfig()).run.attention == "eager"  # 5.21 took SDPA away
    named = resolve(load_model("gemma-2-9b"), RunConfig(stack={"transformers": "5.17"}))
    assert named.run.attention == "sdpa"


def test_installed_versions_that_nobody_looked_at_do_not_count(installed: dict[str, str]) -> None:
    installed["transformers"] = "4.57.1"
    assert resolve(load_model("llama-3.1-8b"), RunConfig()).stack["transformers"] == "5.17.0"


def test_a_base_install_answers_for_the_profiles_own_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    profile = load_model("llama-3.1-8b")
    assert resolve(profile, RunConfig()).stack == profile.versions


class TestProving:
    """What `tools.families.stacks` says of a piece, on the libraries that are installed here."""

    @pytest.fixture(scope="class")
    def piece(self) -> dict[str, Any]:
        profile = load_model("llama-3.2-1b", build="never")
        header, *tapes = shipped(profile)
        at = next(
            at for at, made in enumerate(header["tapes"])
            if made["variant"] == variant_of(profile, KEPT) and made["region"] == "single middle"
        )  # fmt: skip
        kept = {name: header[name] for name in ("symbols", "kinds")}
        return {"name": "any", "recipe": "kept", "region": "single middle", **kept, "tape": tapes[at]}

    @pytest.fixture(scope="class")
    def raw(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((ROOT / "configs" / "meta-llama__Llama-3.2-1B.json").read_text())
        return config

    def test_a_piece_that_holds_is_said_to(self, piece: dict[str, Any], raw: dict[str, Any]) -> None:
        from tools.families.stacks import proved

        line, own = proved(piece, raw, compare=False)
        assert (line["same"], own) == (True, None)

    def test_a_piece_of_other_code_is_made_again_from_its_own_sizes(
        self, piece: dict[str, Any], raw: dict[str, Any]
    ) -> None:
        from tools.families.stacks import proved

        events = list(piece["tape"]["events"])
        # The last birth that the death of a storage born before it follows: the two change places.
        born = list(accumulate(int(code > 0) for code in events))
        at = max(i for i, (one, other) in enumerate(pairwise(events)) if one > 0 and 0 < -other < born[i])
        moved = [*events[:at], events[at + 1], events[at], *events[at + 2 :]]
        line, own = proved({**piece, "tape": {**piece["tape"], "events": moved}}, raw, compare=False)
        assert not line["same"]
        assert "event" in line["where"]
        assert own is not None
        assert own["tape"]["events"] == events

    def test_another_class_is_no_piece_of_this_one(self, piece: dict[str, Any], raw: dict[str, Any]) -> None:
        from tools.families.stacks import proved

        line, _ = proved({**piece, "symbols": ["hidden_size"]}, raw, compare=True)
        assert not line["same"]
        assert line["where"].startswith("dimensions: ['hidden_size'], here ")


def test_a_damaged_number_of_a_stack_is_named(llama: ModelProfile, tmp_path: Path) -> None:
    folders = with_stacks(llama, tmp_path, [[7]])
    with pytest.raises(InputError, match=r"llama-9\.jsonl\.gz: not readable families"):
        family_tape(llama, variant_of(llama, KEPT), folders)


@pytest.mark.parametrize(
    ("one", "other", "alike"), [("1.7", "1.13", True), ("1.13", "1.14", False), ("1.3", "1.4", False)]
)
def test_releases_of_trl_with_one_loss_share_their_tapes(
    one: str, other: str, alike: bool, llama: ModelProfile
) -> None:
    variants = {variant_of(llama, RunConfig(stack={"trl": version})) for version in (one, other)}
    assert (len(variants) == 1) == alike
