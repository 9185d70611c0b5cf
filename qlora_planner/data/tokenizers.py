"""Find a tokenizer and load it as transformers would, without waiting for transformers where that can be shown equal.

Two doors. `tokenizer.json` alone is read where transformers would take it as it is: its class is the generic one and
nothing in `tokenizer_config.json` changes it. Everything else is built by AutoTokenizer in a process of its own, which
takes seconds and a few hundred MiB, and what it built is kept for the next time.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qlora_planner.bounded import Unreadable, read_bytes, write_whole
from qlora_planner.data.counting import Tokenised
from qlora_planner.data.hub import tokenizer_files
from qlora_planner.data.templates import ChatTemplate
from qlora_planner.errors import InputError, MissingError
from qlora_planner.installing import install_line
from qlora_planner.isolation import child_environment, python_module
from qlora_planner.text import plain, quoted

Warn = Callable[[str], None]

_GENERIC = {"PreTrainedTokenizerFast", "TokenizersBackend"}
# transformers/models/auto/tokenization_auto.py of 5.17 overrules the generic class for the first; the others get a
# regular expression of their own in tokenization_utils_tokenizers.py, `_patch_mistral_regex`.
_OVERRULED = {"qwen2", "mistral", "mistral3", "voxtral", "ministral", "pixtral"}
# Settings that make transformers change the tokenizer that it read.
_CHANGING = {
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "split_special_tokens",
    "auto_map",
    "fix_mistral_regex",
}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# How every message ends that asks for another tokenizer.
INSTEAD = "give one with --tokenizer DIR, or guess with --chars-per-token 4"
# The largest in use have 34 MB; templates have some ten kB.
LARGEST_BYTES, LARGEST_TEMPLATE_BYTES = 64 << 20, 1 << 20
_BUILD_S = 180


def load_tokenizer(name: str, *, chats: bool, cache: Path | None = None, warn: Warn = lambda _text: None) -> Tokenised:
    """The tokenizer of a folder or of a Hub repository.

    `chats` says whether its chat template is needed. `cache` is a folder for what AutoTokenizer built; None keeps
    nothing. Raises MissingError, with what to install or to give, where there is none or it cannot be loaded.
    """
    if find_spec("tokenizers") is None:
        raise MissingError(
            f"counting tokens needs a tokenizer: {install_line('data')}, or guess with --chars-per-token 4"
        )
    folder = _folder_of(name)
    parts = as_it_is(folder)
    if parts is None and find_spec("transformers") is None:
        parts = as_it_is(folder, strict=False)
        if parts is None:
            raise MissingError(
                f"{plain(name)}: has no tokenizer.json, and building it needs transformers: {install_line('train')}"
            )
        warn(f"{plain(name)}: read from its tokenizer.json; transformers, which may change it, is not installed")
    if parts is None:
        parts = _built(name, folder, cache)
    return tokenised(parts, plain(name), chats)


def _folder_of(name: str) -> Path:
    path = Path(name).expanduser()
    with suppress(OSError, ValueError):  # a name that no disk takes is none of a folder
        if path.is_file():
            path = path.parent
        if path.is_dir():
            if not any(_tokenizer_files(path)):
                raise MissingError(f"{plain(name)}: holds no tokenizer (no tokenizer.json); {INSTEAD}")
            return path
    if name.startswith((".", "/", "~")):
        raise InputError(f"--tokenizer: no such folder: {quoted(name)}")
    folder = tokenizer_files(name, INSTEAD)
    if not any(_tokenizer_files(folder)):
        raise MissingError(f"{plain(name)}: the repository holds no tokenizer; {INSTEAD}")
    return folder


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    """What a tokenizer can be made of, in a fixed order."""
    for pattern in ("tokenizer*", "*.model", "vocab*", "merges.txt", "added_tokens.json", "tekken.json", "*.tiktoken"):
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is no such file. Raises MissingError for a file that is broken."""
    try:
        if not path.is_file():
            return {}
        raw = json.loads(_whole(path))
    except (OSError, ValueError, RecursionError) as error:
        raise MissingError(f"{plain(path)}: cannot be read ({plain(error)[:120]}); {INSTEAD}") from None
    return raw if isinstance(raw, dict) else {}


def as_it_is(folder: Path, strict: bool = True) -> dict[str, Any] | None:
    """What is in the files, where transformers would change nothing; None where it might, if `strict`."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    config = _read(folder / "tokenizer_config.json")
    if strict and (
        config.get("tokenizer_class") not in _GENERIC
        or _read(folder / "config.json").get("model_type") in _OVERRULED
        or any(config.get(name) is not None for name in _CHANGING)
        or not config.keys().isdisjoint({"post_processor", "extra_special_tokens", "additional_special_tokens"})
    ):
        return None
    try:
        text = _whole(file).decode()
    except ValueError as error:
        raise MissingError(f"{plain(file)}: cannot be read ({plain(error)[:120]}); {INSTEAD}") from None
    raw = _read(file) if strict else {}
    named = {**_read(folder / "special_tokens_map.json"), **config}
    special = {name: value for name in _SPECIAL if (value := _content(named.get(name)))}
    if strict and not _holds_all(raw, special, config.get("added_tokens_decoder")):
        return None
    return {"tokenizer": text, "special_tokens": special, "chat_template": _template(folder, config), "split": False}


def _content(token: Any) -> str | None:
    """A special token is written as text or as an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _holds_all(raw: Mapping[str, Any], special: Mapping[str, str], decoder: Any) -> bool:
    """Whether tokenizer.json has a post-processor and every token of the config, so that nothing gets added."""
    if raw.get("post_processor") is None:
        return False
    added = {token["id"]: token for token in raw.get("added_tokens") or [] if isinstance(token, dict)}
    if not {token.get("content") for token in added.values()}.issuperset(special.values()):
        return False
    if not isinstance(decoder, dict):
        return decoder is None
    return all(_same(added.get(int(index)), token) for index, token in decoder.items())


def _same(there: Any, configured: Any) -> bool:
    both = isinstance(there, dict) and isinstance(configured, dict)
    return both and all(there.get(name) == configured.get(name) for name in ("content", *_FLAGS))


def _template(folder: Path, config: Mapping[str, Any]) -> Any:
    """The chat template: a file of its own goes before the config's."""
    texts: dict[str, str] = {}
    file = folder / "chat_template.jinja"
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    try:
        if file.is_file():
            texts["default"] = read_bytes(file, LARGEST_TEMPLATE_BYTES, "chat template").decode()
        texts |= {path.stem: read_bytes(path, LARGEST_TEMPLATE_BYTES, "chat template").decode() for path in others}
    except (Unreadable, OSError, ValueError) as error:
        raise MissingError(f"{plain(folder)}: its chat template cannot be read ({plain(error)[:120]})") from None
    if texts:
        return texts if len(texts) > 1 or "default" not in texts else texts["default"]
    raw = config.get("chat_template")
    if isinstance(raw, list):
        return {str(row["name"]): str(row["template"]) for row in raw if isinstance(row, dict)}
    return raw if isinstance(raw, str | dict) else None


def _built(name: str, folder: Path, cache: Path | None) -> dict[str, Any]:
    """What AutoTokenizer makes of it, from the cache where it was made before of the same files and versions."""
    key = digest(folder)
    kept = None if cache is None else cache / "tokenizers" / f"{key}.json"
    if kept is not None and kept.is_file():
        with suppress(MissingError):  # a damaged copy is made again
            return _read(kept)
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "tokenizer.json"
        # The folder's own name can decide the class, so a repository is asked for by its name.
        source = str(folder) if Path(name).expanduser().exists() else name
        command = [*python_module("qlora_planner.data.auto_tokenizer"), source, str(out)]
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, env=child_environment(**quiet), capture_output=True, timeout=_BUILD_S
            )
        except subprocess.TimeoutExpired:
            raise MissingError(f"{plain(name)}: transformers did not load its tokenizer in {_BUILD_S} s") from None
        if done.returncode or not out.is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise MissingError(f"{plain(name)}: its tokenizer cannot be loaded ({plain(lines[-1])[:160]}); {INSTEAD}")
        parts = _read(out)
    if kept is not None:
        with suppress(OSError):  # a cache that cannot be written costs time and nothing else
            write_whole(kept, json.dumps(parts).encode())
    return parts


def _whole(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST_BYTES, "file of a tokenizer")
    except Unreadable as error:
        raise MissingError(f"{error}; {INSTEAD}") from None


def digest(folder: Path) -> str:
    """Of every file that AutoTokenizer may read and of the versions that read them."""
    sha256 = hashlib.sha256()
    for package in ("transformers", "tokenizers"):
        with suppress(PackageNotFoundError):
            sha256.update(f"{package}={version(package)};".encode())
    extras = [folder / "config.json", folder / "special_tokens_map.json", folder / "chat_template.jinja"]
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    for path in [*_tokenizer_files(folder), *(path for path in extras if path.is_file()), *others]:
        sha256.update(path.name.encode() + b"\0" + hashlib.sha256(_whole(path)).digest())
    return sha256.hexdigest()


def tokenised(parts: Mapping[str, Any], name: str, chats: bool) -> Tokenised:
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(parts["tokenizer"])
    except Exception as error:  # the library raises Exception itself for a file that it cannot read
        raise MissingError(f"{name}: its tokenizer.json cannot be read ({plain(error)[:120]}); {INSTEAD}") from None
    backend.encode_special_tokens = bool(parts["split"])
    special = {str(key): str(value) for key, value in parts["special_tokens"].items()}
    template = parts["chat_template"]
    rendered = ChatTemplate(template, special, name) if chats and template else None
    return Tokenised(backend, special.get("eos_token"), rendered, name)
