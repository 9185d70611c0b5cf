"""Where it happened, as notebooks, launchers and rich print tracebacks, and how far the run was by its progress bar."""

from __future__ import annotations

import pytest

from qlora_planner.diagnose.oom import explain
from qlora_planner.diagnose.oom.logits import logits_tokens
from qlora_planner.report.parts.oom_words import advice

OOM = (
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 9.52 GiB. GPU 0 has a total capacity of 14.74 GiB of which"
    " 3.70 GiB is free. Process 2207 has 11.03 GiB memory in use. Of the allocated memory 10.66 GiB is allocated by"
    " PyTorch, and 231.00 MiB is reserved by PyTorch but unallocated."
)
RULE = "-" * 75
COLAB = f"""{RULE}
OutOfMemoryError                          Traceback (most recent call last)
<ipython-input-7-0a1b2c3d4e5f> in <cell line: 1>()
----> 1 trainer_stats = trainer.train()

15 frames
/usr/local/lib/python3.10/dist-packages/accelerate/utils/operations.py in _convert_to_fp32(tensor)
    779 
    780     def _convert_to_fp32(tensor):
--> 781         return tensor.float()
    782 
    783     def _is_fp16_bf16_tensor(tensor):

{OOM}
"""
JUPYTER = f"""{RULE}
OutOfMemoryError                          Traceback (most recent call last)
Cell In[3], line 5
      2 args = TrainingArguments('out')
----> 5 trainer.train()

File ~/miniconda3/lib/python3.11/site-packages/transformers/trainer.py:2122, in Trainer.train(self, resume, **kwargs)
   2120     hf_hub_utils.enable_progress_bars()
-> 2122     return inner_training_loop(

File ~/miniconda3/lib/python3.11/site-packages/torch/nn/modules/module.py:1501, in Module._call_impl(self, *args)
-> 1501     return forward_call(*args, **kwargs)

File ~/miniconda3/lib/python3.11/site-packages/transformers/models/llama/modeling_llama.py:240, in LlamaMLP.forward(x)
    239     def forward(self, x):
--> 240         return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
{OOM}
"""
COLOURED = JUPYTER.replace("Cell", "\x1b[0;32mCell\x1b[0m").replace("240, in", "\x1b[0;36m240\x1b[0m, in")
RANKS = f"""[rank1]: Traceback (most recent call last):
[rank0]: Traceback (most recent call last):
[rank1]:   File "/x/torch/optim/adamw.py", line 3, in step
[rank0]:   File "/x/transformers/trainer.py", line 9, in training_step
[rank0]:     loss = self.compute_loss(model, inputs)
[rank1]:     state["exp_avg"] = torch.zeros_like(p)
[rank0]:   File "/x/accelerate/accelerator.py", line 8, in backward
[rank0]:     loss.backward(**kwargs)
[rank0]: torch.{OOM}
"""
RICH = f"""╭─────────────── Traceback (most recent call last) ────────────────╮
│ /root/train.py:12 in <module>                                    │
│ ❱ 12 trainer.train()                                             │
│ /opt/lib/python3.10/site-packages/torch/optim/adamw.py:171 in step │
│   170 │   │   │   │   # Exponential moving average               │
│ ❱ 171 │   │   │   │   state["exp_avg"] = torch.zeros_like(p)     │
╰──────────────────────────────────────────────────────────────────╯
{OOM}
"""
WINDOWS = f"""Traceback (most recent call last):
  File "C:\\Users\\a b\\venv\\Lib\\site-packages\\accelerate\\utils\\operations.py", line 781, in _convert_to_fp32
    return tensor.float()
torch.{OOM}
"""


@pytest.mark.parametrize(
    ("text", "file", "line", "function", "code", "phase"),
    [
        (COLAB, "accelerate/utils/operations.py", 781, "_convert_to_fp32", "return tensor.float()", "loss"),
        (JUPYTER, "llama/modeling_llama.py", 240, "LlamaMLP.forward", "return self.down_proj(", "forward"),
        (COLOURED, "llama/modeling_llama.py", 240, "LlamaMLP.forward", "return self.down_proj(", "forward"),
        (RANKS, "accelerate/accelerator.py", 8, "backward", "loss.backward(", "backward"),
        (RICH, "torch/optim/adamw.py", 171, "step", 'state["exp_avg"]', "optimizer"),
        (WINDOWS, "accelerate\\utils\\operations.py", 781, "_convert_to_fp32", "return tensor.float()", "loss"),
    ],
    ids=["Colab", "Jupyter", "Jupyter in colour", "ranks that write into one another", "rich", "Windows"],
)
def test_the_place(text: str, file: str, line: int, function: str, code: str, phase: str) -> None:
    report = explain(text)
    assert report.frame is not None
    assert report.frame.file.endswith(file)
    assert (report.frame.line, report.frame.function) == (line, function)
    assert (report.frame.code or "").startswith(code)
    assert report.phase == phase


def test_a_cell_is_a_place_too() -> None:
    report = explain(f"OutOfMemoryError   Traceback (most recent call last)\nCell In[3], line 5\n----> 5 f(x)\n\n{OOM}")
    assert report.frame is not None
    assert (report.frame.file, report.frame.line, report.frame.code) == ("Cell In[3]", 5, "f(x)")


def test_the_output_that_accelerate_casts_is_the_logits_and_its_size_tells_the_tokens() -> None:
    report = explain(COLAB)
    assert "logits" in (report.doing or "") and "float32" in (report.doing or "")
    # 9.52 GiB of float32 over the 128,256 words of Llama 3's vocabulary.
    assert logits_tokens(report)["Llama 3"] == 19_925
    [only] = advice(report)
    assert "trl >= 1.15" in only and "--liger" in only and "cut cross-entropy" in only


def test_other_casts_are_not_taken_for_logits() -> None:
    text = f'Traceback (most recent call last):\n  File "/x/mine.py", line 3, in cast\n    y = x.float()\ntorch.{OOM}'
    report = explain(text)
    assert report.doing == "a tensor was being cast to float32"
    assert logits_tokens(report) == {}


BAR = "{0:3d}%|{1}| {2}/{3} [01:02<07:20,  2.01s/it]"


@pytest.mark.parametrize(
    ("before", "step", "steps", "phase"),
    [
        (BAR.format(12, "#2   ", 31, 250), 31, 250, None),
        ("\r".join(BAR.format(n, "█▏   ", n, 100) for n in range(9)) + "\r", 8, 100, None),
        ("[ 31/250 01:02 < 07:20, 0.50 it/s, Epoch 0.12/1]", 31, 250, None),
        (f"{BAR.format(10, '#', 25, 250)}\n{BAR.format(0, ' ', 0, 13)}", 25, 250, "eval"),
        (f"Map:  {BAR.format(99, '#', 990, 1000)}\n{BAR.format(0, '', 0, 250)}", 0, 250, None),
        (f"{BAR.format(100, '#', 990, 990)}\n{BAR.format(4, '', 9, 225)}", 9, 225, None),
        (f"{BAR.format(4, '#', 9, 225)}\n{BAR.format(100, '#', 13, 13)}\n{BAR.format(4, '', 10, 225)}", 10, 225, None),
        (BAR.format(100, "#", 225, 225), 225, 225, None),
        (f"Loading checkpoint shards:  {BAR.format(50, '#', 2, 4)}", None, None, "load"),
        (f"{BAR.format(4, '4', 9, 225)}{{'loss': 1.2, 'epoch': 0.04}}", 9, 225, None),
        ("no bar, 3/4 of it", None, None, None),
    ],
    ids=[
        "tqdm",
        "carriage returns",
        "notebook",
        "evaluation",
        "after mapping",
        "after mapping without a name",
        "after an evaluation",
        "all steps",
        "loading",
        "a log after it",
        "none",
    ],
)
def test_the_step_of_a_progress_bar(before: str, step: int | None, steps: int | None, phase: str | None) -> None:
    report = explain(f"{before}\n{OOM}\n")
    assert (report.step, report.steps, report.phase) == (step, steps, phase)


def test_a_bar_that_closes_after_the_traceback_counts_where_none_is_before() -> None:
    assert explain(f"{OOM}\n{BAR.format(4, '#', 9, 225)}\n").step == 9


def test_an_evaluation_after_the_last_step_is_no_step() -> None:
    frame = '  File "/x/transformers/trainer.py", line 9, in evaluation_loop\n    logits = f(x)\n'
    text = (
        f"{BAR.format(100, '#', 225, 225)}\n{BAR.format(23, '#', 3, 13)}\nTraceback (most recent call last):\n{frame}"
    )
    report = explain(f"{text}torch.{OOM}")
    assert (report.step, report.steps, report.phase) == (225, 225, "eval")
