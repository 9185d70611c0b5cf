"""What the recorder writes down: births and deaths of storages, in order. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One birth (`size` > 0) or death (`size` < 0) of the storage `storage`; `size` in unrounded bytes."""

    storage: int
    size: int
    op: str = ""
