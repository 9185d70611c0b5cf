"""What axolotl's releases do by themselves, and the trl that each of them pins.

Sources: the wheels 0.18.0, 0.19.0, 0.20.0 and 0.21.0 (loaders/model.py, utils/config, their METADATA).
"""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner import installing
from qlora_planner.catalog.trainers import Version, parse_version, trainer_named
from qlora_planner.record import record

PACKAGE = "axolotl"
# From which release on each trl is pinned.
_TRL: Mapping[Version, str] = {(0, 18): "1.8", (0, 19): "1.9", (0, 20): "1.13", (0, 21): "1.14"}
# `should_skip_peft_embedding_upcast`: embeddings that would be cast back stay in 16 bits while preparing.
_KEEPS_EMBEDDINGS: Version = (0, 20)
# Checkpoints that re-enter nothing unless DeepSpeed shares the run.
_NO_REENTRY: Version = (0, 21)


@record
class Release:
    """One release of axolotl, or all that are known where nobody says which. `trl` is what it trains through."""

    version: Version | None
    named: str
    trl: str

    @property
    def casts_embeddings(self) -> bool | None:
        """Whether embeddings and head are float32 for a moment while preparing; None: by the release."""
        return None if self.version is None else self.version < _KEEPS_EMBEDDINGS

    @property
    def reenters(self) -> bool:
        """Whether checkpoints re-enter autograd where no key says so."""
        return self.version is not None and self.version < _NO_REENTRY

    def scores_whole_logits(self, trainer: str) -> bool:
        """Whether its trl makes the whole logits of every pass in this preference trainer."""
        since = trainer_named(trainer).modelled_since
        return since is not None and parse_version(self.trl) < since


def release_of(stack: Mapping[str, str]) -> Release:
    """The release that `stack` names, else the one that is installed here, else any; with the trl that `stack` names,
    else the one that it pins, of the newest that is known where nobody says."""
    text = stack.get(PACKAGE) or installing.installed_versions((PACKAGE,)).get(PACKAGE)
    version = None if text is None else parse_version(text)
    pinned = [trl for first, trl in _TRL.items() if version is None or version >= first]
    said = PACKAGE if text is None else f"{PACKAGE} {text}"
    return Release(version=version, named=said, trl=stack.get("trl") or (pinned or list(_TRL.values()))[-1])
