"""Export of a member's features for Neuronpedia: batch files in the format of SAEDashboard 0.8, 128 features each.

The pages differ from SAEDashboard's in three ways. Intervals hold equal shares of the firings, not equal stretches of
the values, and no window appears twice. Logits are computed through the gain of the final norm. Correlated features are
those of the whole dictionary, and their correlation and cosine are computed from whether they fire. Correlated neurons
are left empty.

Shapes: F features, K top contexts, R firings sampled, B features of a batch, V vocabulary.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.features.activations import FeatureValues, context_tokens, feature_values
from analysis.features.bands import ALIGNED, alignment, context_groups, firing_cosine
from analysis.features.contexts import token_texts
from analysis.features.statistics import Features, load_or_compute_features
from analysis.runs.finished import FinishedRun
from harvest.files import whole_directory
from harvest.sources import is_bundled
from harvest.store import ActivationStore

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel

BATCH = 128  # features per file
ROWS = 10  # promoted and suppressed tokens per feature


@dataclass(frozen=True)
class Source:
    """The origin of the features, in Neuronpedia's terms."""

    model: str
    set: str
    layer: int
    dataset: str


def export(
    run: FinishedRun,
    member: str,
    to: Path,
    cache_dir: Path,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the batch files to the directory `to`, which is complete or absent afterwards.

    Raises InputError if `to` is not empty, and as FinishedRun.store does.
    """
    run.need_language_model()
    features = load_or_compute_features(run, [member], cache_dir, on_progress, say)[member]
    store, source = run.store(run.site(member), cache_dir, on_progress, say), source_of(run, member)
    pages, total = Pages(run, member, store, features, on_progress), len(features.density_F)
    about = {"model_id": source.model, "layer": source.layer, "sae_set": source.set, "sae_id_suffix": None}
    with whole_directory(to) as directory:
        for start in range(0, total, BATCH):
            batch = [pages.page(feature) for feature in range(start, min(start + BATCH, total))]
            record = json.dumps(about | {"features": batch}, allow_nan=False)
            (directory / f"batch-{start // BATCH}.json").write_text(record + "\n")
            on_progress("pages", start + len(batch), total)


def source_of(run: FinishedRun, member: str) -> Source:
    site, control = run.site(member), run.request.control
    facts = run.store_facts(site)
    model = "bundled" if is_bundled(facts["model"]) else facts["model"]["asked"]
    dataset = "bundled" if is_bundled(facts["dataset"]) else facts["dataset"]["asked"]
    name = "-".join(filter(None, (site.hook, member, control)))
    place = dataset if "@" in facts["dataset"]["fingerprint"] else Path(dataset).name  # not a local path
    return Source(neuronpedia_id(Path(model).name), neuronpedia_id(name), site.layer, place)


def neuronpedia_id(name: str) -> str:
    """The name in lower-case letters, digits and dashes, like the ids of Neuronpedia."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


class Pages:
    """The pages of a dictionary's features."""

    def __init__(
        self,
        run: FinishedRun,
        member: str,
        store: ActivationStore,
        features: Features,
        on_progress: Callable[[str, int, int], None],
    ):
        self.store, self.features, self.model, self.source = store, features, run.language_model, source_of(run, member)
        self.W_dec_FxD = run.dictionary(member).tensors["W_dec"].astype(np.float32)
        self.texts_V = np.array([clean(text) for text in vocabulary(self.model)], object)
        self.groups_F = [context_groups(features, feature) for feature in range(len(self.W_dec_FxD))]
        contexts_F = [sum(len(group.rows) for group in groups) for groups in self.groups_F]
        self.first_F = np.cumsum([0, *contexts_F])
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            on_progress("contexts", done, features.rows)

        self.values: FeatureValues = feature_values(
            run.dictionary(member).sae,
            store,
            np.repeat(np.arange(len(contexts_F)), contexts_F),
            np.concatenate([np.empty(0, np.int64), *(group.rows for groups in self.groups_F for group in groups)]),
            advance,
        )

    def page(self, feature: int) -> dict[str, Any]:
        """The page of a feature, with the fields of SAEDashboard's NeuronpediaDashboardFeature."""
        features, decoder_D = self.features, self.W_dec_FxD[feature]
        aligned = alignment(decoder_D)
        together_A = features.together_FxJ[feature, :ALIGNED][features.together_phi_FxJ[feature, :ALIGNED] > 0]
        (count_B, edge_E), (logit_counts_H, logit_edges_E) = features.activations(feature), features.logits(feature)
        fires = bool(features.density_F[feature])
        return {
            "feature_index": feature,
            "neuron_alignment_indices": [neuron.neuron for neuron in aligned],
            "neuron_alignment_values": rounded(np.array([neuron.value for neuron in aligned])),
            "neuron_alignment_l1": rounded(np.array([neuron.share for neuron in aligned])),
            "correlated_neurons_indices": [],
            "correlated_neurons_l1": [],
            "correlated_neurons_pearson": [],
            "correlated_features_indices": together_A.tolist(),
            "correlated_features_l1": rounded(firing_cosine(features, feature, together_A)),
            "correlated_features_pearson": rounded(features.together_phi_FxJ[feature, : len(together_A)]),
            "neg_str": self.texts_V[features.suppressed_FxT[feature, :ROWS]].tolist(),
            "neg_values": rounded(features.suppressed_weight_FxT[feature, :ROWS]),
            "pos_str": self.texts_V[features.promoted_FxT[feature, :ROWS]].tolist(),
            "pos_values": rounded(features.promoted_weight_FxT[feature, :ROWS]),
            "frac_nonzero": float(features.density_F[feature]),
            "freq_hist_data_bar_values": rounded((edge_E[1:] + edge_E[:-1]) / 2) if fires else [],
            "freq_hist_data_bar_heights": count_B.tolist() if fires else [],
            "logits_hist_data_bar_heights": logit_counts_H.tolist(),
            "logits_hist_data_bar_values": rounded((logit_edges_E[1:] + logit_edges_E[:-1]) / 2),
            "n_prompts_total": self.store.train.n_windows + self.store.held_out.n_windows,
            "n_tokens_in_prompt": self.store.manifest["seq_len"],
            "dataset": self.source.dataset,
            "decoder_weights_dist": [],
            "vector": rounded(decoder_D, 6),
            "activations": list(self.activations(feature)),
        }

    def activations(self, feature: int) -> Iterator[dict[str, Any]]:
        """Yield the contexts, strongest first, with the fields of SAEDashboard's NeuronpediaDashboardActivation."""
        number = self.first_F[feature]
        for group in self.groups_F[feature]:
            bins = {"bin_min": group.bin_min, "bin_max": group.bin_max, "bin_contains": group.bin_contains}
            for row in group.rows.tolist():
                tokens_L, peak = context_tokens(self.store, self.values, number, row)
                values_L = rounded(self.values.value_CxL[number])
                yield {
                    **bins,
                    "tokens": self.texts_V[tokens_L].tolist(),
                    "values": values_L,
                    "qualifying_token_index": peak,
                }
                number += 1


def vocabulary(model: LanguageModel) -> list[str]:
    return token_texts(model.tokenizer, range(max(model.bridge.cfg.d_vocab, len(model.tokenizer))))


def rounded(values: np.ndarray, digits: int = 4) -> list[float]:
    """The values, rounded to this number of digits of the largest one."""
    largest = float(np.abs(values).max(initial=0))
    decimals = digits - 1 - math.floor(math.log10(largest)) if largest else 0
    return (np.round(np.asarray(values, np.float64), decimals) + 0.0).tolist()  # turns −0 into 0


def clean(text: str) -> str:
    """The text without characters that a database cannot store."""
    return re.sub("[\\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
