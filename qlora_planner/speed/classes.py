"""What of a class no tensor shows, and a trace does: `benchmarks/speed_counts.py` prints what decides each row."""

from __future__ import annotations

from qlora_planner.speed.kernels import SQUARED, WRITTEN_OUT, XIELU

# Activations that are several operators, by class: gelu_new written out in Python (transformers, activations.py,
# NewGELUActivation; modeling_bloom.py has its own of as many operators), a squared relu, and xIELU.
ACTIVATIONS = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "codegen", "phi", "bloom"), WRITTEN_OUT),
    **dict.fromkeys(("arcee", "nemotron", "nemotron_h"), SQUARED),
    "apertus": XIELU,
}
# Of these, the ones that autocast runs in float32 and whose next layer, being quantised, hands float32 on to the stream
# (the norms of nemotron and nemotron_h cast it back).
FLOAT32_ACTIVATIONS = frozenset({"arcee", "apertus"})
# Attention that is given a mask though rows are of one length (modeling_falcon.py).
ALWAYS_MASKED = frozenset({"falcon"})
# Experts that are given every token, whatever the router says (modeling_llama4.py, Llama4TextMoe).
DENSE_EXPERTS = frozenset({"llama4_text"})
# Experts a token is given to, where the config's field for it is no dimension of the profile (top_k_experts).
EXPERTS_PER_TOKEN = {"gemma4_text": 8}
# A router that picks one expert after the other (modeling_phimoe.py, sparsemixer): kernels from Python and from C++.
PICKS_IN_TURN = {"phimoe": (30, 22)}
# State spaces: groups that share inputs and outputs of the state, and positions of a chunk.
SCANS = {"nemotron_h": (8, 128)}
USUAL_SCAN = (1, 256)
