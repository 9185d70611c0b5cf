"""What the page asks, answered by the package itself; each answer is JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import qlora_planner
from qlora_planner import Session
from qlora_planner.errors import PlannerError
from qlora_planner.report.parts.labels import recipe
from qlora_planner.text import plain

SESSION = Session(tell=lambda text: NOTES.append(text))
NOTES: list[str] = []
FAMILIES = Path(qlora_planner.__file__).parent / "_profiles" / "families"
_MOST_BATCH = 64


def answered(ask: Callable[..., dict]) -> Callable[[str], str]:
    """As a function of JSON; a fault is its line."""

    def answer(text: str) -> str:
        NOTES.clear()
        try:
            made = ask(**json.loads(text))
        except PlannerError as error:
            made = {"error": str(error)}
        return json.dumps({**made, "notes": [plain(note) for note in NOTES]})

    return answer


def needs(text: str) -> str:
    """The file of traces that a question needs and that is not here yet, else nothing; a name of profiles/families."""
    try:
        profile = SESSION.model(json.loads(text)["model"])
    except PlannerError:
        return ""  # said by the answer
    index = json.loads((FAMILIES / "index.json").read_text(encoding="utf-8"))["configs"]
    made_from = profile.family_sha256 or profile.same_shape_sha256 or profile.config_sha256
    name = f"{index[made_from]}.jsonl.gz" if made_from in index else ""
    return "" if not name or (FAMILIES / name).exists() else name


@answered
def estimate(model: str, gpu: str, options: dict) -> dict:
    """Memory by phase against the card, verdict, speed."""
    document = SESSION.on(gpu).estimate(model, **options).to_dict()
    fit, peak = document["fit"], document["peak"]
    return {
        "model": document["model"]["id"] if isinstance(document["model"], dict) else document["model"],
        "verdict": fit["verdict"], "usable_bytes": fit["usable_bytes"], "capacity_bytes": fit["capacity_bytes"],
        "peak": peak, "floor_bytes": document["floor_bytes"], "probability_oom": fit["probability_oom"],
        "reasons": fit["reasons"], "phases": document["phases"], "speed": document["speed"],
        "problems": document["problems"], "recipe": recipe(_run(document)),
    }  # fmt: skip


def _run(document: dict):
    from qlora_planner.spec.run import RunConfig

    return RunConfig.from_dict(document["run"])


@answered
def longest_batch(model: str, gpu: str, options: dict, seq_len: int) -> dict:
    """The largest batch of one length that fits, by halving; 0 where none does."""
    bench = SESSION.on(gpu)

    def fits(batch: int) -> bool:
        given = {**options, "seq_len": seq_len, "batch_size": batch}
        return bench.estimate(model, **given).verdict in ("fits", "tight")

    low, high = 0, 1
    while high <= _MOST_BATCH and fits(high):
        low, high = high, 2 * high
    while high - low > 1 and high <= _MOST_BATCH:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {"seq_len": seq_len, "batch_size": low, "most": _MOST_BATCH}
