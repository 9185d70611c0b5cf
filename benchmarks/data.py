"""How fast a dataset is counted, and in how much memory: a synthetic file of chats or texts, read in a process alone.

python benchmarks/data.py [--mib 1024] [--shape text|messages] [--tokenizer DIR] [--cores 1]

Without --tokenizer a byte-level BPE is trained on the spot on the same English prose; other texts hold more distinct
words, so give a tokenizer and see.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

_SPECIAL = ["<unk>", "<s>", "</s>"]
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def prose() -> list[str]:
    """Lines of English: the language reference that comes with Python, half a megabyte."""
    return "\n".join(topics[name] for name in sorted(topics)).splitlines(keepends=True)


def write_rows(path: Path, size_bytes: int, shape: str) -> int:
    """Rows of lognormal length, cut out of the prose anywhere, until the file is so large; returns how many."""
    drawn, lines, rows, written = random.Random(1), prose(), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size_bytes:
            length = min(2_000, int(drawn.lognormvariate(3, 1)) + 2)
            start = drawn.randrange(len(lines) - length)
            text = "".join(lines[start : start + length])
            half = len(text) // 2
            chat = [{"role": "user", "content": text[:half]}, {"role": "assistant", "content": text[half:]}]
            written += file.write(json.dumps({"text": text} if shape == "text" else {"messages": chat}) + "\n")
            rows += 1
    return rows


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer that transformers would take as it is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_768, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(prose(), trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def count(path: str, tokenizer: str) -> None:
    """Runs in a process of its own, so that the peak is that of counting alone."""
    from qlora_planner.data import summarise
    from qlora_planner.data.batches.epochs import plan_data

    started = time.perf_counter()
    found = summarise(path, tokenizer=tokenizer)
    counted = time.perf_counter()
    plan_data(found, seq_len=4096, batch_size=4)
    planned = time.perf_counter()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = found.size_bytes / 1e6 / (counted - started)
    print(
        f"{found.size_bytes / 1e6:,.0f} MB, {found.rows:,} rows, {found.tokens:,} tokens: {counted - started:.1f} s, "
        f"{speed:.1f} MB/s, {found.tokens / (counted - started):,.0f} tokens/s; epochs {planned - counted:.2f} s; "
        f"peak RSS {peak_mib:.0f} MiB"
    )


def main() -> None:
    """Make the file, count it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--shape", choices=("text", "messages"), default="text")
    parser.add_argument("--tokenizer")
    parser.add_argument("--cores", type=int, default=1, help="1 turns the tokenizer's own threads off")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count:
        count(given.count, given.tokenizer)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path, folder = Path(scratch) / "train.jsonl", given.tokenizer or str(Path(scratch) / "tokenizer")
        write_rows(path, given.mib << 20, given.shape)
        if given.tokenizer is None:
            write_tokenizer(Path(folder))
        environment = {"TOKENIZERS_PARALLELISM": "false" if given.cores == 1 else "true"}
        if given.cores > 1:
            environment["RAYON_NUM_THREADS"] = str(given.cores)
        command = [sys.executable, __file__, "--count", str(path), "--tokenizer", folder]
        root = str(Path(__file__).parents[1])
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": root, **environment})


if __name__ == "__main__":
    main()
