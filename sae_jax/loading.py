"""Loading a trained SAE in Python: `sae_jax.load`.

Shapes: D width of the activations, F features. Rows may have any number of leading dimensions, including none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from harvest.errors import InputError
from harvest.flags import as_arguments
from sae_jax.formats import Dictionary, is_dictionary, load_dictionary
from sae_jax.formats.dictionary import KIND_OF, folded
from sae_jax.lookup import only_member
from sae_jax.run_directory import RunDirectory, refuse_unfinished, run_of

if TYPE_CHECKING:
    from harvest.torch_sae import TorchSAE


@as_arguments()
def load(path: Path | str, member: str | None = None) -> LoadedSAE:
    """Load a member of a finished run, or the SAE in a directory of SAELens (old or new) or dictionary_learning.

    `member` may be omitted if the run has only one. Raises InputError for an unfinished run, for a member that is
    missing or failed, and as `load_dictionary` does.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is no directory: give that of a run, or of an SAE of SAELens or dictionary_learning")
    if is_dictionary(path):
        if member is not None:
            raise InputError(f"{path} is a dictionary, not a run: omit member={member!r}")
        return opened(path)
    if (path / "config.json").exists():
        refuse_unfinished(path)
    results = RunDirectory(path, {}).results
    if results is None:
        return LoadedSAE(load_dictionary(path), path)  # raises InputError with what is wrong with the path
    name = only_member(path, results["members"], member)
    return opened(path / "members" / name)


def opened(directory: Path) -> LoadedSAE:
    """The SAE in a directory, with what the results of its run say of it if it is in one."""
    dictionary, run = load_dictionary(directory), run_of(directory)
    results = (run and RunDirectory(run, {}).results) or {"members": []}
    record = next((record for record in results["members"] if record["id"] == directory.resolve().name), None)
    return LoadedSAE(dictionary, directory, *((record["activation"], record["metrics"]) if record else ()))


def is_torch(values: Any) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(values).__mro__)


def numbers(values: Any, what: str) -> np.ndarray | jax.Array:
    """Numbers in lists or an array as an array of numpy or JAX. Raises InputError, naming `what`, for other values."""
    if not isinstance(values, jax.Array):
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:  # lists of different lengths, of tensors with gradients
            raise InputError(
                f"{what} needs rows of numbers, all of one length ({error}): pass a float array of shape [rows, D]"
            ) from error
    if not any(jnp.issubdtype(values.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise InputError(f"{what} needs real numbers, not {values.dtype}: pass a float array of shape [rows, D]")
    return values


@dataclass(frozen=True, repr=False, eq=False)  # arrays have no single answer to whether they are equal
class LoadedSAE:
    """An SAE for raw activations, computed in float32. `metrics` are those of results.json; empty without a run.

    Arrays may be of numpy, JAX or torch, and results are of the same library; lists give numpy. Results are float32,
    except that a torch tensor of floats gives one of its number format. Torch results are on the device of the input,
    and have a gradient if the input needs one.
    """

    dictionary: Dictionary
    directory: Path
    activation: str = ""  # the kind it was trained as; "" if there is no run
    metrics: dict[str, float] = field(default_factory=dict)

    def encode(self, x: Any) -> Any:
        """Feature values [..., F] of raw rows [..., D]. Raises InputError for rows of another width."""
        return self._by_rows("encode", x, self.d_in)

    def decode(self, f: Any) -> Any:
        """Rows [..., D] from feature values [..., F]. Raises InputError for another number of features.

        An SAE that normalizes each row by itself cannot scale back without the row: call it on rows instead.
        """
        return self._by_rows("decode", f, self.d_sae)

    def __call__(self, x: Any) -> Any:
        """The reconstruction of raw rows, [..., D]."""
        return self._by_rows("__call__", x, self.d_in)

    def _by_rows(self, method: str, values: Any, width: int) -> Any:
        rows: Any = values if is_torch(values) else numbers(values, self.dictionary.name)
        if rows.ndim == 0 or rows.shape[-1] != width:
            raise InputError(
                f"{self.dictionary.name} cannot take an array of shape {list(rows.shape)} here: "
                f"pass one of shape [..., {width}]"
            )
        if is_torch(rows):
            return getattr(self._in_torch.on(rows.device), method)(rows)
        result = getattr(self.dictionary.sae, method)(jnp.asarray(rows, jnp.float32).reshape(-1, width))
        result = result.reshape(*rows.shape[:-1], result.shape[-1])
        return result if isinstance(rows, jax.Array) else np.array(result)  # a copy, because JAX's memory is read-only

    def to_torch(self) -> TorchSAE:
        """A new torch module that computes the same, with `encode`, `decode` and trainable weights in float32."""
        from harvest.torch_sae import TorchSAE

        tensors = folded(self.cfg, self.dictionary.tensors)
        return TorchSAE(self.cfg, tensors, self.dictionary.row_norm, self.first_position)

    @cached_property
    def _in_torch(self) -> TorchSAE:
        return self.to_torch().requires_grad_(False)

    @property
    def cfg(self) -> dict[str, Any]:
        """The configuration, with the names that SAELens uses in cfg.json."""
        return self.dictionary.cfg

    @property
    def hook_name(self) -> str | None:
        """The hook point that it reads, such as blocks.8.hook_resid_pre; None if the files do not tell."""
        return self.dictionary.hook_name

    @property
    def first_position(self) -> int:
        """The first position of a window, with BOS, that it was trained on: 0 if no run says otherwise."""
        run = run_of(self.directory)
        stores = RunDirectory(run, {}).stores if run else []
        if not stores:
            return 0
        return len(stores[0].get("bos", ())) + (not stores[0]["identity"]["keep_first_position"])

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
    def d_in(self) -> int:
        """The width of the activations."""
        return self.dictionary.d_in

    @property
    def d_sae(self) -> int:
        """The number of features."""
        return self.dictionary.d_sae

    @property
    def kind(self) -> str:
        return self.activation or KIND_OF[self.dictionary.cfg["architecture"]]

    def __repr__(self) -> str:
        hook = self.dictionary.hook_name or "an unnamed hook"
        model = self.dictionary.model_name or "an unnamed model"
        lines = [
            f"SAE {self.dictionary.name}",
            f"  {self.kind}, {self.d_in:,} → {self.d_sae:,} features",
            f"  reads {hook} of {model}",
        ]
        if self.metrics:
            variance, l0, dead = (self.metrics.get(n, math.nan) for n in ("explained_variance", "l0", "dead_fraction"))
            lines.append(f"  held out: explained variance {variance:.3f}, L0 {l0:.1f}, {dead:.1%} dead")
        lines += [f"  note: {sentence}" for sentence in self.dictionary.told()]
        return "\n".join([*lines, f"  from {self.directory}"])
