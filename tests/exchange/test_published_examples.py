"""Every QLoRA example of axolotl's and LLaMA-Factory's repositories, by the keys that can take memory: answered, or the
keys that forbid it are named.

published_examples.jsonl has each set of keys once, without model and data, and in how many files it stands
(axolotl-ai-cloud/axolotl 067b021, hiyouga/LLaMA-Factory ff6d4d1).
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from qlora_planner import load_gpu, load_model
from qlora_planner.exchange.configs import FORMATS
from qlora_planner.exchange.meant import meant, standing_in
from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.memory.unmodelled.qualified import qualified
from qlora_planner.memory.weights.targets import as_traced
from qlora_planner.session.check import check_reading
from qlora_planner.session.session import Session
from qlora_planner.session.traces import shipped_tape

MODEL = "meta-llama/Llama-3.1-8B"
ROWS = [json.loads(line) for line in (Path(__file__).parent / "published_examples.jsonl").read_text().splitlines()]
# Modules of Cerebras-GPT, which no model of today's has.
OF_GPT_2 = ["c_fc", "c_attn", "c_proj"]


@cache
def profile() -> Any:
    return load_model(MODEL)


def reading_of(row: dict[str, Any]) -> Reading:
    """What a row's keys say, of the model that stands for every file's."""
    keys = row["keys"] | {"base_model" if row["tool"] == "axolotl" else "model_name_or_path": MODEL}
    if keys.get("lora_target_modules") == OF_GPT_2:
        keys["lora_target_modules"] = ["up_proj", "q_proj", "down_proj"]
    return FORMATS[row["tool"]][1](keys, "example", {})


def verdict_of(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The verdict on a card that holds each of them by far, and the keys that matter where it is none."""
    reading = reading_of(row)
    assert not set(reading.unknown) - {"gptq_groupsize", "gptq_model_v1", "context_parapllel_size"}
    reading = standing_in(meant(reading, profile()))
    answer = estimate(profile(), reading.run, gpu=load_gpu("h200"))
    answer = qualified(answer, (*reading.unmodelled, *(thing.of(answer, profile()) for thing in reading.beyond)))
    return str(answer.verdict), tuple(thing.key for thing in answer.unmodelled if thing.at_most is None)


def test_files_for_several_cards_are_answered_on_two() -> None:
    """Of the 44 files that one card cannot answer, those that share a run over cards; what is left names the keys."""
    session = Session(stored_only=True)
    opened = session.open(MODEL, session.on("2xh200").card)
    verdicts: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for row in ROWS:
        if row["tool"] != "axolotl" or verdict_of(row)[0] == "fits":
            continue
        answer = check_reading("example.yml", reading_of(row), opened).estimate
        keys = {thing.key for thing in answer.unmodelled if thing.at_most is None}
        assert answer.verdict != "cannot-say" or keys, row
        verdicts[str(answer.verdict)] += row["files"]
        if answer.verdict == "cannot-say":
            left.update(dict.fromkeys(keys, row["files"]))
    assert verdicts == {"fits": 15, "will-not-run": 6, "cannot-say": 23}
    assert left.most_common(1) == [("processor_type: AutoProcessor", 11)]
    assert not {"fsdp", "fsdp_config"} & set(left)


def test_each_is_answered_or_names_what_forbids_it() -> None:
    verdicts: Counter[tuple[str, str]] = Counter()
    for row in ROWS:
        verdict, keys = verdict_of(row)
        assert verdict == "fits" or (verdict == "cannot-say" and keys), (row, verdict, keys)
        verdicts[row["tool"], verdict] += row["files"]
    assert verdicts == {
        ("axolotl", "fits"): 62, ("axolotl", "cannot-say"): 44,
        ("llama-factory", "fits"): 3, ("llama-factory", "cannot-say"): 1,
    }  # fmt: skip


def ships(reading: Reading) -> bool:
    """Whether the tape of what a file says ships."""
    card = load_gpu("a100-80gb")
    resolution = resolve(profile(), reading.run, card)
    run = as_traced(profile(), resolution.run)
    variant = trace_key(run, resolution.stack, card)
    return shipped_tape(profile(), variant, run.batch_size, run.seq_len) is not None


def test_most_of_them_are_played_from_tapes_that_ship_and_by_the_loss_that_they_name() -> None:
    played, own, named = 0, 0, 0
    for row in ROWS:
        reading = meant(reading_of(row), profile())
        itself = ships(reading)
        played += row["files"] * (itself or ships(standing_in(reading)))
        kernel = reading.run.loss_kernel is not None
        named, own = named + row["files"] * kernel, own + row["files"] * (kernel and itself)
    assert played >= 103 and named == 44, (played, named)
    assert own >= 39, own
