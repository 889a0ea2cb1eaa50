"""Maps of a run's dictionaries: clusters of directions for each family, and features that split as widths grow.

They are drawn once for a run and kept in RUN/analysis and RUN/figures.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.comparison import splitting
from analysis.comparison.clusters import MIN_CLUSTER, NO_CLUSTER, compute_clusters, write_clusters
from analysis.features.contexts import token_texts
from analysis.plots.comparison import splitting_chart
from analysis.plots.feature_map import clusters_chart
from analysis.plots.style import save
from analysis.study.measures import PopulationMeasures


def draw(measures: PopulationMeasures, say: Callable[[str], None]) -> list[str]:
    """Draw clusters of the first living seed of each family, and the splitting of members that differ in width.

    Returns the names of the figures.
    """
    run, tokenizer = measures.run.path, None
    drawn = []
    for seeds in measures.families.values():
        name = next((name for name in seeds if name in measures.decoders), seeds[0])
        decoder, stem = measures.decoders.get(name), run / "figures" / f"clusters-{name}"
        if decoder is None or decoder.alive_F.sum() < 2 * MIN_CLUSTER:
            say(f"{name}: too few living features for a map")
            continue
        if not (run / "analysis" / f"{stem.name}.json").exists():
            say(f"looking for clusters in {name}")
            tokenizer = tokenizer or measures.run.tokenizer
            promoted = [token_texts(tokenizer, tokens) for tokens in measures.features[name].promoted_FxT]
            clusters = compute_clusters(decoder.W_dec_FxD, decoder.alive_F, promoted)
            write_clusters(clusters, run / "analysis", name)
            if clusters.sizes:
                save(clusters_chart(clusters), stem)
            else:
                say(f"{name}: {NO_CLUSTER}")
        if stem.with_suffix(".svg").exists():
            drawn.append(stem.name)
    for widths in splitting.families(measures.decoders):
        stem = run / "figures" / f"splitting-{widths[-1]}"
        drawn.append(stem.name)
        if not stem.with_suffix(".svg").exists():
            split = splitting.compute_splitting({name: measures.decoders[name] for name in widths})
            splitting.write_splitting(split, run / "analysis")
            save(splitting_chart(split), stem)
    return drawn
