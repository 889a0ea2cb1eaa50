"""Dictionaries without the checksums of `save_dictionary`, as other programs write them."""

from pathlib import Path

from safetensors.numpy import load_file, save_file


def without_checksums(directory: Path) -> Path:
    """Rewrite a dictionary as SAELens would, without checksums."""
    for path in directory.glob("*.safetensors"):
        save_file(load_file(path), path)
    return directory
