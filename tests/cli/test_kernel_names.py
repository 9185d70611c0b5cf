"""Attention kernels as people name them, at the command line."""

from __future__ import annotations

from tests.cli.conftest import Invoke

LLAMA = "llama-3.1-8b"


def test_the_command_line_takes_their_names(invoke: Invoke) -> None:
    ends = {
        name: invoke("estimate", LLAMA, "--gpu", "24GB", "--attention", name, "--json").exit_code
        for name in ("fa3", "kernels-community/flash-attn2", "somebody/attention", "magic")
    }
    assert ends == {"fa3": 0, "kernels-community/flash-attn2": 0, "somebody/attention": 5, "magic": 2}
