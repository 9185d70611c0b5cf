"""The cards of `profiles/gpus`: one TOML file each, read only when it is asked for.

    label = "NVIDIA GeForce RTX 4090"     # the driver's name for it
    aliases = ["geforce-4090"]            # further names; one that several cards share is ambiguous, and is refused
    vendor = "nvidia"                     # or amd
    form = "desktop"                      # desktop, laptop, workstation, datacenter
    marketed_gb = 24                      # the figure on the box
    memory_mib = 24564                    # the total that the driver reports (nvidia-smi, NVML, rocm-smi), ECC as sold
    cuda_total_mib = 24080                # the total that CUDA reports on Linux, the smallest that was published
    bandwidth_gb_per_s = 1008             # 10^9 bytes
    link = "NVLink 4"                     # what it reaches others of its kind by, if not by its bus
    link_gb_per_s = 450                   # one direction's, of all its links together
    bf16_tflops = 165.2                   # dense, accumulating in FP32 as training does; fp16_tflops alike
    fp32_tflops = 82.6                    # without tensor cores
    compute_capability = "8.9"
    bf16 = true                           # in hardware
    rent_usd_per_hour = 0.39              # a public list price, not an offer
    shared_with_host = false              # true: one memory for CPU and GPU; memory_mib is what CUDA calls its total
    verified = true                       # false: nobody ran this project's stack on it
    note = "..."

    [[sources]]                           # one for as many facts as it gives; a fact without a source is a fault
    fields = ["memory_mib"]
    source = "nvidia-smi output in ..."
    date = "2026-11-23"                   # when it was taken down

The file's name without `.toml` is the card's name. A key that is left out is unknown. Under Windows CUDA reports the
driver's own total, but does not give all of it; the figures here are Linux's.

Parsing every file takes tens of milliseconds, so a name is first looked for among the file names, then in the labels
and aliases alone, and only the file that it means is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_planner.catalog.gpus.card_file import MAX_FILE_BYTES, load_card
from qlora_planner.catalog.gpus.card_index import read_card_index
from qlora_planner.errors import InputError
from qlora_planner.spec.machine import GpuSpec

# Words of a driver's name that tell no two cards apart.
_NOISE = frozenset({"nvidia", "geforce", "tesla", "amd", "radeon", "instinct", "generation", "gpu"})
_WORD = re.compile(r"[a-z0-9]+")
_NAMING_LINE = re.compile(r"^(?:label|aliases)[ \t]*=.*$", re.MULTILINE)
# Longer than any that a driver has; looking for near ones takes the length squared.
LONGEST_NAME = 200
_SHOWN_CHARS = 60


class GpuCatalogue:
    """Cards of one or more folders; a name in an earlier folder hides the same name in a later one.

    Folders that do not exist are passed over: the user's own need not.
    """

    def __init__(self, dirs: Sequence[Path]) -> None:
        self._files: dict[str, Path] = {}
        for folder in dirs:
            for path in sorted(folder.glob("*.toml")):
                self._files.setdefault(path.stem, path)
        self._by_key: dict[str, str] = {}
        for name in self._files:
            self._by_key.setdefault(_key(name), name)
        self._specs: dict[str, GpuSpec] = {}
        self._indexes: dict[Path, Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
        self._aliases: dict[str, list[str]] | None = None
        self._unreadable: list[str] = []

    def names(self) -> tuple[str, ...]:
        """The names of all cards, sorted."""
        return tuple(sorted(self._files))

    def get(self, name: str) -> GpuSpec:
        """The card whose file is called `name`.

        Raises InputError for a name without a file, and with all faults of the file when it cannot be used.
        """
        if name not in self._files:
            raise InputError(self._unknown(name))
        if name not in self._specs:
            self._specs[name] = self._load(name)
        return self._specs[name]

    def find(self, text: str) -> GpuSpec:
        """The card that `text` means: its name, an alias or the driver's name, however spelt (`RTX 4090`, `4090`).

        Raises InputError naming the nearest cards for an unknown name and the candidates for an ambiguous one.
        """
        if len(text) > LONGEST_NAME:
            raise InputError(f"--gpu: {len(text):,} characters are no card of the catalogue")
        key = _key(text)
        keys = [key, f"rtx{key}", f"gtx{key}"] if key[:1].isdigit() else [key]
        for spelling in keys:
            if spelling in self._by_key:
                return self.get(self._by_key[spelling])
        for spelling in keys:
            names = self._alias_index().get(spelling, [])
            if len(names) > 1:
                raise InputError(f"--gpu: {_shown(text)} is several cards; name one: {', '.join(sorted(names))}")
            if names:
                return self.get(names[0])
        raise InputError(self._unknown(text))

    def all(self) -> tuple[GpuSpec, ...]:
        """Every card, by name. Raises InputError with the faults of all files that cannot be used."""
        specs, faults = [], []
        for name in self.names():
            try:
                specs.append(self.get(name))
            except InputError as fault:
                faults.append(str(fault))
        if faults:
            raise InputError(" | ".join(faults))
        return tuple(specs)

    def _load(self, name: str) -> GpuSpec:
        """By its folder's index where that is current: a TOML parser takes longer to import than all of it to read."""
        path = self._files[name]
        if path.parent not in self._indexes:
            self._indexes[path.parent] = read_card_index(path.parent)
        return load_card(path, self._indexes[path.parent].get(name))

    def nearest(self, text: str) -> tuple[str, ...]:
        """Up to three names of cards spelt most like `text`, the likeliest first."""
        import difflib  # only a misspelt name needs it, and it takes as long to import as a card takes to find

        spellings = {alias: names[0] for alias, names in self._alias_index().items()} | self._by_key
        close = difflib.get_close_matches(_key(text)[:_SHOWN_CHARS], spellings, n=8, cutoff=0.5)
        return tuple(dict.fromkeys(spellings[spelling] for spelling in close))[:3]

    def _unknown(self, text: str) -> str:
        near = self.nearest(text)
        meant = f"; did you mean {', '.join(near)}?" if near else ""
        broken = f"; not read: {', '.join(self._unreadable)}" if self._unreadable else ""
        return (
            f"--gpu: {_shown(text)} is no card of the catalogue{meant} (`qlora-plan gpus` lists them; "
            f"a size is written 24GB, 24GiB or 24564MiB){broken}"
        )

    def _alias_index(self) -> dict[str, list[str]]:
        """Compact label or alias -> names of the cards that carry it."""
        if self._aliases is None:
            self._aliases = {}
            for name, path in self._files.items():
                try:
                    spellings = {_key(spelling) for spelling in _spellings(path)}
                except InputError:
                    # Asked for by its own name, the file says what is wrong with it.
                    self._unreadable.append(str(path))
                    continue
                for key in spellings - {""}:
                    self._aliases.setdefault(key, []).append(name)
        return self._aliases


def _spellings(path: Path) -> Iterator[str]:
    """The label and aliases of a card's file, without parsing the rest. Raises InputError if that cannot be read."""
    import tomllib  # late: cards are read from their index where it is current

    try:
        with path.open(encoding="utf-8") as file:
            head = file.read(MAX_FILE_BYTES).partition("\n[")[0]
        naming = tomllib.loads("\n".join(_NAMING_LINE.findall(head)))
    except (OSError, ValueError, RecursionError):
        # Not in the plain form, such as a list over several lines.
        spec = load_card(path)
        naming = {"label": spec.label, "aliases": list(spec.aliases)}
    aliases = naming.get("aliases")
    for spelling in (naming.get("label"), *(aliases if isinstance(aliases, list) else ())):
        if isinstance(spelling, str):
            yield spelling


def _key(text: str) -> str:
    """`text` without case, separators and the words that tell nothing: `NVIDIA GeForce RTX 4090` -> `rtx4090`."""
    return "".join(word for word in _WORD.findall(text.lower()) if word not in _NOISE)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
