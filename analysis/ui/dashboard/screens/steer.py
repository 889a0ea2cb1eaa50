"""The page that shows the model's text with and without a feature being turned up, down or off."""

import streamlit as st

from analysis.interventions.experiment import steer_feature
from analysis.interventions.steering import MODES, UNSTEERED, Sampling
from analysis.ui.dashboard import address, state
from analysis.ui.dashboard.state import chosen, errors_shown, escaped, need_language_model
from analysis.ui.dashboard.token_html import passage, visible

choice = chosen()
st.title("Steer")
need_language_model()
features = state.features()
last = len(features.density_F) - 1
address.choose_asked_feature(last)


@st.cache_data(show_spinner=False, max_entries=32)
def steered(path: str, member: str, feature: int, mode: str, strength: float, sampling: Sampling):
    run, sae = state.run_at(path), state.dictionary(path, member).sae
    strengths = (0.0,) if mode == "ablate" else (strength,)
    return steer_feature(run, member, sae, state.features(), feature, mode, strengths, sampling).steered


def asked() -> None:
    """Keep in the address that a text was asked for, and with which feature."""
    address.see(st.session_state["feature"])
    address.keep("written", 1)


with st.form("steer"):
    text = st.text_input("Prompt", "I went for a walk and", key="prompt", **address.KEPT)
    first, second, third = st.columns(3)
    feature = int(first.number_input("Feature", 0, last, key="feature"))
    mode = second.selectbox(
        "Mode", MODES, help="add to the feature, set it (clamp), or remove it (ablate)", key="mode", **address.KEPT
    )
    strength = third.slider(
        "Strength, in units of the feature's maximum", -4.0, 4.0, 1.0, 0.25, key="strength", **address.KEPT
    )
    fourth, fifth, sixth, seventh = st.columns(4)
    new_tokens = int(fourth.slider("Tokens to generate", 5, 100, 40, key="tokens", **address.KEPT))
    temperature = fifth.slider("Temperature", 0.0, 1.5, 0.7, 0.1, key="temperature", **address.KEPT)
    samples = int(sixth.slider("Samples", 1, 8, 3, key="samples", **address.KEPT))
    seed = int(seventh.number_input("Seed", 0, value=0, key="seed", **address.KEPT))
    st.form_submit_button("Write", type="primary", on_click=asked)
address.see(feature)
if "written" not in st.query_params:
    st.caption(f"Strength 1 adds the feature's maximum on the corpus, which is {features.max_F[feature]:.2f}.")
    st.stop()
if mode == "clamp" and not strength:
    st.error("Clamping a feature to 0 is the same as ablating it: choose ablate, or another strength.")
    st.stop()
with errors_shown(), st.spinner("generating text"):
    samples = samples if temperature else 1  # all would be the same
    sampling = Sampling((text,), new_tokens, samples, temperature, seed=seed)
    result = steered(choice.path, choice.member, feature, mode, strength, sampling)
(name, (after,)), before = next(iter(result.directions.items())), result.plain[UNSTEERED]
label = "ablated" if result.mode == "ablate" else f"{result.mode} {after.strength:g}"
for column, title, texts in zip(st.columns(2), ("As it is", f"With {name}, {label}"), (before, after), strict=True):
    column.subheader(escaped(title))
    start = f'<span style="opacity:.6">{visible(text)}</span>'
    column.html("".join(passage(f"{start}{visible(sample)}") for sample in texts.texts[0]))
    with column.container(horizontal=True, gap="medium"):
        change = None if texts is before else f"{texts.probability - before.probability:+.4f}"
        help = f"probability of the {len(result.watched)} tokens that the feature promotes most"
        st.metric("its tokens", f"{texts.probability:.4f}", change, help=help)
        st.metric("perplexity", f"{texts.perplexity:.1f}", help="of the generated text under the unsteered model")
