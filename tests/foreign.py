"""Dictionaries as others write them: without the checksums that `save_dictionary` leaves."""

from pathlib import Path

from safetensors.numpy import load_file, save_file


def without_checksums(directory: Path) -> Path:
    """The same dictionary, as SAELens writes it again."""
    for path in directory.glob("*.safetensors"):
        save_file(load_file(path), path)
    return directory
