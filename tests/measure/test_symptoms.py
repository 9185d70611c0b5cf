"""Pasted error lines: each row of the table is found by a line as libraries print it, and in bounded time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.diagnose.symptom_search import explain_symptom, unknown_symptom
from qlora_planner.diagnose.symptoms import SUBJECTS, SYMPTOMS
from tests.cli.conftest import Invoke, invoke, own_home

__all__ = ["invoke", "own_home"]

# The most reported lines around QLoRA, with what each comes of and a word of its fix.
REPORTED = [
    ("ValueError: Target modules {'q_proj', 'v_proj'} not found in the base model.", "target-modules", "all-linear"),
    ("RuntimeError: FlashAttention only supports Ampere GPUs or newer.", "flash-attention-card", "sdpa"),
    ("SFTTrainer.__init__() got an unexpected keyword argument 'tokenizer'", "trl-processing-class",
     "processing_class"),
    ("SFTConfig.__init__() got an unexpected keyword argument 'max_seq_length'", "trl-max-length", "max_length="),
    ("Must flatten tensors with uniform dtype but got torch.bfloat16 and torch.uint8", "fsdp-dtype", "quant_storage"),
    ("has model type `gemma9` but Transformers does not recognize this architecture.", "model-too-new",
     "pip install -U"),
    ("ValueError: Asking to pad but the tokenizer does not have a padding token.", "pad-token", "pad_token"),
    ("OSError: You are trying to access a gated repo.", "gated-model", "hf auth login"),
    ("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cuda:1!", "two-cards",
     "{'': 0}"),
    ("{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 3e-05, 'epoch': 1.87}", "loss-zero-nan", "bf16=True"),
    ("loss is not decreasing", "loss-flat", "learning_rate"),
    ("RuntimeError: CUDA error: device-side assert triggered", "device-assert", "resize_token_embeddings"),
    ("training is very slow, shared GPU memory is in use", "windows-spill", "Sysmem Fallback"),
    ("The model is quantized with GPTQConfig but you are passing a BitsAndBytesConfig config.", "already-quantised",
     "16-bit"),
]  # fmt: skip
LINES = {
    "ValueError: Target module LlamaMLP() is not supported. Currently, only the following modules": "target-kind",
    "ValueError: Please specify `target_modules` in `peft_config`": "target-unnamed",
    "UserWarning: Already found a `peft_config` attribute in the model.": "adapter-twice",
    "TypeError: LoraConfig.__init__() got an unexpected keyword argument 'corda_config'": "adapter-config-newer",
    "ValueError: Can't find 'adapter_config.json' at 'out'": "adapter-missing",
    "size mismatch for base_model.model.lm_head.weight: copying a param with shape": "adapter-shape",
    "UserWarning: Found missing adapter keys while loading the checkpoint: ['a']": "adapter-keys",
    "UserWarning: Merge lora module to 4-bit linear may get different generations": "merge-4bit",
    "ValueError: Cannot merge LORA layers when the model is gptq quantized": "merge-quantised",
    "SFTTrainer.__init__() got an unexpected keyword argument 'dataset_text_field'": "trl-moved",
    "ImportError: cannot import name 'DataCollatorForCompletionOnlyLM' from 'trl'": "trl-collator",
    "TrainingArguments.__init__() got an unexpected keyword argument 'evaluation_strategy'": "training-arguments",
    "LlamaForCausalLM.__init__() got an unexpected keyword argument 'load_in_4bit'": "load-in-4bit",
    "TypeError: from_pretrained() got an unexpected keyword argument 'use_auth_token'": "token-argument",
    "ImportError: cannot import name 'HybridCache' from 'transformers' (/x/__init__.py)": "import-name",
    "compute_loss() got an unexpected keyword argument 'num_items_in_batch'": "compute-loss-argument",
    "ValueError: `rope_scaling` must be a dictionary with two fields, `type` and `factor`": "rope-scaling",
    "Exception: data did not match any variant of untagged enum ModelWrapper at line 1": "tokenizers-too-old",
    "ValueError: Couldn't instantiate the backend tokenizer from one of:": "tokenizer-backend",
    "The repository x/y contains custom code which must be executed to correctly load": "remote-code",
    "does not support an attention implementation through torch.nn.functional.scaled_dot_product_attention":
        "sdpa-missing",
    "FlashAttention2 has been toggled on, but it cannot be used due to the following error": "flash-attention-missing",
    "RuntimeError: FlashAttention only support fp16 and bf16 data type".replace("support ", "supports "):
        "flash-attention-dtype",
    "flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c104": "flash-attention-symbol",
    "ValueError: `.to` is not supported for `4-bit` or `8-bit` bitsandbytes models.": "to-quantised",
    "NotImplementedError: Cannot copy out of meta tensor; no data!": "meta-tensor",
    "ValueError: Due to a serious vulnerability issue in `torch.load`, even with": "torch-load",
    "_pickle.UnpicklingError: Weights only load failed.": "weights-only",
    "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge": "safetensors-broken",
    "OSError: Error no file named pytorch_model.bin, model.safetensors found": "weights-missing",
    "ValueError: Unrecognized model in ./out. Should have a `model_type` key": "unrecognised-model",
    "OSError: foo/bar is not a local folder and is not a valid model identifier": "not-on-hub",
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files": "hub-unreachable",
    "429 Client Error: Too Many Requests for url: https://huggingface.co/api": "hub-too-many",
    "OSError: Consistency check failed: file should be of size 4976698672": "download-broken",
    "wandb.errors.UsageError: api_key not configured (no-tty)": "wandb",
    "ValueError: Unable to create tensor, you should probably activate truncation": "ragged-batch",
    "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set":
        "chat-template-missing",
    "jinja2.exceptions.TemplateError: Conversation roles must alternate user/assistant": "chat-roles",
    "You set `assistant_only_loss=True`, but the dataset is not conversational.": "assistant-mask",
    "Token indices sequence length is longer than the specified maximum sequence length": "long-warning",
    "ValueError: No columns in the dataset match the model's forward method signature": "no-columns",
    "ValueError: The model did not return a loss from the inputs, only the following keys": "no-loss",
    "datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset": "data-format",
    "datasets.exceptions.DatasetGenerationCastError: All the data files must have the same columns": "data-columns",
    "RuntimeError: Dataset scripts are no longer supported, but found x.py": "data-script",
    "NotImplementedError: Loading a dataset cached in a LocalFileSystem is not supported.": "data-fsspec",
    "RuntimeError: One of the subprocesses has abruptly died during map operation.": "data-worker",
    "the model never stops, it keeps repeating": "never-stops",
    "found at least two devices, cpu and cuda:0! Expected all tensors to be on the same device": "cpu-and-card",
    "`use_cache=True` is incompatible with gradient checkpointing. Setting": "use-cache",
    "CheckpointError: Recomputed values for the following tensors have different metadata": "checkpoint-metadata",
    "RuntimeError: Trying to backward through the graph a second time": "backward-twice",
    "ValueError: Can't find a valid checkpoint at out": "resume-missing",
    "You have set `args.eval_strategy` to steps but you didn't pass an `eval_dataset`": "no-eval-data",
    "RuntimeError: CUDA error: an illegal memory access was encountered": "illegal-access",
    "Segmentation fault (core dumped)": "segfault",
    "ValueError: Using fsdp only works in distributed training.": "fsdp-single",
    "RuntimeError: bitsandbytes.optimizer_update_8bit_blockwise.default got mixed torch.Tensor and DTensor, need":
        "fsdp2-optimizer",
    "ValueError: SFTTrainer does not support `nn.DataParallel`, which `Trainer` uses when several GPUs are":
        "no-data-parallel",
    "The activation_checkpointing in FSDP config and the gradient_checkpointing in training arg": "fsdp-checkpointing",
    "ValueError: DeepSpeed Zero-3 is not compatible with passing a `device_map`.": "zero3-device-map",
    "RuntimeError: 'weight' must be 2-D": "zero3-shape",
    "RuntimeError: Unable to JIT load the fused_adam op due to": "deepspeed-build",
    "Exception: Current loss scale already at minimum - cannot decrease scale anymore.": "loss-scale",
    "RuntimeError: Expected to have finished reduction in the prior iteration": "ddp-unused",
    "RuntimeError: Expected to mark a variable ready only once.": "ddp-twice",
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)": "nccl-timeout",
    "Using RTX 4000 series doesn't support faster communication broadband via P2P or IB": "nccl-p2p",
    "torch.distributed.DistBackendError: ncclSystemError: System call (e.g. socket)": "nccl-error",
    "RuntimeError: Distributed package doesn't have NCCL built in": "no-nccl",
    "ValueError: Default process group has not been initialized, please make sure": "process-group",
    "DistNetworkError: port: 29500, useIpv6: 0, code: -98, name: EADDRINUSE": "port-taken",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:": "child-failed",
    "ModuleNotFoundError: No module named 'triton.ops'": "triton-ops",
    "Blockwise quantization only supports 16/32-bit floats, but got torch.uint8": "quantise-twice",
    "AssertionError: FP4 quantization state not initialized. Please call .cuda()": "quant-state",
    "Input type into Linear4bit is torch.float16, but bnb_4bit_compute_dtype=torch.float32": "compute-float32",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`": "cublas-failed",
    "OSError: CUDA_HOME environment variable is not set.": "cuda-home",
    "RuntimeError: The detected CUDA version (11.8) mismatches the version": "cuda-mismatch",
    "ERROR: Failed building wheel for flash-attn": "build-isolation",
    "RuntimeError: Failed to find C compiler. Please specify via CC": "c-compiler",
    "ptxas fatal   : Value 'sm_120' is not defined for option 'gpu-name'": "ptxas",
    "ERROR: No matching distribution found for triton": "windows-triton",
    "RuntimeError: start a new process before the current process has finished its bootstrapping phase":
        "windows-spawn",
    "OSError: [WinError 126] The specified module could not be found": "windows-dll",
    "OSError: [WinError 1314] A required privilege is not held by the client": "windows-symlink",
    "UnicodeDecodeError: 'charmap' codec can't decode byte 0x9d": "windows-encoding",
    "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.0.1": "numpy-abi",
    "version `GLIBCXX_3.4.32' not found": "glibc",
    "OSError: [Errno 24] Too many open files": "open-files",
    "WARNING: Unsloth should be imported before trl, transformers, peft": "unsloth-first",
    "NotImplementedError: Unsloth cannot find any torch accelerator? You need a GPU.": "unsloth-card",
    "ZeroDivisionError: Unsloth: All labels in your dataset are -100.": "labels-masked",
    "NotImplementedError: Unsloth: Your model needs to call `.get_peft_model` first!": "unsloth-adapters",
    "RuntimeError: Cannot find valid samples, check `data/README.md`": "llama-factory-data",
    "ValueError: Template llama9 does not exist.": "llama-factory-template",
    "pydantic_core.ValidationError: 2 validation errors for AxolotlConfigWCapabilities": "axolotl-config",
    "ValueError: unhandled prompt tokenization strategy: sharegpt": "axolotl-prompt",
    'RuntimeError: mat1 and mat2 shapes cannot be multiplied (4096x4096 and 1x8388608)':
        'packed-shape',
    'ImportError: Using `bitsandbytes` 8-bit quantization requires Accelerate':
        'bnb-accelerate',
    'RuntimeError: "addmm_impl_cpu_" not implemented for \'Half\'':
        'cpu-half',
    "ValueError: fp16 mixed precision requires a GPU (not 'mps').":
        'amp-device',
    'AssertionError: No inf checks were recorded for this optimizer.':
        'no-inf-checks',
    'RuntimeError: Only Tensors of floating point and complex dtype can require gradients':
        'integer-gradient',
    'RuntimeError: probability tensor contains either `inf`, `nan` or element < 0':
        'logits-inf',
    "TypeError: DPOTrainer.__init__() got an unexpected keyword argument 'beta'":
        'preference-arguments',
    'FutureWarning: `tokenizer` is deprecated and will be removed in version 5.0.0 for `SFTTrainer.__init__`.':
        'deprecated-tokenizer',
    "AttributeError: 'TrainingArguments' object has no attribute 'model_init_kwargs'":
        'training-arguments-sft',
    "AttributeError: 'DynamicCache' object has no attribute 'get_max_length'":
        'cache-method',
    "TypeError: LlamaAttention.forward() missing 1 required positional argument: 'attention_mask'":
        'attention-signature',
    'RuntimeError: The size of tensor a (32000) must match the size of tensor b (32001)':
        'vocabulary-shape',
    'UserWarning: Could not find a config file in x/y - will assume that the vocabulary was not modified':
        'base-config-warning',
    "OSError: Can't load tokenizer for 'meta-llama/Llama-2-7b-hf'. If you were trying to load it from":
        'tokenizer-missing',
    'ImportError: This modeling file requires the following packages that were not found in your environment: einops':
        'modeling-packages',
    'ImportError: Loading an AWQ quantized model requires gptqmodel.':
        'quantiser-package',
    'ValueError: FP8 quantized models is only supported on GPUs with compute capability >= 8.9':
        'fp8-card',
    'The model weights are not tied. Please use the `tie_weights` method ':
        'head-missing',
    'Some weights of LlamaForCausalLM were not initialized from the model checkpoint':
        'weights-not-initialised',
    'huggingface_hub.errors.HFValidationError: Repo id must use alphanumeric chars':
        'hub-id',
    'requests.exceptions.HTTPError: 404 Client Error: Not Found for url':
        'hub-404',
    'RuntimeError: [enforce fail at inline_container.cc:603] . unexpected pos 704 vs 598':
        'disk-full-writing',
    'ValueError: num_samples should be a positive integer value, but got num_samples=0':
        'empty-data',
    "KeyError: 'messages'":
        'data-key',
    'ValueError: Attention mask should be of size (1, 1, 2048, 2048), but is torch.Size([1, 1, 4096, 4096])':
        'mask-size',
    'ValueError: Input length of input_ids is 2048, but `max_length` is set to 20.':
        'generation-length',
    "ValueError: The following `model_kwargs` are not used by the model: ['token_type_ids']":
        'unused-inputs',
    'RuntimeError: No executable batch size found, reached zero.':
        'no-batch-size',
    "RuntimeError: Cannot re-initialize CUDA in forked subprocess.":
        'cuda-fork',
    "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:":
        'compile-failed',
    'RuntimeError: cutlassF: no kernel found to launch!':
        'attention-kernel',
    'grad_norm is 0':
        'gradient-zero',
    'loss goes to nan after 100 steps':
        'loss-spikes',
    'model outputs are the same as base model after finetuning':
        'no-effect',
    'generated text is garbage after merging':
        'garbage',
    'GPU utilization is low':
        'slow',
    'Detected kernel version 5.4.0, which is below the recommended minimum of 5.5.0':
        'old-kernel',
    'torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.':
        'rendezvous',
    'RuntimeError: Tensor on device cuda:0 is not on the expected device meta!':
        'meta-device-step',
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.":
        'smi-failed',
    'CUDA error: uncorrectable ECC error encountered':
        'card-lost',
    'Could not load library libcudnn_cnn_infer.so.8':
        'cudnn-missing',
    'ValueError: Unsloth: Untrained tokens of [[128042, 128036]] found':
        'unsloth-tokens',
    "ModuleNotFoundError: No module named 'rouge_score'": "missing-module",
}  # fmt: skip


@pytest.mark.parametrize(("line", "code", "word"), REPORTED)
def test_the_most_reported_lines_have_their_cause_and_a_fix(line: str, code: str, word: str) -> None:
    findings = explain_symptom(line)
    assert [one.code for one in findings] == [code]
    assert word in (findings[0].fix or "")


@pytest.mark.parametrize(("line", "code"), LINES.items())
def test_a_pasted_line_finds_its_row_first(line: str, code: str) -> None:
    first, *_ = explain_symptom(f"Traceback (most recent call last):\n  File 'x.py'\n{line}\n")
    assert first.code == code
    assert first.fix and first.source
    assert "{name}" not in first.message + first.fix


def test_a_line_that_no_row_knows_says_what_was_searched(invoke: Invoke) -> None:
    result = invoke("doctor", "ValueError: the moon is in the peft house")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert f"{len(SYMPTOMS)} kinds of lines were searched" in result.stderr
    assert "https://github.com/huggingface/peft/issues" in result.stderr
    assert "the tracker of the library that raised it" in unknown_symptom("no name in it")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out-of-memory"),
        ("OSError: The paging file is too small for this operation to complete. (os error 1455)", "paging-file"),
        ("triton.runtime.errors.OutOfResources: out of resource: shared memory", "kernel-shared-memory"),
        ("DataLoader worker (pid 77) is killed by signal: Bus error.", "shared-memory"),
    ],
)
def test_memory_failures_are_known_to_the_doctor_too(line: str, code: str) -> None:
    assert [one.code for one in explain_symptom(line)] == [code]


def test_the_generic_row_is_silent_where_another_knows_the_line() -> None:
    assert [one.code for one in explain_symptom("ModuleNotFoundError: No module named 'flash_attn'")] == [
        "flash-attention-missing"
    ]


def test_explain_gives_the_source_of_each_finding(invoke: Invoke) -> None:
    assert "https://github.com/huggingface/trl/pull/2162" in invoke("doctor", "--explain", REPORTED[2][0]).stdout


@pytest.mark.parametrize("line", ["Epoch 1/3: loss 0.91", "{'loss': 1.02, 'grad_norm': 0.41}", "", "step 3 of 9 done"])
def test_a_healthy_line_has_no_cause(line: str) -> None:
    assert explain_symptom(line) == []


@pytest.mark.parametrize(
    "unit", ["loss ", "Target module ", "access to model ", "size mismatch for ", "ptxas error ",
             "CUDA binary not found ",
             "loss not ", "'loss': 0.0", "KeyError: 'llama", "cannot import name '", "\\", "( ", "aaaa",
             "out of memory "],
)  # fmt: skip
def test_no_pattern_takes_long_over_any_text(unit: str) -> None:
    before = time.process_time()
    explain_symptom(unit * (200_000 // len(unit)))
    assert time.process_time() - before < 3


@given(st.text(max_size=400))
def test_any_text_may_be_pasted(text: str) -> None:
    assert all(one.fix and one.message for one in explain_symptom(text))


def test_rows_have_their_sources_and_subjects() -> None:
    assert all(row.source.startswith("https://") for row in SYMPTOMS)
    assert sum(map(len, SUBJECTS.values())) == len(SYMPTOMS)
