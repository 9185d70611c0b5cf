"""What a run that fails leaves behind: the phase, the reason, and the figures so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.measure.process import one_line, requested_bytes
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.ranks import Ranks
from qlora_planner.train.trainers import loop

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
LLAMA = json.loads((Path(__file__).parents[1] / "data/truth/configs/llama-3.2-1b.json").read_text(encoding="utf-8"))


def measured(world: int = 1, **options: Any) -> Any:
    """One step of a toy in this process, as the first of `world` ranks, the others of which nobody calls."""
    from qlora_planner.measure.execution import Execution

    heard: list[tuple[str, Mapping[str, Any]]] = []
    run = RunConfig(**{"seq_len": 48, "rank": 4, "trainer": "loop", "lora_dropout": 0.0, **options})
    spec = ChildSpec(run=run, config=LLAMA, device="cpu", steps=1)
    return Execution(spec, lambda event, facts: heard.append((event, facts)), Ranks(world=world)).measure()


def failing_in_backward(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    whole = loop.Loop._micro_batch

    def fails(self: Any, batch: Any, watcher: Any) -> None:
        class Failing:
            def __getattr__(self, name: str) -> Any:
                return getattr(watcher, name)

            def backward_begins(self) -> None:
                watcher.backward_begins()
                raise error

        whole(self, batch, Failing())

    monkeypatch.setattr(loop.Loop, "_micro_batch", fails)


def test_out_of_memory_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 7.00 GiB"
    failing_in_backward(monkeypatch, torch.OutOfMemoryError(message))
    found = measured()
    assert (found.outcome, found.failed_phase) == ("out-of-memory", "backward")
    assert found.requested_bytes == 3 << 29
    assert found.phases["forward"].allocated_bytes > found.phases["adapters"].allocated_bytes > 0
    assert found.components["quantized_weights"] > 0 and "optimizer_states" not in found.components
    assert found.step_s == () and found.tokens_per_s is None


def test_memory_that_a_library_asked_for_itself_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_in_backward(monkeypatch, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert measured().outcome == "out-of-memory"


def test_any_other_exception_is_an_error_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_in_backward(monkeypatch, ValueError("it is\nbroken"))
    found = measured()
    assert (found.outcome, found.error) == ("error", "ValueError: it is broken")


def test_an_interruption_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_in_backward(monkeypatch, KeyboardInterrupt())
    assert measured().outcome == "interrupted"


def test_what_a_trainer_lacks_is_an_error_of_the_run() -> None:
    found = measured(packing=True)
    assert found.outcome == "error" and "--packing" in found.error


def test_upcasting_wrapping_and_evaluation_have_phases_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "begin", lambda *_: None)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # as the child sets it: the profiler hears one thread
    found = measured(world=2, upcast=True, eval_batch_size=2, method="lora", optimizer="adamw_torch")
    assert found.outcome == "ok"
    plain = measured(method="lora", optimizer="adamw_torch")
    assert not {"prepare", "wrap", "eval"} & plain.phases.keys() and "wrap" in found.phases  # of several ranks alone
    # Every weight of a 16-bit base doubles.
    assert found.phases["prepare"].live_bytes == pytest.approx(2 * plain.phases["load"].live_bytes, rel=0.01)
    assert plain.phases["load"].live_bytes == pytest.approx(2 * plain.params, rel=0.01)
    assert found.phases["eval"].allocated_bytes > 0
    assert "quantized_weights" not in (found.components or {})


def test_torch_words_for_sizes() -> None:
    assert requested_bytes("Tried to allocate 20.00 MiB. GPU") == 20 << 20
    assert requested_bytes("tried to allocate 512 bytes") == 512
    assert requested_bytes("something else") is None


def test_an_exception_is_one_line_of_bounded_length() -> None:
    text = one_line(ValueError("a\n" * 1000))
    assert "\n" not in text and len(text) == 400
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_folder_with_weights_is_run_as_it_is(tmp_path: Path) -> None:
    from qlora_planner.measure.execution import Execution
    from qlora_planner.train import model
    from qlora_planner.train.toy import toy_config

    raw = toy_config(LLAMA)
    run = RunConfig(method="lora", seq_len=48, rank=4, trainer="loop", lora_dropout=0.0)
    model.load_random(raw, run, "cpu", model.random_weights(raw, "cpu")).save_pretrained(tmp_path)
    assert model.has_weights(tmp_path)
    spec = ChildSpec(run=run.with_(method="qlora"), model_dir=str(tmp_path), device="cpu", steps=1)
    found = Execution(spec, lambda *_: None).measure()
    assert (found.outcome, found.toy) == ("ok", False)
    assert found.components["quantized_weights"] > 0  # type: ignore[index]
