"""Where families are traced: sizes between which nothing switches, as `memory.sweep.validity`, at a toy's window."""

from __future__ import annotations

from qlora_planner.record import record
from qlora_planner.sources.families import WHOLE
from tools.compiling import Point
from tools.families.toys import TOYS

_RANKS = (8, 24, 56, 40, 16, 72)
# What makes lengths fill no whole number of blocks, and lengths that do: blocks are of 128 or 256 tokens.
_NOT_WHOLE = (16, 16, 32, 80, 32, 16)
_CHUNK = 256
_WHOLE_TILES = (1280, 1024, 1024, 1024, 768, 768)
# Rows that a class goes through in chunks of 64 tokens: of few chunks, since each takes some hundred events.
_DELTA_CHUNK = 64
_DELTA_SEQS = {
    "short": (448, 512, 448, 512, 512, 448),
    "middle": (768, 1216, 960, 1088, 832, 1344),
    "long": (4160, 4416, 4224, 4352, 4480, 4288),
}
# What rows lack of whole chunks, where they are to fill none.
_NOT_FILLED = (16, 48, 32, 16, 32, 48)
_DELTA_TILES = (8256, 8384, 8448, 8320, 8512, 8576)
_DELTA_ROWS = ((2, 768), (3, 576), (5, 640), (4, 704), (3, 1088), (2, 1344))


@record
class Region:
    """A kind of region: `length` short (to 512 tokens), middle (to 4,096) or long; of one row, or of several; where the
    class has a sliding window, rows that lie within it or beyond."""

    length: str
    batched: bool
    beyond: bool | None = None
    tiled: bool = False  # traced with three tiles of the head each way, for a trainer that scores in tiles
    whole: bool | None = None  # where rows are taken in blocks: whether they fill a whole number of them
    chunk: int = _CHUNK  # tokens of a block

    @property
    def name(self) -> str:
        """How a family's file names it."""
        window = {None: "", True: " beyond", False: " within"}[self.beyond]
        return f"{'batched' if self.batched else 'single'} {self.length}{window}{WHOLE if self.whole else ''}"

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding windows of the toys that put every traced row within or beyond; none for a class without."""
        return windows_of(self.beyond, short=self.batched or self.length == "short")

    def points(self, count: int) -> list[Point]:
        """Sizes (batch, sequence, rank) for as many traces, no two alike."""
        points = self._delta_points(count) if self.chunk == _DELTA_CHUNK else self._points(count)
        if self.whole is None or (self.whole and self.chunk == _DELTA_CHUNK):
            return points
        if self.chunk == _DELTA_CHUNK:
            return [(batch, seq - less, rank) for (batch, seq, rank), less in zip(points, _NOT_FILLED, strict=False)]
        if not self.whole:
            return [(batch, seq + more, rank) for (batch, seq, rank), more in zip(points, _NOT_WHOLE, strict=False)]
        if self.batched and self.tiled and self.length == "long":
            return [(batch, seq, rank) for (batch, _, rank), seq in zip(points, _WHOLE_TILES, strict=False)]
        return [(batch, _CHUNK * round(seq / _CHUNK), rank) for batch, seq, rank in points]

    def _delta_points(self, count: int) -> list[Point]:
        if self.batched and self.length == "middle":
            return [(*row, rank) for row, rank in zip(_DELTA_ROWS[:count], _RANKS[:count], strict=True)]
        if self.batched:
            return self._points(count)
        seqs = _DELTA_TILES if self.tiled and self.length == "long" else _DELTA_SEQS[self.length]
        return [(1, seq, rank) for seq, rank in zip(seqs[:count], _RANKS[:count], strict=True)]

    def _points(self, count: int) -> list[Point]:
        ranks = _RANKS[:count]
        if not self.batched:
            seqs = {
                "short": (144, 272, 432, 368, 208, 336),
                "middle": (1088, 1984, 3392, 2624, 1472, 3776),
                "long": (4672, 7232, 8128, 5696, 7744, 6464),
            }[self.length]
            if self.tiled and self.length == "long":
                seqs = (8640, 11200, 12096, 9664, 11712, 10432)
            return [(1, seq, rank) for seq, rank in zip(seqs[:count], ranks, strict=False)]
        # Lengths are alike modulo 128, up to which kernels before compute capability 8.0 round keys of wide heads.
        if self.length == "middle":
            batches, seqs = (2, 3, 5, 4, 3, 2), (832, 448, 320, 704, 1088, 1344)
        else:  # rows enough that the tokens that are no padding fill a tile of the head
            batches, seqs = (8, 9, 11, 10, 13, 12), (832, 1088, 704, 960, 1216, 576)
            if self.tiled:
                seqs = (1344, 1216, 960, 1152, 896, 832)
        return list(zip(batches[:count], seqs[:count], ranks, strict=False))


def regions(windowed: bool, chunked: bool = False) -> list[Region]:
    """Every kind of region, those that are asked for most first."""
    sides = (False, True) if windowed else (None,)
    order = (("middle", False), ("middle", True), ("long", True), ("long", False), ("short", False))
    return [
        Region(length=length, batched=batched, beyond=side, whole=whole)
        for length, batched in order
        for whole in ((True, False) if chunked else (None,))
        for side in sides
        if not (whole and length == "short")  # too few lengths there are
    ]


def windows_of(beyond: bool | None, *, short: bool) -> tuple[int, ...]:
    """Sliding windows of the toys that put every traced row within or beyond, `short` ones too; none for a class
    without."""
    if beyond is None:
        return ()
    low, step = (1 << 16, 0) if not beyond else (65, 4) if short else (515, 6)
    return tuple(low + step * at for at in range(TOYS))
