"""Where profiles, cards and measurements are looked up, and where caches go.

Folders with `models/`, `gpus/` and `measurements/`, first one first: `--profiles DIR`, the folders in
QLORA_PLANNER_PROFILES, the user's own, the copy in the installed package, the repository next to the package.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from stat import S_ISDIR

from qlora_planner.spec.faults import refuse

PROFILES_VARIABLE = "QLORA_PLANNER_PROFILES"
KINDS = ("models", "gpus", "measurements", "calibrations", "tapes", "configs", "fields", "laws", "families", "whole")
_APP = "qlora-planner"
_PACKAGE = Path(__file__).resolve().parent.parent


def profile_roots(profiles: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Every folder that exists, in the order of lookup.

    `profiles` is what `--profiles` named. Raises InputError when it, or a folder of QLORA_PLANNER_PROFILES, does not
    exist or holds nothing that could be looked up.
    """
    named = [] if profiles is None else [_checked(Path(profiles), "--profiles")]
    from_environment = os.environ.get(PROFILES_VARIABLE, "")
    named += [_checked(Path(part), PROFILES_VARIABLE) for part in from_environment.split(os.pathsep) if part]
    roots: dict[tuple[int, int], Path] = {}
    for root in (*named, user_profiles(), _PACKAGE / "_profiles", *_repository()):
        with suppress(OSError, ValueError):
            status = os.stat(root)
            if S_ISDIR(status.st_mode):
                roots.setdefault((status.st_dev, status.st_ino), root)
    return tuple(roots.values())


def _inside(kind: str, profiles: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Every folder of a kind that exists; see `profile_roots` for the order and the errors."""
    return tuple(root / kind for root in profile_roots(profiles) if (root / kind).is_dir())


models_dirs = partial(_inside, "models")  # profiles
whole_dirs = partial(_inside, "whole")  # profiles of models with their towers
gpus_dirs = partial(_inside, "gpus")
calibrations_dirs = partial(_inside, "calibrations")
tapes_dirs = partial(_inside, "tapes")  # compiled traces
families_dirs = partial(_inside, "families")  # traces that several models share
configs_dirs = partial(_inside, "configs")  # the catalogue's
fields_dirs = partial(_inside, "fields")  # what shapes each class


def laws_dirs(profiles: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Folders of the laws of classes; see `profile_roots` for the order and the errors."""
    return _inside("laws", profiles)


def user_profiles() -> Path:
    """The user's own profiles; the folder may not exist."""
    import platformdirs  # late: 17 ms, a sixth of a whole answer

    return Path(platformdirs.user_data_dir(_APP, appauthor=False)) / "profiles"


def repository_profiles() -> Path | None:
    """The profiles of the checkout that this package runs from; None for an installed package."""
    return next(iter(_repository()), None)


def evidence_path() -> Path:
    """Where this user's verifications are kept, one JSON line each; the file may not exist."""
    return user_profiles().parent / "evidence.jsonl"


def cache_dir() -> Path:
    """Where built profiles are kept; the folder may not exist."""
    import platformdirs

    return Path(platformdirs.user_cache_dir(_APP, appauthor=False))


def _repository() -> tuple[Path, ...]:
    """The repository's own folder. In site-packages, a folder of that name would be another project's."""
    root = _PACKAGE.parent
    return (root / "profiles",) if (root / "pyproject.toml").is_file() else ()


def _checked(root: Path, option: str) -> Path:
    try:
        root = root.expanduser()
        exists = root.is_dir()
        useful = any((root / kind).is_dir() for kind in KINDS)
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, a null character, no permission
        refuse([f"{str(root)!r} cannot be read: {error}"], option)
    if not exists:
        refuse([f"no such folder: {str(root)!r}"], option)
    if not useful:
        refuse([f"{str(root)!r} holds neither models/ nor gpus/ nor measurements/"], option)
    return root
