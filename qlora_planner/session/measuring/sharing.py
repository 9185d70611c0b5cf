"""`verify --share`: one row of evidence for a pull request, without anything that says who ran it or where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError, MissingError
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.evidence import Measurement
    from qlora_planner.session.session import Session

# Under the profiles of a clone.
SHARED = Path("measurements") / "shared"


def shared_folder(session: Session) -> Path:
    """Where shared rows lie in a clone of the repository, else here."""
    from qlora_planner.sources.locations import repository_profiles

    root = Path(session.profiles) if session.profiles else repository_profiles()
    return Path() if root is None else root / SHARED


def shared_row(session: Session, measurement: Measurement) -> Measurement:
    """The row that would be shared. Raises InputError where it says nothing of a whole run on a card."""
    from qlora_planner.evidence.sharing import shareable, sharing_faults

    try:
        profile = session.model(measurement.model, build="never")
        shipped = profile.config_sha256 == measurement.config_sha256
    except (InputError, MissingError):
        shipped = False
    row = shareable(measurement, shipped=shipped)
    if faults := sharing_faults(row):
        raise InputError(f"--share: nothing to share: {'; '.join(faults)}")
    return row


def write_row(folder: Path, row: Measurement) -> Path:
    """Write it as a file of its own and give its path. Raises InputError where it cannot be written."""
    from qlora_planner.evidence.sharing import row_path, row_text
    from qlora_planner.exchange.files import write_text

    path = folder / row_path(row)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--share: {plain(path.parent)} cannot be made: {error.strerror or error}") from None
    write_text(path, row_text(row), force=True)
    return path
