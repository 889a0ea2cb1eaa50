"""Loading a trained SAE in Python: `sae_jax.load`.

Shapes: D width of the model, F features. Rows may have any number of leading dimensions, including none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from harvest.errors import InputError
from sae_jax.formats import Dictionary, is_dictionary, load_dictionary
from sae_jax.formats.dictionary import KIND_OF
from sae_jax.lookup import only_member
from sae_jax.run_directory import RunDirectory, refuse_unfinished


def load(path: Path | str, member: str | None = None) -> LoadedSAE:
    """Load a member of a finished run, or the SAE in a directory of SAELens (old or new) or dictionary_learning.

    `member` may be omitted if the run has only one. Raises InputError for an unfinished run, for a member that is
    missing or failed, and as `load_dictionary` does.
    """
    path = Path(path)
    if is_dictionary(path):
        if member is not None:
            raise InputError(f"{path} is a dictionary, not a run: omit member={member!r}")
        return LoadedSAE(load_dictionary(path), path)
    if (path / "config.json").exists():
        refuse_unfinished(path)
    results = RunDirectory(path, {}).results
    if results is None:
        return LoadedSAE(load_dictionary(path), path)  # raises InputError with what is wrong with the path
    name = only_member(path, results["members"], member)
    record = next(record for record in results["members"] if record["id"] == name)
    directory = path / "members" / name
    return LoadedSAE(load_dictionary(directory), directory, record["activation"], record["metrics"])


def numbers(values: Any, what: str) -> jax.Array:
    """Rows from JAX, numpy, torch or lists, in float32. Raises InputError, naming `what`, for other values."""
    if not isinstance(values, jax.Array):
        if type(values).__module__.partition(".")[0] == "torch":
            from harvest.torch_file import array_of

            values = array_of(values, f"{what}: its input")
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:  # lists of different lengths, of tensors with gradients
            raise InputError(
                f"{what} needs rows of numbers, all of one length ({error}): pass a float array of shape [rows, D]"
            ) from error
    if not any(jnp.issubdtype(values.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise InputError(f"{what} needs real numbers, not {values.dtype}: pass a float array of shape [rows, D]")
    return jnp.asarray(values, jnp.float32)


@dataclass(frozen=True, repr=False)
class LoadedSAE:
    """An SAE for raw activations. `metrics` are the held-out ones of results.json; empty if there is no run."""

    dictionary: Dictionary
    directory: Path
    activation: str = ""  # the kind it was trained as; "" if there is no run
    metrics: dict[str, float] = field(default_factory=dict)

    def encode(self, x: ArrayLike) -> jax.Array:
        """Feature values [..., F] of raw rows [..., D], in float32. Raises InputError for rows of another width."""
        return self._by_rows(self.dictionary.sae.encode, x, self.d_model)

    def decode(self, f: ArrayLike) -> jax.Array:
        """Rows [..., D] from feature values [..., F]. Raises InputError for another number of features.

        An SAE that normalizes each row by itself cannot scale back without the row: call it on rows instead.
        """
        return self._by_rows(self.dictionary.sae.decode, f, self.n_features)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The reconstruction of raw rows, [..., D]."""
        return self._by_rows(self.dictionary.sae, x, self.d_model)

    def _by_rows(self, function: Any, values: ArrayLike, width: int) -> jax.Array:
        rows = numbers(values, self.dictionary.name)
        if rows.ndim == 0 or rows.shape[-1] != width:
            raise InputError(
                f"{self.dictionary.name} cannot take an array of shape {list(rows.shape)} here: "
                f"pass one of shape [..., {width}]"
            )
        result = function(rows.reshape(-1, width))
        return result.reshape(*rows.shape[:-1], result.shape[-1])

    @property
    def W_enc(self) -> jax.Array:
        """The encoder, [D, F]."""
        return self.dictionary.sae.W_encT[...].T

    @property
    def W_dec(self) -> jax.Array:
        """The decoder, [F, D]: each row is the direction of a feature in the model."""
        return self.dictionary.sae.W_dec[...]

    @property
    def b_enc(self) -> jax.Array:
        """The encoder bias, [F]."""
        return self.dictionary.sae.b_enc[...]

    @property
    def b_dec(self) -> jax.Array:
        """The decoder bias, [D]."""
        return self.dictionary.sae.b_dec[...]

    @property
    def d_model(self) -> int:
        return self.dictionary.d_in

    @property
    def n_features(self) -> int:
        return self.dictionary.d_sae

    @property
    def kind(self) -> str:
        return self.activation or KIND_OF[self.dictionary.cfg["architecture"]]

    def __repr__(self) -> str:
        hook = self.dictionary.hook_name or "an unnamed hook"
        model = self.dictionary.model_name or "an unnamed model"
        lines = [
            f"SAE {self.dictionary.name}",
            f"  {self.kind}, {self.d_model:,} → {self.n_features:,} features",
            f"  reads {hook} of {model}",
        ]
        if self.metrics:
            variance, l0, dead = (self.metrics.get(n, math.nan) for n in ("explained_variance", "l0", "dead_fraction"))
            lines.append(f"  held out: explained variance {variance:.3f}, L0 {l0:.1f}, {dead:.1%} dead")
        lines += [f"  note: {sentence}" for sentence in self.dictionary.told()]
        return "\n".join([*lines, f"  from {self.directory}"])
