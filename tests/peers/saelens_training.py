"""SAELens' training from weights and rows in files. test_parity.py runs it in the environment of SAELens.

    PEERS/bin/python tests/peers/saelens_training.py CASE.npz ...

PEERS: pip install 'torch<2.14' sae-lens==6.54.12. A case holds `settings` (JSON: `architecture`, and under `sae` and
`trainer` fields of that SAE's config and of SAETrainerConfig), `rows` [S, B, D] and `weights/<name>`. The unmodified
`SAETrainer.fit` trains on these rows in order. CASE.saelens.npz gets `loss`, `l0` and `dead` (the number of dead
features before the step) [S], `gradient/<name>` of the first step after clipping, and the final `weights/<name>`.
"""

import json
import sys

import numpy as np
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer


class RecordedTrainer(SAETrainer):
    """SAELens' trainer, which also records the figures of each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.l0s, self.dead, self.first_gradient = [], [], [], {}
        self.optimizer.register_step_pre_hook(lambda *_: self.keep_gradient())

    def keep_gradient(self):
        if not self.first_gradient:
            self.first_gradient = {name: p.grad.numpy().copy() for name, p in self.sae.named_parameters()}

    def step(self, batch):
        self.dead.append(int(self.dead_neurons.sum()))
        output = super().step(batch)
        self.losses.append(output.loss.item())
        self.l0s.append((output.feature_acts != 0).sum(1).float().mean().item())
        return output


def train(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    settings = json.loads(str(case["settings"]))
    rows_SxBxD = torch.from_numpy(case["rows"])
    steps, batch, d = rows_SxBxD.shape
    weights = {name.removeprefix("weights/"): case[name] for name in case if name.startswith("weights/")}
    sae_class, config_class = get_sae_training_class(settings["architecture"])
    sae = sae_class(config_class(d_in=d, d_sae=len(weights["W_dec"]), **settings["sae"]))
    rows_SxBxD = rows_SxBxD.to(sae.dtype)
    sae.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    log = LoggingConfig(log_to_wandb=False)
    config = SAETrainerConfig(steps * batch, batch, lr_end=0.0, logger=log, **settings["trainer"])
    trainer = RecordedTrainer(config, sae, iter(rows_SxBxD))
    trainer.fit()
    arrays = {"loss": trainer.losses, "l0": trainer.l0s, "dead": trainer.dead}
    arrays |= {f"gradient/{name}": value for name, value in trainer.first_gradient.items()}
    return arrays | {f"weights/{name}": value.numpy() for name, value in sae.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for path in sys.argv[1:]:
        with np.load(path) as file:
            trained = train(dict(file))
        np.savez(path.removesuffix(".npz") + ".saelens.npz", **trained)
