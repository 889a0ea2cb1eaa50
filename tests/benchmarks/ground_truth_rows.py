"""Rows of known features from SAELens' own generator, in an .npz file for `ground_truth_peers.py`.

    PEERS/bin/python tests/benchmarks/ground_truth_rows.py FILE.npz

1,024 features in 192 dimensions, about 7 of them active per row, with Zipf frequencies, correlations of low rank and
magnitudes that vary. PEERS is described in `quality_peers.py`.
"""

import sys

import numpy as np
import torch
from sae_lens.synthetic import (
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)

TRAIN_ROWS, HELD_OUT_ROWS, BATCH = 200_000, 20_000, 2000

torch.manual_seed(0)
model = SyntheticModel(
    SyntheticModelConfig(
        num_features=1024,
        hidden_dim=192,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.6, max_prob=0.3, min_prob=0.001),
        correlation=LowRankCorrelationConfig(seed=0),
        std_firing_magnitudes=0.25,
        seed=0,
    )
)
samples = [model.sample_with_features(BATCH) for _ in range((TRAIN_ROWS + HELD_OUT_ROWS) // BATCH)]
rows_NxD, features_NxG = (torch.cat(parts).float().numpy() for parts in zip(*samples, strict=True))
fires_NxG = features_NxG != 0
print(f"true L0 {fires_NxG.sum(1).mean():.2f}")
np.savez(
    sys.argv[1],
    rows=rows_NxD,
    directions_GxD=model.feature_dict.feature_vectors.detach().numpy(),
    probabilities_G=fires_NxG.mean(0),
    fired=np.packbits(fires_NxG[TRAIN_ROWS:], axis=1),
)
