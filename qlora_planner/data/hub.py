"""Files of a Hub repository: from the local cache of Hub files where they are there, else from the Hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from qlora_planner.data.files import FORMATS
from qlora_planner.data.patience import bound_answers, fetched
from qlora_planner.errors import InputError, MissingError
from qlora_planner.hub_address import check_endpoint, endpoint
from qlora_planner.text import plain, quoted

# What AutoTokenizer may read; weights are not among them.
_TOKENIZER = [
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken", "tekken.json",
    "spiece.model", "sentencepiece*.model", "chat_template*", "additional_chat_templates/*", "config.json",
]  # fmt: skip
_WAIT_S = 5.0
_LARGEST_TOKENIZER_BYTES = 256 << 20
# org/name, and folders in it.
_DATASET = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(?:/[\w.-]+)*")
_TRAIN = re.compile(r"(?:^|[/_.-])train(?:ing)?(?:[/_.-]|$)")
# Files that say something about a dataset, and hold no rows.
_ABOUT = ("dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json")

Tell = Callable[[str], None]


def snapshot(
    repo_id: str,
    patterns: Sequence[str],
    *,
    what: str,
    instead: str,
    whole: Callable[[Path], bool],
    tell: Tell = lambda _text: None,
    kind: str = "model",
    largest_bytes: int | None = None,
) -> Path:
    """The folder with those files of a repository that match `patterns`, fetched where they are not here and `whole`.

    `what` are the files in words, `instead` ends the messages: what else can be done; `tell` hears that something is
    fetched. `kind` is model or dataset; more than `largest_bytes` are given up. Raises InputError for what is no
    repository's name and for a broken HF_ENDPOINT, MissingError for one that is not there, that is gated, or that
    cannot be fetched now.
    """
    check_endpoint()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    repository = plain(repo_id)
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise MissingError(f"{repository}: huggingface_hub cannot be imported ({plain(error)}); {instead}") from None

    def files(**options: Any) -> Path:
        chosen: dict[str, Any] = {"allow_patterns": list(patterns), **options}
        if kind != "model":
            chosen["repo_type"] = kind
        return Path(huggingface_hub.snapshot_download(repo_id, **chosen))

    try:
        try:
            cached = files(local_files_only=True)
            if whole(cached):
                return cached
        except (errors.LocalEntryNotFoundError, FileNotFoundError):
            pass  # not cached, or not all of it: asked for below
        if constants.HF_HUB_OFFLINE:
            raise MissingError(
                f"{repository}: no {what} among the cached Hub files, and HF_HUB_OFFLINE forbids asking; {instead}"
            )
        tell(f"fetching {repository} from the Hub")
        bound_answers()

        bar: Any = import_module("huggingface_hub.utils").tqdm

        def download(listed: Callable[[], None]) -> Path:
            class Bar(bar):  # type: ignore[misc]
                def __init__(self, *args: Any, **more: Any) -> None:
                    listed()
                    super().__init__(*args, **more)

            return files(etag_timeout=_WAIT_S, tqdm_class=Bar)

        kept_in = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo_id.replace('/', '--')}"
        return fetched(download, kept_in, largest_bytes=largest_bytes, repository=repository)
    except (InputError, MissingError):
        raise
    except errors.HFValidationError:
        raise InputError(f"{quoted(repo_id)} is neither a folder nor the id of a Hub repository; {instead}") from None
    except errors.GatedRepoError:
        page = f"{endpoint()}/{'' if kind == 'model' else kind + 's/'}{repository}"
        raise MissingError(
            f"{repository}: gated; accept its licence at {page}, then log in with `hf auth login` or set HF_TOKEN; or"
            f" {instead}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise MissingError(
            f"{repository}: no such {kind} on the Hub, or a private one; log in with `hf auth login`, or {instead}"
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise MissingError(f"{repository}: its {what} cannot be fetched ({_reason(error)}); {instead}") from None
    except Exception as error:  # a proxy's page in place of an answer breaks the library where nobody foresaw it
        raise MissingError(
            f"{repository}: its {what} cannot be fetched (the answer of {plain(endpoint())} is not understood:"
            f" {_reason(error)}); {instead}"
        ) from None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {plain(lines[0])}"[:120] if lines else type(error).__name__


def tokenizer_files(repo_id: str, instead: str) -> Path:
    """The folder with a tokenizer's files. Raises as `snapshot` does."""
    import_module("huggingface_hub.utils").disable_progress_bars()
    return snapshot(
        repo_id,
        _TOKENIZER,
        what="tokenizer",
        instead=instead,
        whole=_has_tokenizer,
        largest_bytes=_LARGEST_TOKENIZER_BYTES,
    )


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists() and (folder / "tokenizer_config.json").exists()


def rows_of(text: str, tell: Tell = lambda _text: None) -> str:
    """`text` as `data.find_files` takes it: what is here as it is, a Hub dataset as the pattern of its training files.

    A Hub dataset is `org/name`, or `org/name/folder` where it holds several. Raises MissingError as `snapshot` does,
    InputError for one without files that are understood, and for one that holds several sets.
    """
    named = _DATASET.fullmatch(text) and Path(text).suffix.lower() not in FORMATS
    if not named or os.path.exists(os.path.expanduser(text)) or glob.has_magic(text):
        return text
    org, name, *inside = text.split("/")
    folder = snapshot(
        f"{org}/{name}",
        ["/".join([*inside, f"*{suffix}"]) for suffix in FORMATS],
        what="data files",
        instead="name a file or folder that is here, as --data train.jsonl",
        whole=lambda path: bool(_data_files(path)),
        tell=tell,
        kind="dataset",
    )
    files = _data_files(folder.joinpath(*inside))
    chosen = [path for path in files if _TRAIN.search(str(path.relative_to(folder)))] or files
    if not chosen:
        raise InputError(
            f"{plain(text)}: this Hub dataset holds no files that are understood; load it and save parquet"
        )
    folders = sorted({path.parent for path in chosen})
    if len(folders) > 1:
        names = ", ".join(plain(f"{org}/{name}/{holder.relative_to(folder)}") for holder in folders[:4])
        raise InputError(f"{plain(text)}: holds {len(folders)} sets; name one, as --data {names}")
    train = "*train*" if any("train" in path.name for path in chosen) else "*"
    return f"{glob.escape(str(folders[0]))}/{train}{chosen[0].suffix}"


def _data_files(folder: Path) -> list[Path]:
    """Every file with rows, of the kind that there is most of."""
    with_rows = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in FORMATS)
    inside = [path for path in with_rows if path.name not in _ABOUT and path.is_file() and path.name[:1] != "."]
    kinds = [path.suffix for path in inside]
    most = max(set(kinds), key=kinds.count, default="")
    return [path for path in inside if path.suffix == most]
