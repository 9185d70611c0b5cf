"""Known error lines of several cards: FSDP, DeepSpeed, DDP and NCCL."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import ACCELERATE, TORCH, TRANSFORMERS, Symptom

ROWS = (
    Symptom(
        "fsdp-dtype",
        r"Must flatten tensors with uniform dtype|Cannot flatten integer dtype tensors",
        "FSDP wants one dtype in a unit: the 4-bit weights are stored as uint8 (bnb_4bit_quant_storage "
        "must be the compute dtype), or adapters and norms are float32 beside bf16",
        "BitsAndBytesConfig(bnb_4bit_quant_storage=torch.bfloat16) with dtype=torch.bfloat16 in "
        "from_pretrained; cast what is float32",
        f"{TORCH}/torch/distributed/fsdp/_flat_param.py",
        ("bitsandbytes", "accelerate"),
    ),
    Symptom(
        "fsdp-single",
        r"Using fsdp only works in distributed training",
        "fsdp is set and one process runs",
        "accelerate launch --num_processes N train.py, or no fsdp on one card",
        f"{TRANSFORMERS}/trainer.py",
    ),
    Symptom(
        "fsdp-checkpointing",
        r"activation_checkpointing in FSDP config and the gradient_checkpointing in training arg",
        "both FSDP and the trainer would checkpoint",
        "activation_checkpointing: true in fsdp_config, gradient_checkpointing=False",
        f"{TRANSFORMERS}/trainer.py",
    ),
    Symptom(
        "zero3-device-map",
        r"DeepSpeed Zero-3 is not compatible with",
        "ZeRO-3 shards the model itself; a device_map or low_cpu_mem_usage gets in its way (QLoRA works with ZeRO-2)",
        "no device_map; for 4-bit weights ZeRO-2, or FSDP with bnb_4bit_quant_storage",
        f"{TRANSFORMERS}/integrations/accelerate.py",
        ("transformers",),
    ),
    Symptom(
        "zero3-shape",
        r"weight'? (?:should|must) be 2-D|size mismatch[^\n]{0,200}torch\.Size\(\[0\]\)",
        "a weight is empty because ZeRO-3 holds it in shards: something uses the model outside the engine",
        "with deepspeed.zero.GatheredParameters(...) around it; resize embeddings before deepspeed.initialize",
        "https://github.com/deepspeedai/DeepSpeed/issues/3497",
    ),
    Symptom(
        "deepspeed-build",
        r"Unable to JIT load the \w{1,30} op|CUDA_HOME does not exist|Error building extension "
        r"'(?:cpu_adam|fused_adam|utils)'",
        "DeepSpeed compiles its kernels when they are first used, and there is no nvcc, or one of another "
        "CUDA than torch's",
        "install the CUDA toolkit of torch.version.cuda; or optim='adamw_torch' without offload",
        "https://www.deepspeed.ai/tutorials/advanced-install/",
        ("deepspeed", "torch"),
    ),
    Symptom(
        "loss-scale",
        r"Current loss scale already at minimum",
        "float16 overflows in every step",
        "bf16 on cards that have it; a lower learning rate",
        "https://github.com/deepspeedai/DeepSpeed/issues/1599",
    ),
    Symptom(
        "fsdp2-optimizer",
        r"bitsandbytes\.optimizer_update[\w.]{0,80} got mixed torch\.Tensor and DTensor",
        "bitsandbytes' optimizers, in 8 or 32 bits, paged or not, take no DTensor, which FSDP2 makes of parameters",
        "optim='adamw_torch_fused'",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1633",
        ("bitsandbytes", "torch"),
    ),
    Symptom(
        "no-data-parallel",
        r"does not support `?nn\.DataParallel",
        "one process sees several cards, and transformers' Trainer would wrap the model in DataParallel",
        "accelerate launch --num_processes N train.py, or CUDA_VISIBLE_DEVICES=0 for one card",
        "https://github.com/huggingface/trl/blob/main/trl/trainer/sft_trainer.py",
        ("trl",),
    ),
    Symptom(
        "ddp-unused",
        r"Expected to have finished reduction in the prior iteration",
        "some trainable parameters took no part in the loss (experts, a vision tower, adapters on unused layers)",
        "ddp_find_unused_parameters=True, or adapters only where the loss passes",
        "https://docs.pytorch.org/docs/stable/notes/ddp.html",
    ),
    Symptom(
        "ddp-twice",
        r"Expected to mark a variable ready only once|parameter at index \d{1,9} has been marked as ready "
        r"twice",
        "reentrant checkpointing under DDP",
        "gradient_checkpointing_kwargs={'use_reentrant': False}, ddp_find_unused_parameters=False",
        "https://github.com/pytorch/pytorch/issues/104690",
    ),
    Symptom(
        "nccl-timeout",
        r"Watchdog caught collective operation timeout|NCCL timeout|ncclRemoteError",
        "one process waited for another that had died, was still tokenising, or saving; else cards cannot "
        "speak to each other",
        "look for the first error of any rank; ddp_timeout=7200 for long preparation; NCCL_DEBUG=INFO, "
        "NCCL_P2P_DISABLE=1 to try",
        "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
        ("torch",),
    ),
    Symptom(
        "nccl-p2p",
        r"doesn'?t support faster communication broadband via P2P or IB",
        "RTX 40 cards have no peer-to-peer, and NCCL must be told",
        "export NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1, or start with accelerate launch",
        f"{ACCELERATE}/state.py",
        ("accelerate",),
    ),
    Symptom(
        "nccl-error",
        r"ncclUnhandledCudaError|ncclSystemError|ncclInternalError|unhandled (?:cuda|system) error, NCCL",
        "NCCL could not start between the cards: /dev/shm too small in a container, two processes on one "
        "card, or a network interface that does not reach",
        "NCCL_DEBUG=INFO says which; docker --shm-size 16g; NCCL_SOCKET_IFNAME=eth0; NCCL_P2P_DISABLE=1",
        "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
        ("torch",),
    ),
    Symptom(
        "no-nccl",
        r"Distributed package doesn'?t have NCCL built in",
        "this torch has no NCCL: Windows, macOS or a CPU build",
        "one process on one card; several cards need Linux or WSL 2",
        f"{TORCH}/torch/distributed/distributed_c10d.py",
        ("torch",),
    ),
    Symptom(
        "process-group",
        r"Default process group has not been initialized",
        "a distributed call in a script that was started as one process",
        "accelerate launch train.py or torchrun; not python train.py",
        f"{TORCH}/torch/distributed/distributed_c10d.py",
    ),
    Symptom(
        "port-taken",
        r"EADDRINUSE|address already in use|Address already in use",
        "another run holds the rendezvous port",
        "--main_process_port 0 (accelerate), --rdzv-endpoint localhost:0 (torchrun); end the old process",
        "https://docs.pytorch.org/docs/stable/elastic/run.html",
    ),
    Symptom(
        "child-failed",
        r"ChildFailedError",
        "the launcher only reports that a process failed; the cause is further up, in the first traceback of any rank",
        "look for the first Traceback above it, and paste its last line here",
        "https://docs.pytorch.org/docs/stable/elastic/errors.html",
    ),
    Symptom(
        "rendezvous",
        r"DistStoreError|clients joined|Connection (?:reset|closed) by peer[^\n]{0,80}(?:store|rank)|remote "
        r"process exited or there was a network error",
        "a process did not come, or went: another failed first, the address or port does not reach, or "
        "their numbers differ",
        "the first traceback of any rank; the same --num_processes, --main_process_ip and port on each machine",
        "https://docs.pytorch.org/docs/stable/elastic/run.html",
        ("torch",),
    ),
    Symptom(
        "meta-device-step",
        r"is not on the expected device meta",
        "part of the model was left on the host or disk by device_map='auto', and training touches it",
        "a smaller run that fits, device_map={'': 0}; FSDP with CPU offload in place of it",
        f"{TORCH}/torch/_prims_common/__init__.py",
        ("accelerate",),
    ),
)
