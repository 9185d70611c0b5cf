"""The map of a pipeline, beside what accelerate asks of one for the real class, and the split that was measured."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.parallel.spread import spread
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.session import Session
from qlora_planner.session.training.ranks import pipeline_map
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from tests.profiles import toy_profile

RUN = RunConfig(parallel="pipeline", trainer="trl-sft")


def map_of(profile: ModelProfile, cards: int) -> dict[str, int]:
    placed = spread(Placement(profile, resolve(profile, RUN).run), cards)
    assert placed is not None
    return dict(placed)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cards", [2, 3])
def test_a_map_covers_the_real_model_with_its_head_on_the_first_card(tied: bool, cards: int) -> None:
    transformers = pytest.importorskip("transformers")
    from accelerate.utils.modeling import check_device_map

    config: dict[str, Any] = {
        "model_type": "llama", "hidden_size": 192, "intermediate_size": 448, "num_hidden_layers": 12,
        "vocab_size": 1003, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    placed = map_of(toy_profile(config), cards)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    check_device_map(model, placed)  # raises for a tensor that is nowhere
    names = {name for name, _ in model.named_modules()}
    assert set(placed) <= names
    assert {placed[name] for name in ("model.embed_tokens", "model.norm", "lm_head")} == {0}
    layers = [placed[f"model.layers.{index}"] for index in range(12)]
    assert layers == sorted(layers) and set(layers) | {0} == set(range(cards))


def test_cards_hold_as_much_as_each_other_to_a_layer() -> None:
    """Qwen2.5-7B at its 8 of 28 layers trained on two H200s; an 8B's embedding and head are worth a dozen layers."""
    session = Session(stored_only=True)
    for name, on_first in (("meta-llama/Llama-3.1-8B", 6), ("meta-llama/Llama-2-70b-hf", 38)):
        placed = map_of(session.model(name), 2)
        layers = [card for module, card in placed.items() if ".layers." in module]
        assert layers.count(0) == on_first, name


def test_what_nobody_has_seen_trained_so_is_refused_with_what_trains_it() -> None:
    profile = toy_profile({"model_type": "llama", "num_hidden_layers": 2})
    for run, cards, device, says in (
        (RUN, 2, "cpu", "a CPU cannot stand for"),
        (RUN.with_(trainer="trl-dpo"), 2, "cuda", "a pipeline of trl-dpo was never tried"),
        (RUN, 3, "cuda", "fewer layers than 3 cards"),
    ):
        with pytest.raises(InputError, match=says):
            pipeline_map(resolve(profile, run).run, cards, profile, device)
    assert pipeline_map(RUN.with_(parallel="ddp"), 2, profile, "cuda") is None
