"""Hashes of local models and texts, which depend on the content of their files and not on where they are.

Files that do not define a model, such as a README, are not included.
"""

from __future__ import annotations

import json
from functools import cache
from hashlib import blake2b, file_digest
from pathlib import Path

TOKENIZER = [
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
]
INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version")  # in JSON files of a model, but irrelevant


def text_hash(files: list[Path]) -> str:
    """A hash of texts in their order, independent of the names of the files."""
    return _hash_of([(path.suffix, _content(path)) for path in files])


def model_hash(folder: Path) -> str:
    """A hash of the config, weights and tokenizer in a folder, independent of other files."""
    weights = [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    files = {folder / "config.json", *weights}.union(*(folder.glob(pattern) for pattern in TOKENIZER))
    return _hash_of([(path.name, _content(path)) for path in sorted(files) if path.is_file()])


def _hash_of(facts: list[tuple[str, str]]) -> str:
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _content(path: Path) -> str:
    """The content of a config without version and path, or a hash of any other file."""
    if path.name in ("config.json", "tokenizer_config.json"):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return json.dumps({key: value for key, value in config.items() if key not in INCIDENTAL}, sort_keys=True)
        except (ValueError, AttributeError, RecursionError):
            pass  # no JSON object, so its bytes are hashed
    stat = path.stat()
    return _bytes_hash(path, stat.st_size, stat.st_mtime_ns)


@cache
def _bytes_hash(path: Path, size: int, changed_ns: int) -> str:
    """A hash of a file. The result is cached, because a model has gigabytes."""
    with open(path, "rb") as file:
        return file_digest(file, blake2b).hexdigest()
