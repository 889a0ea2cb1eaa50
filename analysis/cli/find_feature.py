"""Find the features that fire on a concept.

The concept is a phrase, to which example texts can be added.

python main.py find-feature RUN "the Golden Gate Bridge"                     # passages of the run's own corpus
python main.py find-feature RUN bridges --examples bridges.txt               # also your own examples, one per line
python main.py find-feature RUN irony --examples yes.txt --against no.txt    # compared with your own texts

Each feature is scored by how well its largest activation in a passage separates passages about the concept from
others. The passages are split into three parts: one to choose features, one to set thresholds, one to score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from analysis.cli.flags import filled, parsed, place
from analysis.cli.found_member import say_found
from analysis.cli.output import Output
from analysis.cli.show import cache_flag
from analysis.concepts.search import (
    FeatureDescription,
    SearchSettings,
    concept_texts,
    densities_of,
    describe_found,
    passages_record,
    search,
    search_record,
)
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.dashboard.server import feature_link
from analysis.ui.terminal.detectors import description_text, found_table, search_summary
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.wording import counted, pasted
from harvest.files import write_json
from harvest.flags import DEVICE, WHERE, Flags, flag

CONTEXTS_SHOWN = 3

if TYPE_CHECKING:
    from analysis.concepts.detectors import FindFeature


@dataclass(frozen=True)
class Options(Flags):
    run: Path = place("RUN", "a run directory")
    phrase: str = place("PHRASE", "word or phrase to search for; case and a leading article are ignored")
    device: str = flag("auto", WHERE, DEVICE)


def run(argv: list[str]) -> None:
    values = parsed("find-feature", __doc__, argv, Options, SearchSettings, Output)
    asked, options, output = filled(Options, values), filled(SearchSettings, values), filled(Output, values)
    phrase, finished = asked.phrase, FinishedRun.open(asked.run, asked.device)
    finished.need_language_model()
    members = finished.chosen(options.member)
    examples, against = concept_texts(phrase, options)
    with output.terminal() as terminal:
        say_found(finished, options.member, terminal)
        terminal.begin(f"loading {counted(len(members), 'dictionary')}, the language model and the text")
        talk: dict[str, Any] = {"on_progress": terminal.progress, "say": terminal.say}
        store = finished.store(finished.site(members[0]), options.cache_dir, **talk)
        dictionaries = {name: finished.dictionary(name) for name in members}
        model = finished.language_model
        terminal.begin("gathering passages and searching the features")
        passages, result = search(phrase, finished, model, dictionaries, options, examples, against)
        descriptions = describe_found(finished, result, model, options.cache_dir, **talk)
        used = passages_record(passages, store.train.documents, options.seed)
        densities = densities_of(result, dictionaries)
        for line in search_summary(phrase, used, result, options.fdr):
            terminal.say(line)
        show(result, descriptions, densities, terminal)
        if best := next((feature for feature in result.features if feature.passes), None):
            for line in page_lines(finished.path, best.member, best.feature, options.cache_dir):
                terminal.say(line)
            if descriptions[best.member, best.feature].promoted:
                of_feature = f"--member {best.member} --feature {best.feature}{cache_flag(options.cache_dir)}"
                terminal.say(pasted(f"next: python main.py steer {quote(str(finished.path))} {of_feature} --sweep"))
        record = search_record(phrase, options, used, result, densities, descriptions)
        if can_be_kept(finished.path, terminal.say):
            path = finished.path / "analysis" / "find" / f"{file_stem(phrase)}.json"
            write_json(path, record)
            terminal.say(f"all numbers: {path}")
    output.write(record)


def show(
    result: FindFeature,
    descriptions: Mapping[tuple[str, int], FeatureDescription],
    densities: Mapping[tuple[str, int], float | None],
    terminal: Terminal,
) -> None:
    best = result.features[: result.top]
    others = [feature for feature in result.best_of_members.values() if feature not in best]
    title = f"Best {len(best)} features of all dictionaries, by AUROC when chosen"
    terminal.show(found_table(title, best, densities, result.baselines, explained=True))
    if others:
        terminal.show(found_table("Best feature of each other dictionary", others, densities, {}))
    for feature in result.features:
        if description := descriptions.get((feature.member, feature.feature)):
            terminal.show(description_text(feature, description, CONTEXTS_SHOWN))


def page_lines(run: Path, member: str, feature: int, cache_dir: Path) -> list[str]:
    """How to open the dashboard's page of a feature: the command that starts the server, and the link."""
    start = pasted(f"python main.py dashboard {quote(str(run))}{cache_flag(cache_dir)}")
    return [f"page of feature {feature}: {start}", f"then open {feature_link(run, member, feature)}"]


def file_stem(phrase: str) -> str:
    return re.sub(r"\W+", "-", phrase.lower()).strip("-")[:80]
