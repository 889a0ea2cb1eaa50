"""The dashboard's menu: the choice of run and member, and the pages. Started by `python main.py dashboard RUN...`."""

import streamlit as st

from analysis.plots.theme import STYLE
from analysis.ui.dashboard.address import complete_member, follow
from analysis.ui.dashboard.state import Chosen, arguments, chosen, errors_shown, escaped, run_at
from harvest.errors import InputError
from sae_jax.best_member import best_of_results

WRAPPED = ".stMarkdownBadge { white-space: normal !important; }"  # else long badges end in … on a phone

st.set_page_config("sae-jax", layout="wide")
st.html(f"<style>{STYLE} {WRAPPED}</style>")
page = st.navigation(  # the folder must not be named `pages`: Streamlit would show its files without this menu
    [
        st.Page("screens/population.py", title="Population", default=True),
        st.Page("screens/study.py", title="Training and study"),
        st.Page("screens/features.py", title="Features"),
        st.Page("screens/feature.py", title="One feature"),
        st.Page("screens/text.py", title="Type text"),
        st.Page("screens/concept.py", title="Find a concept"),
        st.Page("screens/steer.py", title="Steer"),
    ]
)
runs, *_ = arguments()
path = runs[follow("run", list(runs), st.sidebar)]
with errors_shown():
    members = list(run_at(path).members)
    if not members:
        raise InputError(f"{path}: all its members failed in training: choose another run")
best = best_of_results(run_at(path).members) or members[0]
wrong = complete_member(run_at(path))
st.session_state["chosen"] = Chosen(path, follow("member", members, st.sidebar, best))
with errors_shown():
    if wrong:
        st.error(escaped(f"{wrong}; {chosen().member} is shown".removeprefix("--member ")))
    page.run()
