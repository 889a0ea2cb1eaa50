"""The page of one feature."""

import json

import numpy as np
import streamlit as st

from analysis.features.specialists import SPECIAL
from analysis.interventions.ablation import WINDOWS, ablation_effect, output_score
from analysis.pages import feature as feature_page
from analysis.pages.notes import Note, read_notes, write_note
from analysis.runs.finished import can_be_kept
from analysis.stats import FEWEST_DOCUMENTS
from analysis.ui.dashboard import address, feature_figures, state
from analysis.ui.dashboard.address import KEPT, go
from analysis.ui.dashboard.state import chosen, errors_shown, escaped
from analysis.ui.dashboard.token_html import aligned_context, bars, coloured, passage

choice = chosen()
features = state.features()
last = len(features.density_F) - 1
address.choose_asked_feature(last)


def changed() -> None:
    address.see(st.session_state["feature"])


title, chooser = st.columns([3, 1], vertical_alignment="bottom")
number = int(chooser.number_input("Number", 0, last, key="feature", on_change=changed))
address.see(number)
title.title(f"Feature {number}")
title.caption(escaped(choice.member))
if choice.run.has_language_model and chooser.button("Steer it", icon=":material/tune:"):
    go("steer", feature=number)

with errors_shown(), st.spinner("reading its contexts"):
    compared = state.compared(choice.path)
    page = feature_page.compute_feature_page(
        choice.run,
        choice.member,
        number,
        features,
        state.dictionary(*choice),
        state.store(*choice),
        state.tokenizer(choice.path),
        compared,
    )


def facts() -> None:
    with st.container(horizontal=True, gap="medium"):
        st.metric("density", f"{features.density_F[number]:.4f}", help="share of all rows on which the feature fires")
        st.metric("maximum", f"{features.max_F[number]:.2f}", help="largest activation over all rows")
        st.metric("mean where it fires", f"{features.mean_F[number]:.2f}")
        if page.threshold is not None:
            st.metric("threshold", f"{page.threshold:.3f}")
        st.metric(
            "encoder · decoder", f"{features.cosine_F[number]:.2f}", help="cosine of the encoder and the decoder vector"
        )
        if choice.run.has_language_model:  # otherwise each row counts as a token of its own
            words = "share of the firings on the most frequent token"
            st.metric("one token", f"{features.token_share_F[number]:.0%}", help=words)
            words = (
                "share of the strongest contexts whose peak is one of the 20 tokens that the feature promotes "
                "(Arad et al. 2025)"
            )
            st.metric("input score", f"{page.input_score:.0%}", help=words)
    with st.container(horizontal=True):
        if page.found_again and compared:
            (again, seeds), least = page.found_again, f"{compared.threshold:g}"
            of_seeds = "other seed" if seeds == 1 else "other seeds"
            words = f"found again in {again} of {seeds} {of_seeds} (cosine of {least} or more)"
            icon = ":material/verified:" if again else ":material/close:"
            st.badge(words, icon=icon, color="green" if again else "orange")
        if page.strongest:
            st.badge(
                escaped(f"strongest on: {' · '.join(repr(token)[1:-1] for token in page.strongest[:8])}"), color="gray"
            )
        if page.token:
            st.badge(f"most frequent token: {escaped(repr(page.token)[1:-1])}", color="gray")
        neurons = ", ".join(f"{aligned.neuron} ({aligned.share:.1%})" for aligned in page.aligned)
        st.badge(escaped(f"largest dimensions (share of the L1 norm): {neurons}"), color="gray")
        for label in page.labels:
            if label.specialization < SPECIAL:
                continue
            words = (
                f"fires on {label.rate:.1%} of the rows of {label.name}: {label.label} "
                f"(specialization {label.specialization:.2f} over chance)"
            )
            st.badge(escaped(words), color="blue")


def note() -> None:
    """A star and a note, which are kept in the run, and the content of the page to download."""
    star_column, text_column, json_column = st.columns([1, 6, 1], vertical_alignment="bottom")
    saved = read_notes(choice.run.path, choice.member).get(number, Note(False, ""))
    star = star_column.toggle("Star", saved.star, key=f"star {choice.member} {number}")
    text = text_column.text_input("Note", saved.text, key=f"note {choice.member} {number}", max_chars=1000)
    written = Note(star, text.strip())
    reasons: list[str] = []
    if written != saved and can_be_kept(choice.run.path, reasons.append):
        write_note(choice.run.path, choice.member, number, written)
    for reason in reasons:
        st.error(escaped(reason))
    json_column.download_button(
        "JSON",
        lambda: json.dumps(feature_page.as_json(features, number, page), indent=1),
        f"{choice.member}-{number}.json",
        "application/json",
    )


def tried_text() -> None:
    text = st.text_input("Try a text on it", key="tried", **KEPT, placeholder="The ships lay in the harbour.")
    if not text.strip():
        return
    with errors_shown(), st.spinner("reading the text"):
        typed = state.read(*choice, text)
    values_T = typed.values_TxF[:, [number]].toarray().ravel()
    largest = abs(float(features.max_F[number]))
    st.html(passage(coloured(typed.tokens, values_T.tolist(), largest), f"largest: {np.abs(values_T).max():.2f}"))


def contexts() -> None:
    st.subheader("Where it fires")
    st.caption(
        "Contexts from the whole range of activation, by rank, with their peaks below each other. Colour shows the "
        "activation at each token. Click a context to read all of it."
    )
    below, names = 1.0, []
    for band in page.bands:
        if band.share is None:
            names.append("strongest")
        else:
            names.append(f"ranks {1 - below:.0%} to {1 - below + band.share:.0%}")
            below -= band.share
    for tab, band in zip(st.tabs(names), page.bands, strict=True):
        tab.caption(f"activation {band.low:.2f} to {band.high:.2f}")
        shown = [
            aligned_context(
                context.tokens,
                context.value_T.tolist(),
                abs(float(features.max_F[number])),
                context.peak,
                f"document {context.document}" + ", held out" * context.held_out,
            )
            for context in band.contexts
        ]
        tab.html("".join(shown))


def rows_of(features: list[feature_page.Beside], by: str) -> list[dict]:
    return [
        {"feature": other.feature, by: round(other.similarity, 3), "promotes": " · ".join(other.promoted)}
        for other in features
    ]


def others(title: str, rows: list[dict], key: str) -> None:
    """A table of features. A click on a row opens the feature's page."""
    st.subheader(title)
    if not rows:
        st.caption("none")
        return
    if row := state.clicked_row(rows, f"{key}-{number}"):
        go("feature", feature=row["feature"], member=row.get("member", choice.member))


def ablation() -> None:
    st.subheader("Effect of ablating it")
    st.caption(
        f"Measures the loss on the next tokens after its first firing in at most {WINDOWS} windows, and its output "
        "score. Loads the language model."
    )
    if not st.button("Ablate it", icon=":material/content_cut:"):
        return
    bar = st.progress(0.0, "loading")
    with errors_shown():
        effect = ablation_effect(
            choice.run, choice.member, number, state.arguments()[1], on_progress=state.shown_in(bar)
        )
        score = output_score(choice.run, choice.member, number, features)
    bar.empty()
    if not effect.windows:
        st.info("It fires at no position that is followed by another token.")
        return
    with st.container(horizontal=True, gap="medium"):
        few = f"no interval: {FEWEST_DOCUMENTS} documents are needed, {effect.documents} were measured"
        interval = "95%: {:.4f} to {:.4f}".format(*effect.interval) if effect.interval else few
        st.metric("loss, nats per token", f"{effect.loss_increase:+.4f}", help=interval)
        st.metric("KL, nats per token", f"{effect.kl:.4f}")
        st.metric("windows", effect.windows)
        st.metric("tokens", effect.tokens)
        words = (
            "(1 − best rank / V) · largest probability of the 20 tokens that it promotes, after a neutral prompt with "
            "the feature amplified"
        )
        st.metric("output score", f"{score:.4f}", help=f"{words} (Arad et al. 2025)")
    up, down = st.columns(2)
    up.caption("becomes likelier without it")
    up.html(bars(effect.tokens_up))
    down.caption("becomes less likely without it")
    down.html(bars(effect.tokens_down))


facts()
with errors_shown():
    note()
if features.alive_F[number]:
    contexts()
else:
    st.info("It never fires on this text.")
if choice.run.has_language_model:
    tried_text()
if page.promoted:
    left, right = st.columns(2)
    left.subheader("Promotes")
    left.html(bars(page.promoted[:10]))
    right.subheader("Suppresses")
    right.html(bars(page.suppressed[:10]))
elif choice.run.has_language_model:
    st.caption("It promotes no tokens by itself: the model reads this activation, or predicts no next token.")
else:
    st.caption(
        "It promotes no tokens, and cannot be tried on a text, steered or ablated: the rows were imported without a "
        "language model."
    )
drawn = list(feature_figures.figures(features, number, page.stages, choice.run.first_position))
for pair in (drawn[:2], drawn[2:]):
    for column, (_, figure) in zip(st.columns(2), pair, strict=False):
        state.draw(figure, column)
if choice.run.has_language_model:
    ablation()
left, right = st.columns(2)
with left:
    others("Neighbours by direction", rows_of(page.neighbours, "cosine"), "neighbours")
with right:
    others("Fires together with", rows_of(page.together, "phi"), "together")
if compared is None:
    st.caption("`study` shows whether other seeds and members have this feature, too.")
else:
    matched = [twin for twin in page.twins if twin.feature is not None]
    rows = [{"member": t.member, "feature": t.feature, "cosine": round(t.cosine, 3)} for t in matched]
    heading = f"Matching features in {len(rows)} of {len(page.twins)} other members"
    others(f"{heading} (one-to-one, cosine of {compared.threshold:g} or more)", rows, "twins")
