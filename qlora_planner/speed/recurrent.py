"""What recurrent mixers launch, move and multiply between their products, as transformers' torch code runs them."""

from __future__ import annotations

from qlora_planner.speed.work import Pass, Work, moves, terms


def delta_scan(width: float) -> Pass:
    """The gated delta rule of transformers' torch code (modeling_qwen3_next.py, torch_chunk_gated_delta_rule): rows of
    a 64 x 64 triangle solved one after the other, then chunks of 64 positions. Counted: kernels per chunk, kernels
    besides, bytes by the width of what enters, and the gradients of slices, each as large as what was cut. Forwards too
    its launches are bare tensor operators in a loop, which cost the host what the engine's do."""
    chunk = 64
    products = terms(tokens=1.0 * chunk * width)
    return Pass(
        forward=Work(
            engine_launches=terms(one=140, seq=17 / chunk), float_flops=products,
            traffic=terms(tokens=140.0 * width),
        ),
        backward=Work(
            engine_launches=terms(one=230, seq=43 / chunk), float_flops=2 * products,
            traffic=terms(tokens=360.0 * width, tokens_seq=0.32 * width),
        ),
    )  # fmt: skip


def step_by_step(width: float) -> Pass:
    """A linear recurrence that Python takes position by position (modeling_recurrent_gemma.py, _rnn_scan; Mamba's first
    version in modeling_jamba.py likewise): each one's states, `width` in all, are cast, multiplied, added and written,
    and each one's gradient is as large as all positions'."""
    return Pass(
        forward=Work(engine_launches=terms(one=40, seq=5), traffic=terms(tokens=180.0 * width)),
        backward=Work(
            engine_launches=terms(one=60, seq=16), traffic=terms(tokens=400.0 * width, tokens_seq=28.0 * width)
        ),
    )


def state_space(heads: int, width: int, state: int, chunk: int) -> Pass:
    """Mamba-2's scan in transformers' torch code (torch_forward of modeling_nemotron_h.py): every pair of a chunk's
    positions meets in each head's state and again in its width, and every position's width meets the state twice. Each
    of these products is written out in float32 before it is summed."""
    written = float(heads) * (chunk * (state + width) + 2 * width * state)
    return Pass(forward=moves(45, 8.7 * written), backward=moves(75, 17.2 * written, engine=True))
