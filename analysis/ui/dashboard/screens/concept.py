"""The page that searches for features that detect a concept."""

import streamlit as st

from analysis.concepts.search import SearchSettings, concept_texts, passages_record, search
from analysis.stats import FEWEST_SCORED
from analysis.ui.dashboard import state
from analysis.ui.dashboard.state import chosen, errors_shown, escaped, go, without_flags
from analysis.ui.terminal.detectors import search_summary

FORMATS = {"w/o": "%.2f", "precision": "%.2f", "coverage": "%.2f", "q": "%.2g"}

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


st.title("Find a concept")
with st.form("concept"):
    phrase = st.text_input("Word or phrase", placeholder="ship")
    with st.expander("Your own texts"):
        examples = st.text_area("About the concept, one per line")
        against = st.text_area("Not about the concept, one per line (instead of passages of the corpus)")
    everywhere = st.checkbox(
        f"In all {len(choice.run.members)} members", help="takes longer: every dictionary is searched"
    )
    asked = st.form_submit_button("Find", type="primary")
if asked and phrase.strip():
    members = tuple(choice.run.members) if everywhere else (choice.member,)
    st.session_state["sought"] = (
        choice.path,
        members,
        phrase,
        *(tuple(line for line in map(str.strip, box.splitlines()) if line) for box in (examples, against)),
    )
if not (query := st.session_state.get("sought")) or query[0] != choice.path:
    st.caption("Different passages choose the features, set their thresholds and score them.")
    st.stop()
with errors_shown(), st.spinner("reading passages of the corpus"):
    result, lines = found(*query)
for line in lines:
    st.caption(escaped(without_flags(line)))
rows = [
    {
        "feature": feature.feature,
        "member": feature.member,
        "AUROC": round(feature.detector.auroc, 3),
        "95%": "{:.2f} to {:.2f}".format(*feature.detector.auroc_interval) if feature.detector.auroc_interval else None,
        "w/o": feature.detector.auroc_without_phrase,
        "": "detects the token, not the concept" if feature.detector.needs_phrase else "",
        "precision": feature.detector.precision,
        "coverage": feature.detector.coverage,
        "q": feature.q_value,
        "passes": feature.passes,
    }
    for feature in result.features
]
st.caption(
    "Click a row to open the feature. The 95% interval of the AUROC needs at least "
    f"{FEWEST_SCORED} scored passages of the concept. w/o: the AUROC without the tokens of the phrase itself; near "
    "0.5, the feature detects the token, not the concept. The order is by the AUROC on the passages that chose the "
    "features, which is not shown: it is too high for the best of many."
)
if row := state.clicked_row(rows, "found", FORMATS):
    go("feature", feature=row["feature"], member=row["member"])
