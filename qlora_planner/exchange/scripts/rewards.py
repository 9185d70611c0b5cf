"""What a script says of rewards: functions of Python files, and trl's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qlora_planner.errors import InputError
from qlora_planner.exchange.scripts.python_source import call, literal
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.rewarding.rewards import TRL_REWARDS, RewardName, named

_FROM_FILE = '''
def reward_of(path, name):
    """A function that a Python file defines."""
    spec = importlib.util.spec_from_file_location("rewards_of_a_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)

'''


def section(run: RunConfig, rewards: Sequence[str]) -> str:
    """The list `rewards` of a script, with what it needs. Raises InputError where none is named."""
    if not rewards:
        raise InputError(
            f"a script of {run.trainer} holds what it learns from: name a function of a Python file, as --reward"
            " rewards.py:length, or one of trl's own, as --reward think_format_reward"
        )
    return "\n".join(_lines([named(text) for text in rewards]))


def _lines(rewards: Sequence[RewardName]) -> Iterator[str]:
    own = sorted({reward.name for reward in rewards if reward.file is None})
    if own:
        yield f"from {TRL_REWARDS} import {', '.join(own)}"
    if len(own) < len(rewards):
        yield f"import importlib.util\n\n{_FROM_FILE}"
    values = []
    for reward in rewards:
        if reward.file is not None:
            values.append(f"reward_of({literal(reward.file)}, {literal(reward.name)})")
        elif reward.arguments:
            values.append(call(reward.name, dict(reward.arguments)))
        else:
            values.append(reward.name)
    yield f"rewards = [{', '.join(values)}]"
