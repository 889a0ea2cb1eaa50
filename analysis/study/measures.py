"""All measures of each dictionary of a run, from which the study answers its questions.

Slow ones (feature statistics, probing and absorption, the comparison) are kept in RUN/analysis and read from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.sparse import csr_array

from analysis.comparison import emergence, shared_features
from analysis.comparison.emergence import Trajectory
from analysis.comparison.matching import Decoder, sparse_activations, spread_rows
from analysis.features.density import FREQUENT, density_statistics
from analysis.features.specialists import MIN_FIRINGS, RATE, judged
from analysis.features.specialization import over_chance, p_values
from analysis.features.statistics import Features, load_or_compute_features
from analysis.quality.saebench import SAEBench, as_dicts, run_benchmarks
from analysis.runs import families, shapes
from analysis.runs.finished import STUDY_AGAIN, FinishedRun, can_be_kept
from harvest.errors import InputError
from harvest.files import write_json
from sae_jax.members import kind_name
from sae_jax.shapes import read_shaped
from sae_jax.training.snapshots import read_snapshots

ONE_TOKEN = 0.9  # share of a feature's firings on one token from which on it counts as a single-token feature
RARE = 1e-4  # density below which a feature counts as rare

MEASURES = {
    "explained_variance": "explained variance",
    "ce_recovered": "cross-entropy recovered",
    "l0": "L0",
    "dead": "dead features (fire on no row)",
    "rare": f"rare features (on under 1 in {1 / RARE:,.0f} rows)",
    "mean_activation_rate": "mean_activation_rate (share of rows on which a feature fires)",
    "high_freq_neurons": f"high_freq_neurons (features that fire on over 1 in {1 / FREQUENT:.0f} rows)",
    "found_again": "features found again in another seed",
    "probing": "probe on one feature (chance: 0.5)",
    "absorption": "absorption (less is better)",
    "one_token": f"features with {ONE_TOKEN:.0%} of firings on one token (of those with {MIN_FIRINGS} or more)",
}


@dataclass(frozen=True)
class PopulationMeasures:
    """The measures of all members, by id.

    `values` has MEASURES, and LABEL_MEASURES as `specialized: LABEL`. A value is None if it cannot be measured.
    """

    run: FinishedRun
    settings: dict[str, dict[str, Any]]
    features: dict[str, Features]
    values: dict[str, dict[str, float | None]]
    frequency: dict[str, dict[str, tuple[float | None, float | None]]]  # rank correlations (raw, over chance) by label
    trajectories: dict[str, Trajectory]
    decoders: dict[str, Decoder]
    compared: shared_features.Comparison | None
    notes: list[str]

    @property
    def families(self) -> dict[str, list[str]]:
        """The ids of the members that differ only in their seed, by a label of their other settings."""
        return families.by_seed(self.settings)

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of the members of each family."""
        settings = {family: self.settings[names[0]] for family, names in self.families.items()}
        return {family: kind_name(of["activation"], of["baseline"]) for family, of in settings.items()}

    @property
    def labels(self) -> list[str]:
        return list(next(iter(self.features.values())).labels)


def collect_measures(
    run: FinishedRun,
    cache_dir: Path,
    documents: int,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> PopulationMeasures:
    """Collect all measures of a run. Raises InputError if the run's text or model is not available."""
    members = list(run.members)
    features = load_or_compute_features(run, members, cache_dir, on_progress, say)
    bench, notes = benchmarks(run, members, documents, on_progress, say)
    for note in notes:
        say(note)
    decoders = decoders_of(run, features)
    compared = shared_features.read_shared_features(run.path / "analysis", members)
    if not compared and len(decoders) > 1:
        say(f"comparing {len(decoders)} dictionaries")
        dead = [name for name in members if name not in decoders]
        fired = fired_together(run, list(decoders), cache_dir, on_progress, say)
        compared = shared_features.compute_shared_features(
            decoders, fired, on_progress=lambda *done: on_progress("comparison", *done), dead=dead
        )
        if can_be_kept(run.path, say):
            shared_features.write_shared_features(compared, run.path / "analysis")
    return PopulationMeasures(
        run=run,
        settings={name: families.settings_of(run, member) for name, member in run.members.items()},
        features=features,
        values={
            name: values_of(run.members[name], features[name], bench, compared, run.has_language_model)
            for name in members
        },
        frequency={name: frequency_of(member) for name, member in features.items()},
        trajectories=trajectories_of(run, features, on_progress),
        decoders=decoders,
        compared=compared,
        notes=notes,
    )


def decoders_of(run: FinishedRun, features: dict[str, Features]) -> dict[str, Decoder]:
    """The decoders of the members that have a living feature, by id."""
    return {
        name: Decoder(
            families.settings_of(run, run.members[name]), run.dictionary(name).tensors["W_dec"], member.alive_F
        )
        for name, member in features.items()
        if member.alive_F.any()
    }


def trajectories_of(
    run: FinishedRun,
    features: dict[str, Features],
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Trajectory]:
    """When features emerged, by the id of each member that has a living feature and at least three snapshots."""
    trajectories = {}
    for done, (name, member) in enumerate(features.items(), 1):
        if member.alive_F.any() and len(snapshots := read_snapshots(run.path, name)) > 2:
            trajectories[name] = emergence.compute_emergence(snapshots, member)
        on_progress("emergence", done, len(features))
    return trajectories


def fired_together(
    run: FinishedRun,
    members: list[str],
    cache_dir: Path,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> dict[str, csr_array] | None:
    """Activations of all members on the same held-out rows; None if members are of several sites, whose rows differ."""
    sites = {run.site(name) for name in members}
    if len(sites) > 1:
        return None
    store = run.store(sites.pop(), cache_dir, on_progress, say)
    return sparse_activations(spread_rows(store.held_out), {name: run.dictionary(name).sae for name in members})


def benchmarks(
    run: FinishedRun,
    members: list[str],
    documents: int,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """({benchmark: {member: its results}}, notes) of probing and absorption, from an earlier study or measured now.

    Probes predict the topics and forms of the bundled corpus for any run, whatever text the run was trained on. Without
    a language model, nothing can be probed.
    """
    if not run.has_language_model:
        none = "probing and absorption are not measured: the rows were imported without a language model"
        return {"sparse_probing": {}, "absorption": {}}, [none]
    settings = SAEBench(metrics=("probing",), k=(1,), documents=documents)
    path = run.path / "analysis" / "study_benchmarks.json"
    record = read_shaped(path, STUDY_AGAIN, shapes.Benchmarks) if path.exists() else {}
    if record.get("documents") != documents or set(members) - record["answers"]["sparse_probing"].keys():
        say(
            f"sparse probing of all dictionaries ({len(members)}) on {documents:,} documents of the bundled corpus, "
            "whatever the run was trained on; fewer --documents are faster, down to 800"
        )
        notes: list[str] = []
        answers = dict(run_benchmarks(settings, run, members, notes, on_progress)) | {"absorption": {}}
        try:
            answers |= run_benchmarks(replace(settings, metrics=("absorption",)), run, members, notes, on_progress)
        except InputError as error:  # windows are too short for the spelling prompts
            notes.append(f"absorption is not measured: {error}")
        record = {"documents": documents, "answers": as_dicts(answers), "notes": notes}
        if can_be_kept(run.path, say):
            write_json(path, record)
    return record["answers"], record["notes"]


def values_of(
    member: dict[str, Any],
    features: Features,
    bench: dict[str, dict[str, Any]],
    compared: shared_features.Comparison | None,
    has_tokens: bool = True,
) -> dict[str, float | None]:
    """The values of MEASURES and LABEL_MEASURES for one member, None for those that need something it lacks."""
    alive_F = features.alive_F
    name, metrics = member["id"], member["metrics"]
    again = None
    if compared and name in compared.found_again_F:
        again = float(compared.found_again_F[name][alive_F].mean() / compared.other_seeds[name])
    probes = bench["sparse_probing"].get(name, {}).values()
    values = {
        "explained_variance": metrics["explained_variance"],
        "ce_recovered": metrics.get("ce_recovered"),
        "l0": metrics["l0"],
        "dead": float(1 - alive_F.mean()),
        "rare": share(features.density_F[alive_F] < RARE),
        **density_statistics(features.density_F),
        "found_again": again,
        "probing": float(np.mean([probe["accuracy"]["1"] for probe in probes])) if probes else None,
        "absorption": bench["absorption"].get(name, {}).get("fraction"),
        "one_token": share(features.token_share_F[judged(features)] >= ONE_TOKEN) if has_tokens else None,
    }
    for label in features.labels:
        values |= {f"{score}: {label}": measure(features, label) for score, measure in LABEL_MEASURES.items()}
    return values


def share(is_one_A: np.ndarray) -> float | None:
    return float(is_one_A.mean()) if len(is_one_A) else None


def specialized(features: Features, label: str) -> float | None:
    """The share of features (with MIN_FIRINGS or more) that are more specialized than chance, at a rate of RATE."""
    frequent_A = judged(features)
    if not len(frequent_A):
        return None
    p_A = p_values(features.label_score[label][1][:, frequent_A], features.label_effective[label][frequent_A])
    return share(stats.false_discovery_control(p_A) <= RATE)


def mean_over_chance(features: Features, label: str) -> float | None:
    """The mean specialization of features (with MIN_FIRINGS or more) minus that with shuffled labels, at most 1."""
    score_F = over_chance(features.label_score[label][1][:, judged(features)])
    return float(score_F.mean()) if len(score_F) else None


def mean_information(features: Features, label: str) -> float | None:
    """The mean mutual information of firing and label minus that with shuffled labels, in thousandths of a bit."""
    score_F = over_chance(features.label_score[label][0][:, judged(features)])
    return float(1000 * score_F.mean()) if len(score_F) else None


LABEL_MEASURES = {"specialized": specialized, "over chance": mean_over_chance, "information": mean_information}


def frequency_of(features: Features) -> dict[str, tuple[float | None, float | None]]:
    """Spearman's rank correlation of density with specialization, for each set of labels: (raw, over chance)."""
    frequent_A = judged(features)
    if len(frequent_A) < 3:
        return dict.fromkeys(features.labels, (None, None))

    def rank_correlation(score_A: np.ndarray) -> float | None:
        value = stats.spearmanr(features.density_F[frequent_A], score_A).statistic
        return float(value) if np.isfinite(value) else None

    correlations = {}
    for label in features.labels:
        score_SxA = features.label_score[label][1][:, frequent_A]
        correlations[label] = rank_correlation(score_SxA[0]), rank_correlation(over_chance(score_SxA))
    return correlations
