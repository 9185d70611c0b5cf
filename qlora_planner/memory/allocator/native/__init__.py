"""The allocator and the replay of traces, compiled; None where the package was installed without a compiler."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from qlora_planner.memory.allocator.caching import Block, CachingAllocator
from qlora_planner.memory.allocator.native.sources import digest

_TokenSegment = tuple[bytes, bytes, int, int]  # all acts, those of an outline, the base of its tables, the layer


class NativeMemory(Protocol):
    """What the compiled type has beside what `CachingAllocator` has; blocks are of a type of its own, with `size`."""

    lost: int
    host_peak: int

    def begin(self) -> None: ...
    def copy(self, limit_bytes: int = ..., /) -> CachingAllocator: ...
    def components(self) -> tuple[int, ...]: ...
    def start(self, gradients: int, *sizes: int) -> None: ...
    def take(self, size_bytes: int, component: int, stream: int = 0) -> Block | None: ...
    def give(self, block: Block | None, component: int) -> None: ...
    def use(self, parts: bytes, places: bytes, tables: int) -> None: ...
    def segment(self, acts: bytes, base: int, layer: int, last: bool = True) -> None: ...
    def stretch(
        self, acts: list[bytes], steps: bytes, phases: int
    ) -> list[tuple[int, int, int, int, tuple[int, ...]] | None]: ...
    def take_all(self, sizes: bytes, component: int, passing: bool) -> None: ...
    def recast(self, sizes: bytes, blocks: list[Block | None], component: int) -> None: ...
    def free_all(self, table: int, component: int) -> None: ...
    def tokens(
        self,
        segments: list[_TokenSegment],
        growing: bytes,
        before: bytes,
        ages: bytes,
        traced: int,
        tokens: int,
        whole: int,
        stride: int,
    ) -> None: ...


class NativeModule(Protocol):
    """What is compiled: see memory/allocator/native/functions.c."""

    SOURCES: str  # the digest of the C that it was made of

    def NativeMemory(self, limit_bytes: int | None, expandable: bool, apart: bool) -> object: ...
    def flat(self, events: tuple[tuple[int, int], ...]) -> tuple[bytes, int]: ...
    def numbered(self, events: tuple[int, ...]) -> bytes: ...
    def pack(
        self, events: bytes, segments: bytes, places: bytes, kept: bytes, storage_marks: bytes, options: bytes
    ) -> tuple[list[bytes], bytes]: ...
    def count(
        self, acts: list[bytes], parts: bytes, places: bytes, tables: int, width: int, gradients: int,
        rounds: list[bytes],
    ) -> list[tuple[list[int], object]]: ...  # fmt: skip
    def levels(self, moments: object, table: bytes) -> bytes: ...


def native_module() -> NativeModule | None:
    """What is compiled of the C beside it; None where nothing is, or where QLORA_PLANNER_NATIVE=never."""
    return None if os.environ.get("QLORA_PLANNER_NATIVE") == "never" else _compiled()


@cache
def _compiled() -> NativeModule | None:
    try:
        module = cast("NativeModule", import_module("qlora_planner.memory.allocator.native._native"))
    except ImportError:
        return None
    return module if fresh(module, Path(__file__).parent) else None


def fresh(module: object, folder: Path) -> bool:
    """Whether a compiled module was made of the C in `folder`, or came without any."""
    sources = digest(folder)
    return sources is None or getattr(module, "SOURCES", None) == sources


def native_memory(limit_bytes: int | None, *, expandable: bool = False, apart: bool = False) -> CachingAllocator | None:
    """An empty device, or None where `native_module` is. `apart`: see ExpandableAllocator."""
    compiled = native_module()
    return None if compiled is None else cast("CachingAllocator", compiled.NativeMemory(limit_bytes, expandable, apart))
