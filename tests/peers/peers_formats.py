"""Files and outputs of SAELens and dictionary_learning, for test_formats_with_peers.py. Runs in their environment.

    PEERS/bin/python tests/peers/peers_formats.py saelens DIR             # SAELens' own directories, old and new
    PEERS/bin/python tests/peers/peers_formats.py dictionary_learning DIR # trained by its own trainers
    PEERS/bin/python tests/peers/peers_formats.py outputs ROWS.npy DIR... # SAELens' on these rows: DIR/outputs.npz

PEERS: pip install 'torch<2.14' sae-lens==6.54.12, then pip install --no-deps dictionary-learning==0.1.0.
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

D, F, K, STEPS = 24, 64, 5, 60
RAW = {"apply_b_dec_to_input": False}
VARIANTS = {
    "standard": ("standard", {}),
    "standard-raw": ("standard", RAW),
    "standard-bfloat16": ("standard", {"dtype": "bfloat16"}),
    "standard-float16": ("standard", {"dtype": "float16"}),
    "standard-layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "standard-constant_norm": ("standard", RAW | {"normalize_activations": "constant_norm_rescale"}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu-raw": ("jumprelu", RAW),
    "topk": ("topk", {"k": K}),
    "topk-rescaled": ("topk", RAW | {"k": K, "rescale_acts_by_decoder_norm": True}),
    "topk-layer_norm": ("topk", {"k": K, "normalize_activations": "layer_norm"}),
    "abstopk": ("abstopk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "gated": ("gated", {}),
    "gated-raw": ("gated", RAW),
}
OLD = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "hook_point": "blocks.1.hook_resid_pre", "model_name": "gpt2"}
OLDER = {  # cfg.json of versions before 6, for the weights of a variant
    "old-standard": ("standard", OLD | {"context_size": 128, "normalize_activations": False}),
    "old-topk": ("topk-layer_norm", OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}),
    "old-jumprelu": ("jumprelu-raw", OLD | {"architecture": "jumprelu", "activation_fn_str": "relu"} | RAW),
    "old-gated": ("gated", OLD | {"architecture": "gated", "normalize_activations": "none"}),
}
OLDER["old-topk"][1]["normalize_activations"] = "layer_norm"


def saelens(directory: Path) -> None:
    from sae_lens import SAE

    torch.manual_seed(0)
    for name, (architecture, settings) in VARIANTS.items():
        cfg = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", **settings}
        cfg["metadata"] = {"hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2", "context_size": 128}
        config_class = SAE.get_sae_config_class_for_architecture(architecture)
        sae = SAE.get_sae_class_for_architecture(architecture)(config_class.from_dict(cfg))
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        sae.save_model(directory / name)
    for name, (variant, cfg) in OLDER.items():
        (directory / name).mkdir()
        weights = (directory / variant / "sae_weights.safetensors").read_bytes()
        (directory / name / "sae_weights.safetensors").write_bytes(weights)
        (directory / name / "cfg.json").write_text(json.dumps(cfg))


def outputs(rows: str, *directories: str) -> None:
    from sae_lens import SAE

    x = torch.from_numpy(np.load(rows))
    for directory in directories:
        sae = SAE.load_from_disk(directory, dtype="float32")
        with torch.no_grad():
            features, reconstruction = sae.encode(x).numpy(), sae(x).numpy()
        np.savez(Path(directory) / "outputs.npz", features=features, reconstruction=reconstruction)


def dictionary_learning(directory: Path) -> None:
    for module in ("nnsight", "wandb"):
        sys.modules.setdefault(module, MagicMock())  # only needed for language models and logging
    from dictionary_learning import dictionary, trainers
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, standard, top_k
    from dictionary_learning.training import trainSAE

    sizes = {"steps": STEPS, "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "some/model", "device": "cpu"}
    common = sizes | {"warmup_steps": 2, "lr": 1e-2, "seed": 0, "submodule_name": "resid_post_layer_3"}
    penalized, by_k = common | {"sparsity_warmup_steps": 2}, common | {"k": K, "threshold_start_step": 5}
    matryoshka = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer
    configs = [
        {"trainer": standard.StandardTrainer, **penalized},
        {"trainer": standard.StandardTrainerAprilUpdate, **penalized},
        {"trainer": trainers.GatedSAETrainer, **penalized},
        {"trainer": trainers.PAnnealTrainer, **penalized},
        {"trainer": trainers.JumpReluTrainer, **penalized},
        {"trainer": trainers.TopKTrainer, **by_k},
        {"trainer": trainers.BatchTopKTrainer, **by_k},
        {"trainer": matryoshka, "group_fractions": [0.25, 0.75], **by_k},
    ]
    rng = torch.Generator().manual_seed(1)
    mixing_FxD = torch.randn(2 * D, D, generator=rng)
    batches = [torch.rand(128, 2 * D, generator=rng).pow(6) @ mixing_FxD + 1 for _ in range(STEPS + 1)]
    trainSAE(iter(batches), configs, STEPS, save_dir=str(directory), device="cpu", normalize_activations=False)

    torch.manual_seed(0)  # no trainer writes this class
    new = dictionary.AutoEncoderNew(D, F)
    for parameter in new.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    made = directory / "trainer_8"
    made.mkdir()
    torch.save(new.state_dict(), made / "ae.pt")
    trainer = {"dict_class": "AutoEncoderNew", "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "some/model"}
    (made / "config.json").write_text(json.dumps({"trainer": trainer}))

    classes = vars(dictionary) | vars(top_k) | vars(batch_top_k) | vars(matryoshka_batch_top_k)
    x = batches[-1]
    np.save(directory / "rows.npy", x.numpy())
    for made in sorted(directory.glob("trainer_*")):
        name = json.loads((made / "config.json").read_text())["trainer"]["dict_class"]
        own = {"normalize_decoder": False} if name == "AutoEncoder" else {}  # keep the stored scale
        sae = classes[name].from_pretrained(made / "ae.pt", **own)
        with torch.no_grad():
            np.savez(made / "outputs.npz", features=sae.encode(x).numpy(), reconstruction=sae(x).numpy())


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "outputs":
        outputs(*arguments)
    else:
        {"saelens": saelens, "dictionary_learning": dictionary_learning}[command](Path(arguments[0]))
