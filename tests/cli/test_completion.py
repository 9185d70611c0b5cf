"""The tab key: what a shell is offered, and where its script goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from qlora_planner.cli.completion import PROGRAMS, SHELLS, VARIABLE
from qlora_planner.cli.main import VERBS, cli
from tests.cli.conftest import Invoke


def offered(*words: str) -> list[str]:
    """What is offered for the last of `words`."""
    completion = ShellComplete(cli, {}, "qlora-plan", VARIABLE)
    return [item.value for item in completion.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "among", "not_among"),
    [
        (["est"], "estimate", "survey"),
        (["llama-3.1-8"], "llama-3.1-8b", "llama-3.1-70b"),
        (["estimate", "meta-llama/llama-3.1-8"], "meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        (["--gp"], "--gpu", "--json"),
        (["llama-3.1-8b", "--obj"], "--objective", "--gpu"),
        (["--gpu", "rtx-40"], "rtx-4090", "rtx-3090"),
        (["--gpu", "2xrtx-40"], "2xrtx-4090", "rtx-4090"),
        (["llama-3.1-8b", "--compare", "t4,l"], "t4,l4", "t4"),
        (["estimate", "x", "--optimizer", "paged_adamw"], "paged_adamw_8bit", "adamw_torch"),
        (["estimate", "x", "--quant", "n"], "nf4", "fp4"),
    ],
    ids=" ".join,
)
def test_what_is_offered_behind_a_tab(words: list[str], among: str, not_among: str) -> None:
    found = offered(*words)
    assert among in found
    assert not_among not in found


def test_without_a_letter_every_verb_is_offered_and_no_model() -> None:
    assert offered("") == list(VERBS)


def test_a_line_that_is_no_command_offers_nothing_and_breaks_nothing() -> None:
    assert offered("plam", "two", "words", "") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_install_writes_one_script_a_program_and_no_start_up_file(
    shell: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    done = invoke("completion", shell, "--install")
    assert done.exit_code == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)
    for program, path in zip(PROGRAMS, paths, strict=True):
        assert program in path.name
        assert VARIABLE in path.read_text(encoding="utf-8")
    paths[0].write_text("mine", encoding="utf-8")
    assert invoke("completion", shell, "--install").exit_code == 2
    assert paths[0].read_text(encoding="utf-8") == "mine"
    assert invoke("completion", shell, "--install", "--force").exit_code == 0


def test_bash_completes_by_the_script(invoke: Invoke, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(invoke("completion", "bash").stdout, encoding="utf-8")
    lines = (
        f"source {script}",
        "COMP_WORDS=(qlora-plan --gpu rtx-4090-); COMP_CWORD=2",
        "_qlora_plan_completion qlora-plan; echo ${COMPREPLY[@]}; complete -p qlora-planner",
    )
    program = tmp_path / "qlora-plan"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m qlora_planner\n", encoding="utf-8")
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, encoding="utf-8", timeout=60,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert "rtx-4090-d rtx-4090-laptop" in done.stdout, done.stderr
    assert "qlora-planner" in done.stdout
