"""Reward functions of a run: one that a Python file defines, `rewards.py:length`, or one of trl's own by its name."""

from __future__ import annotations

import ast
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import field
from functools import wraps
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError, MissingError, one_line
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import listed, quoted

RewardFunction = Callable[..., Any]
# What trl calls a reward function with beside the columns of the data (trl 1.16, _calculate_rewards of
# grpo_trainer.py and rloo_trainer.py).
PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
# Columns that it keeps for itself.
_KEPT = ("prompt", "completion", "completion_ids")
TRL_REWARDS = "trl.rewards"


@record
class RewardName:
    """What `--reward` names: a function of a Python `file`, or (`file` None) one of trl's own, which a maker of rewards
    makes with `arguments`."""

    file: str | None
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def named(text: str) -> RewardName:
    """What a reward's text names. Raises InputError for a text that names none."""
    file, colon, name = text.rpartition(":")
    if colon and file.lower().endswith(".py"):
        if not name.isidentifier():
            raise InputError(f"--reward {quoted(text)}: name a function after the file, as {file}:length")
        return RewardName(file=file, name=name)
    if text.lower().endswith(".py"):
        raise InputError(f"--reward {quoted(text)}: name one of its functions after it, as {text}:length")
    return _of_trl(text.removeprefix(f"{TRL_REWARDS}."), text)


def _of_trl(name: str, text: str) -> RewardName:
    """`think_format_reward`, or `get_repetition_penalty_reward(ngram_size=3)` with figures and words alone."""
    wrong = InputError(
        f"--reward {quoted(text)}: name a function of a Python file, as rewards.py:length, or one of trl's own, as"
        " think_format_reward"
    )
    try:
        node = ast.parse(name, mode="eval").body
        if isinstance(node, ast.Name):
            return RewardName(file=None, name=node.id)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise wrong
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    except (SyntaxError, ValueError, RecursionError):
        raise wrong from None
    return RewardName(file=None, name=node.func.id, arguments=arguments)


def absolute(text: str) -> str:
    """The same reward, its file by its whole path: a run may be gone on with from elsewhere."""
    reward = named(text)
    return text if reward.file is None else f"{Path(reward.file).absolute()}:{reward.name}"


def loaded(text: str) -> RewardFunction:
    """The function itself. A file is run for it, as Python runs a module; what it prints goes to stderr.

    Raises InputError naming what is not there, cannot be called or breaks, MissingError for a package that is missing.
    """
    reward = named(text)
    value = _own_of_trl(reward, text) if reward.file is None else _in_file(reward, text)
    if not callable(value):
        raise InputError(f"--reward {quoted(text)}: {reward.name} is {type(value).__name__}, which cannot be called")
    function: RewardFunction = value
    return function


def _in_file(reward: RewardName, text: str) -> Any:
    path = Path(str(reward.file))
    if not path.is_file():
        raise InputError(f"--reward {quoted(text)}: there is no such file")
    spec = spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its own module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what lies beside the file can be imported by it
    with _told_of(text, path), redirect_stdout(sys.stderr):
        spec.loader.exec_module(module)
    if not hasattr(module, reward.name):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        has = f"it has {listed(functions)}" if functions else "it defines nothing that can be called"
        raise InputError(f"--reward {quoted(text)}: {path.name} has no {reward.name}; {has}")
    return getattr(module, reward.name)


def _own_of_trl(reward: RewardName, text: str) -> Any:
    """One of trl's own, or what its maker makes. Raises InputError naming those that the installed trl has."""
    from importlib import import_module

    module = import_module(TRL_REWARDS)
    own = [name for name in getattr(module, "__all__", dir(module)) if inspect.isfunction(getattr(module, name, None))]
    if reward.name not in own:
        raise InputError(
            f"--reward {quoted(text)}: the installed trl has no such reward; it has {', '.join(sorted(own))}; a"
            " function of your own is named by its file, as rewards.py:length"
        )
    function = getattr(module, reward.name)
    parameters = inspect.signature(function)
    if "completions" in parameters.parameters:
        if reward.arguments:
            raise InputError(f"--reward {quoted(text)}: {reward.name} is no maker of rewards: leave the () out")
        return function
    try:
        parameters.bind(**reward.arguments)
    except TypeError as error:
        raise InputError(
            f"--reward {quoted(text)}: {reward.name}{parameters}: {error}; give it as {reward.name}(name=value)"
        ) from None
    with _told_of(text, None):
        return function(**reward.arguments)


def checked(texts: Sequence[str], row: Mapping[str, Any]) -> list[RewardFunction]:
    """The functions of a run whose data has rows like `row`, each one called as trl will call it as far as that can be
    known before.

    Raises InputError where two have one name in trl's figures, and for a function that takes no such call; one of trl's
    own is called, and what it then raises is told.
    """
    functions = []
    for text in texts:
        function = loaded(text)
        columns = [name for name in row if name not in _KEPT]
        try:
            inspect.signature(function).bind(**dict.fromkeys((*PASSED, *columns)))
        except TypeError as error:
            raise InputError(
                f"--reward {quoted(text)}: trl calls it with {', '.join((*PASSED, *columns))}: {error}; let it take"
                " **kwargs beside what it looks at, which the data must have"
            ) from None
        except ValueError:
            pass  # written in C: what it takes is not known before it is called
        if named(text).file is None:
            _try(guarded(function, text), row, columns)
        functions.append(function)
    names = [getattr(function, "__name__", type(function).__name__) for function in functions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--reward: two are called {twice[0]}, which trl's figures could not tell apart")
    return functions


def _try(function: RewardFunction, row: Mapping[str, Any], columns: Collection[str]) -> None:
    """One short answer to the first prompt."""
    if inspect.iscoroutinefunction(function):
        return
    chats = isinstance(row["prompt"], list)
    answer: Any = [{"role": "assistant", "content": "an answer"}] if chats else "an answer"
    passed = {**dict.fromkeys(PASSED[3:]), **{name: [row[name]] for name in columns}}
    try:
        function(prompts=[row["prompt"]], completions=[answer], completion_ids=[[1]], **passed)
    except InputError as error:
        if chats:
            raise
        raise InputError(f"{error}; trl's own are made for prompts that are lists of messages") from error


def guarded(function: RewardFunction, text: str) -> RewardFunction:
    """The function under its own name, with what goes wrong in it said as its own fault: InputError for what it raises
    and for an answer that is not one number (or None) a completion, MissingError for a package that it lacks."""
    file = named(text).file
    path = None if file is None else Path(file)
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004

        async def waited(*, completions: Sequence[Any], **more: Any) -> list[float | None]:
            with _told_of(text, path):
                answer = await function(completions=completions, **more)
            return _numbers(answer, len(completions), text)

        waited.__name__ = name
        return waited

    def called(*, completions: Sequence[Any], **more: Any) -> list[float | None]:
        with _told_of(text, path):
            answer = function(completions=completions, **more)
        return _numbers(answer, len(completions), text)

    wrapped: RewardFunction = wraps(function)(called)
    wrapped.__name__ = name
    return wrapped


def _numbers(answer: Any, wanted: int, text: str) -> list[float | None]:
    try:
        rewards = [None if value is None else float(value) for value in answer]
    except (TypeError, ValueError):
        raise InputError(
            f"--reward {quoted(text)}: it returned {quoted(answer)}; trl needs a list of numbers, one a completion"
        ) from None
    if len(rewards) != wanted:
        raise InputError(f"--reward {quoted(text)}: it returned {len(rewards)} rewards for {wanted} completions")
    return rewards


@contextmanager
def _told_of(text: str, path: Path | None) -> Iterator[None]:
    """What somebody else's code raises as the fault of this reward, with the line of its file."""
    try:
        yield
    except (InputError, MissingError):
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        lines += [error.lineno] if isinstance(error, SyntaxError) else []
        line = f" at line {lines[-1]}" if lines else ""
        says = one_line([" ".join(str(error).split())], f"{type(error).__name__}")
        kind = MissingError if isinstance(error, ImportError) else InputError
        raise kind(f"--reward {quoted(text)}: it raised {says}{line}") from error


def trainer_arguments(run: RunConfig, rewards: Sequence[str]) -> dict[str, Any]:
    """What a trainer that generates learns from; nothing for others. Raises as `loaded` does."""
    if trainer_named(run.trainer).generation is None:
        return {}
    return {"reward_funcs": [guarded(loaded(text), text) for text in rewards]}
