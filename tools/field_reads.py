"""Which fields of a config the model, PEFT and the trainer read, whoever they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from transformers import AutoConfig, PretrainedConfig


@contextlib.contextmanager
def reads_noted() -> Iterator[set[str]]:
    """Names that are read off any config meanwhile, except while one is made or written out as a dictionary.

    Such a dictionary notes what is taken from it in turn. A name that is asked for and not there counts as read.
    """
    reads: set[str] = set()
    paused = [0]
    ask, make, write = PretrainedConfig.__getattribute__, AutoConfig.for_model, PretrainedConfig.to_dict

    class Noted(dict[str, Any]):
        """A config's dictionary that notes what is read from it."""

        def __getitem__(self, key: str) -> Any:
            reads.add(key)
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            reads.add(key)
            return super().get(key, default)

    def noted(config: Any, name: str) -> Any:
        if not paused[0] and not name.startswith("__"):
            reads.add(name)
            own = ask(config, "attribute_map").get(name)
            if own is not None:
                reads.add(own)
        return ask(config, name)

    def quietly(function: Any, wrap: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            paused[0] += 1
            try:
                return wrap(function(*args, **options))
            finally:
                paused[0] -= 1

        return call

    with (
        mock.patch.object(PretrainedConfig, "__getattribute__", noted),
        mock.patch.object(AutoConfig, "for_model", quietly(make, lambda made: made)),
        mock.patch.object(PretrainedConfig, "to_dict", quietly(write, Noted)),
    ):
        yield reads
