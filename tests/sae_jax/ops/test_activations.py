"""The k largest values of a row are the same by sorting and by counting."""

import jax.numpy as jnp
import numpy as np
import pytest

from sae_jax.ops.activations import mask_of_largest


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_counting_finds_the_positive_values_among_the_k_largest(k, scale):
    score_BxF = (scale * np.random.default_rng(0).standard_normal((50, 12))).astype(np.float32)
    among_BxF = np.zeros(score_BxF.shape, bool)
    np.put_along_axis(among_BxF, np.argsort(-score_BxF, axis=1)[:, :k], True, axis=1)
    masks = [mask_of_largest(jnp.asarray(score_BxF), jnp.int32(k), 12, split) for split in (False, True)]
    np.testing.assert_array_equal(masks[0], among_BxF)
    np.testing.assert_array_equal(masks[1], among_BxF & (score_BxF > 0))


def test_counting_keeps_all_of_equal_values():
    score_BxF = jnp.array([[3.0, 1.0, 1.0, 0.5, -2.0]])
    assert mask_of_largest(score_BxF, jnp.int32(2), 5, split=True).tolist() == [[True, True, True, False, False]]
