"""From a concept to the features that detect it."""

import streamlit as st

from analysis.concepts.search import SearchSettings, concept_texts, passages_record, search
from analysis.stats import FEWEST_SCORED
from analysis.ui.dashboard import state as opened
from analysis.ui.dashboard.state import chosen, errors_shown, go, plain, without_flags
from analysis.ui.terminal.detectors import search_summary

at = chosen()


@st.cache_data(show_spinner=False, max_entries=32)
def found(path: str, members: tuple[str, ...], phrase: str, examples: tuple[str, ...], against: tuple[str, ...]):
    """(the result, what it was found by in words)."""
    run, options = opened.run_at(path), SearchSettings(member=members)
    of_corpus = concept_texts(phrase, run, options)
    dictionaries = {name: opened.dictionary(path, name) for name in members}
    of, result = search(
        phrase, run, run.language_model, dictionaries, options, [*of_corpus[0], *examples], [*of_corpus[1], *against]
    )
    record = passages_record(of, opened.store(path, members[0]).train.documents, options.seed)
    return result, search_summary(phrase, record, result, options.fdr)


st.title("Find a concept")
with st.form("concept"):
    phrase = st.text_input("Word or phrase", placeholder="ship")
    with st.expander("Texts of your own"):
        examples = st.text_area("About it, one a line")
        against = st.text_area("Not about it, one a line, in place of others of the corpus")
    everywhere = st.checkbox(f"In all {len(at.run.members)} members", help="takes longer: each dictionary is tried")
    asked = st.form_submit_button("Find", type="primary")
if asked and phrase.strip():
    members = tuple(at.run.members) if everywhere else (at.member,)
    st.session_state["sought"] = (
        at.path,
        members,
        phrase,
        *(tuple(line for line in map(str.strip, box.splitlines()) if line) for box in (examples, against)),
    )
if not (query := st.session_state.get("sought")) or query[0] != at.path:
    st.caption("Each feature is chosen, given its threshold and scored on different passages.")
    st.stop()
with errors_shown(), st.spinner("reading passages of the corpus"):
    result, lines = found(*query)
for line in lines:
    st.caption(plain(without_flags(line)))
rows = [
    {
        "feature": of.feature,
        "member": of.member,
        "AUROC": round(of.detector.auroc, 3),
        "95%": "{:.2f} to {:.2f}".format(*of.detector.auroc_interval) if of.detector.auroc_interval else None,
        "precision": of.detector.precision,
        "coverage": of.detector.coverage,
        "q": of.q_value,
        "passes": of.passes,
    }
    for of in sorted(result.features, key=lambda of: (not of.passes, -of.detector.auroc))
]
st.caption(
    f"A click on a row opens the feature. With fewer than {FEWEST_SCORED} passages of the concept to score on there is "
    "no interval."
)
if row := opened.clicked_row(rows, "found", {"precision": "%.2f", "coverage": "%.2f", "q": "%.2g"}):
    go("feature", feature=row["feature"], member=row["member"])
