"""What an exported script says of a plain loop: no trainer, no autocast."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.exchange.scripts.cut_loss import CUT_LOSS
from qlora_planner.exchange.scripts.python_source import Code, call
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import options
from qlora_planner.train.losses import liger_parts

LIGER = """from liger_kernel.transformers import _apply_liger_kernel_to_instance

_apply_liger_kernel_to_instance(model=BASE)"""


def cut_loss(run: RunConfig) -> str:
    if run.loss_kernel != "cut-cross-entropy":
        return ""
    return CUT_LOSS.replace("BASE", "model" if run.method == "full" else "model.get_base_model()") + "\n"


def plain_loop(run: RunConfig) -> tuple[str, str]:
    """The plain loop: no autocast, the model's own loss, no attention mask over full rows."""
    return cut_loss(run) + "\n".join(_loop_optimizer(run)), "\n".join(_loop_steps(run))


def _loop_optimizer(run: RunConfig) -> Iterator[str]:
    base = "model" if run.method == "full" else "model.get_base_model()"
    if (parts := liger_parts(run)) is not None:
        yield LIGER.replace("BASE", base + "".join(f", {name}={value}" for name, value in parts.items()))
    prepared = run.upcast and run.method != "full"
    layers = options.checkpointed_layers(run)
    if run.gradient_checkpointing and (layers or not prepared):  # else preparing has switched it on, for every layer
        yield call(
            "model.gradient_checkpointing_enable",
            {"gradient_checkpointing_kwargs": options.checkpointing_options(run), **layers},
        )
        if run.method != "full":
            yield "model.enable_input_require_grads()"
    chosen = options.trainer_options(run)
    yield "# transformers' own table of optimizers: the constructor and its arguments."
    arguments = {"output_dir": Code("OUTPUT"), **{name: chosen[name] for name in ("optim", "learning_rate")}}
    yield f"arguments = {call('TrainingArguments', arguments)}"
    yield "kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)"
    yield "optimizer = kind([p for p in model.parameters() if p.requires_grad], **settings)"


def _loop_steps(run: RunConfig) -> Iterator[str]:
    rows = "dataset" if run.eval_batch_size is None else 'parts["train"]'
    if not run.images:
        yield "collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)"
    yield _LOOP.format(rows=rows, batch=run.batch_size, accumulated=run.grad_accum)
    if run.eval_batch_size is not None:
        yield _EVALUATION.format(batch=run.eval_batch_size)
    yield "model.save_pretrained(OUTPUT)"


_LOOP = """BATCH_SIZE, GRAD_ACCUM = {batch}, {accumulated}
batches = torch.utils.data.DataLoader(
    {rows}, batch_size=BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=collate
)
model.train()
for step, batch in enumerate(batches, start=1):
    placed = {{name: value.to(model.device) for name, value in batch.items()}}
    if bool(placed["attention_mask"].all()):
        del placed["attention_mask"]  # full rows need none
    outputs = model(**placed)
    loss = outputs.loss / GRAD_ACCUM
    loss.backward()
    if step % GRAD_ACCUM == 0:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"step {{step // GRAD_ACCUM}}: loss {{outputs.loss.item():.4f}}")"""
_EVALUATION = """model.eval()
with torch.no_grad():
    held_out = torch.utils.data.DataLoader(parts["test"], batch_size={batch}, collate_fn=collate)
    losses = [model(**{{name: value.to(model.device) for name, value in batch.items()}}).loss for batch in held_out]
print(f"evaluation loss {{torch.stack(losses).mean().item():.4f}}")"""
