"""The page that searches for features that detect a concept."""

from pathlib import Path

import streamlit as st

from analysis.concepts.detectors import PHRASE_ONLY
from analysis.concepts.search import SearchSettings, concept_texts, passages_record, search
from analysis.features.statistics import features_path
from analysis.stats import FEWEST_SCORED
from analysis.ui.dashboard import state
from analysis.ui.dashboard.address import KEPT, go
from analysis.ui.dashboard.state import RIGHT, chosen, errors_shown, escaped, need_language_model, without_flags
from analysis.ui.terminal.detectors import BY_PHRASE, ORDER, WITHOUT_PHRASE, search_summary

FORMATS = {"AUROC": "%.3f", "w/o": "%.2f", "precision": "%.2f", "coverage": "%.2f", "q": "%.2g"}

choice = chosen()


@st.cache_data(show_spinner=False, max_entries=32)
def found(path: str, members: tuple[str, ...], phrase: str, examples: tuple[str, ...], against: tuple[str, ...]):
    """(the result of the search, lines of text that summarize the passages and the result)."""
    run, options = state.run_at(path), SearchSettings(member=members)
    of_corpus = concept_texts(phrase, options)
    dictionaries = {name: state.dictionary(path, name) for name in members}
    texts, result = search(
        phrase, run, run.language_model, dictionaries, options, [*of_corpus[0], *examples], [*of_corpus[1], *against]
    )
    record = passages_record(texts, state.store(path, members[0]).train.documents, options.seed)
    return result, search_summary(phrase, record, result, options.fdr)


def words_of(member: str, feature: int) -> dict[str, str]:
    """The tokens on which a feature is strongest and that it promotes, if the member's statistics are computed."""
    file = features_path(Path(choice.path), member)
    if not file.exists():
        return {}
    listed = state.listed(choice.path, member, file.stat().st_mtime)
    return {"strongest on": listed.strongest_F[feature], "promotes": listed.promotes_F[feature]}


st.title("Find a concept")
need_language_model()
with st.form("concept"):
    phrase = st.text_input("Word or phrase", placeholder="ship", key="phrase", **KEPT)
    with st.expander("Your own texts"):
        texts = [
            st.text_area("About the concept, one per line", key="examples", **KEPT),
            st.text_area(
                "Not about the concept, one per line (instead of passages of the corpus)",
                key="against",
                **KEPT,
            ),
        ]
    everywhere = len(choice.run.members) > 1 and st.checkbox(
        f"In all {len(choice.run.members)} members",
        help="takes longer: every dictionary is searched",
        key="everywhere",
        **KEPT,
    )
    st.form_submit_button("Find", type="primary")
if not phrase.strip():
    st.caption("Different passages choose the features, set their thresholds and score them.")
    st.stop()
members = tuple(choice.run.members) if everywhere else (choice.member,)
examples, against = (tuple(line for line in map(str.strip, box.splitlines()) if line) for box in texts)
with errors_shown(), st.spinner("reading passages of the corpus"):
    result, lines = found(choice.path, members, phrase, examples, against)
for line in lines:
    st.caption(escaped(without_flags(line)))
rows = [
    {
        "feature": feature.feature,
        "AUROC": feature.detector.auroc,
        "95%": "{:.2f} to {:.2f}".format(*feature.detector.auroc_interval) if feature.detector.auroc_interval else None,
        "w/o": feature.detector.auroc_without_phrase,
        "needs": "phrase" if feature.needs_phrase else "",
        "precision": feature.detector.precision,
        "coverage": feature.detector.coverage,
        "q": feature.q_value,
        "passes": feature.passes,
        **words_of(feature.member, feature.feature),
        "member": feature.member,
    }
    for feature in result.features
]
explained = [f"w/o: {WITHOUT_PHRASE}."]
if any(row["needs"] for row in rows):
    explained.append(
        f"phrase: at most {PHRASE_ONLY:.0%} of what the AUROC has over 0.5 is left without these tokens, so the "
        f"feature {BY_PHRASE}."
    )
if not all(row["95%"] for row in rows):
    explained.append(f"The 95% interval of the AUROC needs {FEWEST_SCORED} scored passages of the concept.")
st.caption(f"Click a row to open the feature. The order is {ORDER}. {' '.join(explained)}")
narrow = {name: st.column_config.Column(width=100) for name in ("strongest on", "promotes") if rows and name in rows[0]}
rows = [row if everywhere else {name: cell for name, cell in row.items() if name != "member"} for row in rows]
if row := state.clicked_row(rows, "found", FORMATS, **{"95%": RIGHT}, **narrow):
    go("feature", feature=row["feature"], member=row.get("member", choice.member))
