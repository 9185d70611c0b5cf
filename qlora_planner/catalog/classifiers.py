"""Sequence classifiers: which class transformers has for a model type, and how many labels a run's head scores.

A classifier is the backbone of the causal language model with a linear layer `score` of `num_labels` rows in place of
the output head; PEFT trains that layer whole, in a copy (task type SEQ_CLS).
"""

from __future__ import annotations

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.spec.run import RunConfig

SCORE = "score"
DEFAULT_LABELS = 2  # transformers' own, where a config names none

# transformers 5.17 modeling_auto.py, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES: the types of causal language
# models whose classifier differs from it in the head alone (tests/tracing/test_classifiers.py builds both).
CLASSIFIERS = {
    "arcee": "ArceeForSequenceClassification",
    "bloom": "BloomForSequenceClassification",
    "deepseek_v2": "DeepseekV2ForSequenceClassification",
    "deepseek_v3": "DeepseekV3ForSequenceClassification",
    "exaone4": "Exaone4ForSequenceClassification",
    "falcon": "FalconForSequenceClassification",
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "glm": "GlmForSequenceClassification",
    "glm4": "Glm4ForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "gpt_bigcode": "GPTBigCodeForSequenceClassification",
    "gpt_neo": "GPTNeoForSequenceClassification",
    "gpt_neox": "GPTNeoXForSequenceClassification",
    "gpt_oss": "GptOssForSequenceClassification",
    "gptj": "GPTJForSequenceClassification",
    "jamba": "JambaForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "ministral3": "Ministral3ForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
    "mpt": "MptForSequenceClassification",
    "nemotron": "NemotronForSequenceClassification",
    "olmo": "OlmoForSequenceClassification",
    "olmo2": "Olmo2ForSequenceClassification",
    "olmo3": "Olmo3ForSequenceClassification",
    "opt": "OPTForSequenceClassification",
    "phi": "PhiForSequenceClassification",
    "phi3": "Phi3ForSequenceClassification",
    "phimoe": "PhimoeForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen2_moe": "Qwen2MoeForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "qwen3_5_text": "Qwen3_5TextForSequenceClassification",
    "qwen3_moe": "Qwen3MoeForSequenceClassification",
    "qwen3_next": "Qwen3NextForSequenceClassification",
    "seed_oss": "SeedOssForSequenceClassification",
    "smollm3": "SmolLM3ForSequenceClassification",
    "stablelm": "StableLmForSequenceClassification",
    "starcoder2": "Starcoder2ForSequenceClassification",
}


def labels_of(run: RunConfig) -> int | None:
    """How many labels the run's `score` head scores; None for a run that trains a language model."""
    if run.task is not None:
        return run.num_labels or DEFAULT_LABELS
    return trainer_named(run.trainer).score_labels
