"""Statistics of features: the streaming pass compared with numpy over all rows, and planted specialization."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from command_line import THREE_KINDS, shared_cache, typed
from hypothesis import given
from hypothesis import strategies as st
from rows import make_store
from scipy import sparse, stats

from analysis.features import activations, cofiring, streaming
from analysis.features import row_labels as labels_module
from analysis.features import statistics as feature_statistics
from analysis.features.activations import CONTEXT_TOKENS
from analysis.features.cofiring import CoFiring
from analysis.features.contexts import context_text
from analysis.features.row_labels import SHUFFLES, Labels
from analysis.features.specialization import mutual_information, over_chance, p_values, specialization
from analysis.features.statistics import Features, load_or_compute_features
from analysis.features.store_pass import accumulate_firings
from analysis.features.streaming import BARS, ENTRY, SMALLEST, Histogram, TopKPerFeature
from analysis.runs.finished import FinishedRun
from harvest.files import write_arrays
from harvest.model.language_model import LanguageModel
from harvest.model.logit_weights import logit_weights
from harvest.model.tokenizer import load_tokenizer
from harvest.sources import BUNDLED_MODEL
from harvest.text.hashes import context_hashes
from sae_jax.models.registry import KINDS

F, D = 24, 32


def test_a_feature_promotes_what_its_direction_suppresses_if_its_peak_is_negative():
    of = SimpleNamespace(
        max_F=np.array([2.0, -2.0]),
        promoted_FxT=np.array([[1], [2]]),
        suppressed_FxT=np.array([[3], [4]]),
        promoted_weight_FxT=np.array([[0.5], [0.6]]),
        suppressed_weight_FxT=np.array([[-0.7], [-0.8]]),
    )
    assert Features.promoted_at_peak(of, 0) == (1, 0.5) and Features.promoted_at_peak(of, 1) == (4, 0.8)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), windows=300)


@pytest.fixture(scope="module")
def sae():
    rng = np.random.default_rng(1)
    W = rng.standard_normal((F, D)).astype(np.float32)
    b_enc = np.full(F, -8, np.float32)
    b_enc[3] = -1e6  # never fires
    return KINDS["relu"]({"W_encT": W, "b_enc": b_enc, "W_dec": W, "b_dec": np.zeros(D, np.float32)}, {}, "")


@pytest.fixture(scope="module")
def labels(store):
    documents = max(store.train.documents.max(), store.held_out.documents.max()) + 1
    parity = Labels("document", np.arange(documents) % 2, ["even", "odd"])
    return {
        "parity": parity,
        "token": Labels("token", np.arange(1000) % 3, list("abc")),
        "position": Labels("position", np.arange(8), list("01234567")),
    }


def everything(store, sae):
    """(features, token, position, document) of all rows, training rows first, in numpy."""
    splits = (store.train, store.held_out)
    f_NxF = np.concatenate([np.asarray(sae.encode(split.read(0, len(split)).astype(np.float32))) for split in splits])
    places = [(*split.context(row), s) for s, split in enumerate(splits) for row in range(len(split))]
    token_N = np.array([tokens[position] for tokens, position, *_ in places])
    position_N = np.array([position - 1 for _, position, *_ in places])
    return f_NxF, token_N, position_N, np.array([document for _, _, document, _ in places])


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.floats(-1e4, 1e4, width=32)), max_size=20), min_size=1, max_size=6
    )
)
def test_a_histogram_grows_with_its_values(chunks):
    """The bars of a histogram that grew with its values hold the counts of numpy between the same edges."""
    histogram = Histogram(3)
    for chunk in chunks:
        feature_Z, value_Z = np.array([f for f, _ in chunk], int), np.array([v for _, v in chunk], np.float32)
        histogram.add(feature_Z, value_Z)
    for feature in range(3):
        values = np.array([v for chunk in chunks for f, v in chunk if f == feature], np.float64)
        limit = histogram.limit_F[feature]
        expected, _ = np.histogram(values, np.linspace(-limit, limit, BARS + 1))
        assert histogram.count_FxB[feature].tolist() == expected.tolist()
        assert histogram.count_FxB[feature].sum() == len(values)
        if len(values) and (largest := np.abs(values).max()) >= SMALLEST:
            assert limit / 2 <= largest < limit


@pytest.mark.parametrize("chunk_rows,pending", [(4096, 1 << 20), (40, 30)])
def test_the_streaming_pass_equals_numpy_for_any_chunks(store, sae, labels, monkeypatch, chunk_rows, pending):
    monkeypatch.setattr(activations, "CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(streaming, "PENDING", pending)
    of, rows_SxL = accumulate_firings(sae, store, labels, 0)
    f_NxF, token_N, position_N, document_N = everything(store, sae)
    fires_NxF = f_NxF != 0
    assert 0.02 < fires_NxF.mean() < 0.5 and not fires_NxF[:, 3].any()
    np.testing.assert_array_equal(of.count_F, fires_NxF.sum(0))
    np.testing.assert_allclose(of.sum_F, f_NxF.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(of.together.matrix_FxF, fires_NxF.T.astype(int) @ fires_NxF)
    for p in range(8):
        np.testing.assert_array_equal(of.position_FxP[:, p], fires_NxF[position_N == p].sum(0))
    for code in range(2):
        np.testing.assert_array_equal(of.label_SxFxL["parity"][0, :, code], fires_NxF[document_N % 2 == code].sum(0))
    for code in range(3):
        np.testing.assert_array_equal(of.label_SxFxL["token"][0, :, code], fires_NxF[token_N % 3 == code].sum(0))
        assert (rows_SxL["token"][0, code] == (token_N % 3 == code).sum()).all()
    for name in labels:  # shuffled labels are counted on the same firings
        np.testing.assert_array_equal(of.label_SxFxL[name].sum(2), np.tile(of.count_F, (1 + SHUFFLES, 1)))

    window_N = np.arange(len(f_NxF)) // 8
    top_row_FxK, top_value_FxK = of.top.table("row", -1), of.top.table("value", 0)
    for feature in range(F):
        strongest_W = np.zeros(window_N.max() + 1)
        np.maximum.at(strongest_W, window_N, f_NxF[:, feature])
        expected = np.sort(strongest_W[strongest_W > 0])[::-1][:20]
        rows = top_row_FxK[feature][top_row_FxK[feature] >= 0]
        np.testing.assert_allclose(top_value_FxK[feature][: len(expected)], expected, rtol=1e-6)
        np.testing.assert_allclose(f_NxF[rows, feature], top_value_FxK[feature][: len(rows)], rtol=1e-6)
        assert len(set(window_N[rows])) == len(rows) == len(expected)


def test_the_sample_is_uniform_over_windows(store, sae, labels):
    of = accumulate_firings(sae, store, labels, 0)[0]
    feature = int(of.count_F.argmax())
    rows = of.sample.table("row", -1)[feature]
    assert (rows >= 0).all()
    total = len(store.train) + len(store.held_out)
    assert stats.kstest(rows / total, "uniform").pvalue > 1e-3


def entries_of(*entries: tuple[float, int, int]) -> np.ndarray:
    """Entries of one feature from (key, row, context)."""
    found = np.zeros(len(entries), ENTRY)
    found["key"], found["row"], found["alike"] = np.transpose(entries)
    found["window"] = found["row"] // 4
    return found


def test_equal_contexts_are_shown_once():
    kept = TopKPerFeature(features=2, size=5, apart=True)
    entries = entries_of((3, 0, 7), (2, 40, 7), (1, 80, 8), (5, 120, 7))
    entries["feature"] = [0, 0, 0, 1]
    kept.add(entries)
    assert kept.table("row", -1).tolist() == [[0, 80, -1, -1, -1], [120, -1, -1, -1, -1]]


def test_a_hidden_firing_hides_nothing():
    kept = TopKPerFeature(features=1, size=5, apart=True)
    kept.add(entries_of((9, 0, 7), (8, 40, 7), (7, 41, 8), (6, 1, 9), (5, 80, 9)))
    assert kept.table("row", -1).tolist() == [[0, 41, 80, -1, -1]]


def test_a_hidden_firing_returns_if_the_one_that_hid_it_is_hidden(monkeypatch):
    monkeypatch.setattr(streaming, "PENDING", 0)
    kept = TopKPerFeature(features=1, size=2, apart=True)
    kept.add(entries_of((5, 0, 7), (4, 1, 8)))
    kept.add(entries_of((9, 40, 7)))
    assert kept.table("row", -1).tolist() == [[40, 1]]


@pytest.fixture(scope="module")
def bursty():
    """A feature with 937 firings on one token, in long runs of a dozen contexts, and 63 firings on different tokens."""
    rng = np.random.default_rng(0)
    entries = np.zeros(1000, ENTRY)
    entries["row"] = np.concatenate([np.arange(937), 10_000 + 50 * np.arange(63)])
    entries["window"] = entries["row"] // 50
    entries["alike"] = np.concatenate([np.arange(937) % 12, 100 + np.arange(63)])
    entries["token"] = np.concatenate([np.full(937, 5), 100 + np.arange(63)])
    entries["value"] = np.concatenate([rng.uniform(8, 12, 937), rng.uniform(0.5, 1.5, 63)])
    return entries


def test_the_sample_is_random_and_only_shown_contexts_are_distinct(bursty):
    rng, of = (
        np.random.default_rng(1),
        SimpleNamespace(top=TopKPerFeature(1, 20, apart=True), sample=TopKPerFeature(1, 100)),
    )
    for kept, keys in ((of.top, bursty["value"]), (of.sample, rng.random(len(bursty)))):
        bursty["key"] = keys
        kept.add(bursty)
    token_F, share_F = feature_statistics.most_frequent(of.sample.table("token", -1))
    row_FxR, alike_FxR = of.sample.table("row", -1), of.sample.table("alike", 0)
    median = feature_statistics.quantiles(of.sample.table("value", 0), row_FxR >= 0)[0, 2]
    assert token_F[0] == 5 and share_F[0] == pytest.approx(0.937, abs=0.07)  # three deviations for 100 samples
    assert median == pytest.approx(np.median(bursty["value"]), abs=0.5)
    new_R = feature_statistics.is_new(of, of.sample.table("window", -1), alike_FxR)[0]
    shown = np.concatenate([of.top.table("row", -1)[0], row_FxR[0][new_R]])
    shown = shown[shown >= 0]
    alike = np.concatenate([of.top.table("alike", 0)[0][: len(shown) - new_R.sum()], alike_FxR[0][new_R]])
    assert len(set(shown // 50)) == len(set(alike)) == len(shown) > 20


def test_contexts_are_equal_where_the_token_and_those_before_are():
    tokens_WxT = np.array([[5, 6, 7, 8], [5, 6, 7, 9], [6, 5, 7, 8]])
    hash_WxT = context_hashes(tokens_WxT, CONTEXT_TOKENS)
    np.testing.assert_array_equal(hash_WxT[0, :3], hash_WxT[1, :3])
    assert hash_WxT[0, 3] != hash_WxT[1, 3] and hash_WxT[0, 2] != hash_WxT[2, 2]
    assert len(set(hash_WxT[0])) == 4


@pytest.fixture
def firing_rows():
    rng = np.random.default_rng(0)
    fires_NxF = rng.random((5000, 6)) < 0.1
    fires_NxF[:, 1] |= fires_NxF[:, 0]
    return fires_NxF


def cofiring_of(fires_NxF, chunk=700):
    of = CoFiring(fires_NxF.shape[1], 0)
    for start in range(0, len(fires_NxF), chunk):
        of.add(sparse.csr_array(fires_NxF[start : start + chunk].astype(np.int32)))
    return of.counted()


@pytest.mark.parametrize("matrix_bytes", [cofiring.MATRIX_BYTES, 0], ids=["a matrix", "rows kept"])
def test_features_that_fire_together_have_the_highest_phi(firing_rows, monkeypatch, matrix_bytes):
    monkeypatch.setattr(cofiring, "MATRIX_BYTES", matrix_bytes)
    monkeypatch.setattr(cofiring, "BLOCK_PAIRS", 12)  # two features at a time
    of, phi_FxF = cofiring_of(firing_rows), np.corrcoef(firing_rows.T)
    np.fill_diagonal(phi_FxF, 0)
    np.testing.assert_array_equal(of.together(slice(2, 4)).toarray(), (firing_rows.T.astype(int) @ firing_rows)[2:4])
    other_FxJ, found_FxJ = of.closest(4)
    np.testing.assert_allclose(found_FxJ, np.maximum(-np.sort(-phi_FxF, axis=1)[:, :4], 0), atol=1e-6)
    assert ((other_FxJ >= 0) == (found_FxJ > 0)).all() and (other_FxJ == -1).any()
    assert other_FxJ[0, 0] == 1 and other_FxJ[1, 0] == 0 and found_FxJ[0, 0] > 0.6


def test_phi_is_computed_on_random_rows_if_there_are_too_many_firings(firing_rows, monkeypatch):
    monkeypatch.setattr(cofiring, "MATRIX_BYTES", 0)
    monkeypatch.setattr(cofiring, "MOST_FIRINGS", 2000)
    of = cofiring_of(firing_rows)
    assert 500 < of.kept.nnz == of.count_F.sum() <= 2000 and of.rows < len(firing_rows) / 1.5
    other_FxJ, phi_FxJ = of.closest(1)
    assert other_FxJ[:2, 0].tolist() == [1, 0]
    assert phi_FxJ[0] == pytest.approx(np.corrcoef(firing_rows.T)[0, 1], abs=0.1)


def test_logit_weights_have_the_norms_gain_and_no_scale():
    model = LanguageModel.load(str(BUNDLED_MODEL))
    state = {name: value.double().numpy() for name, value in model.bridge.original_model.state_dict().items()}
    gain_D = next(value for name, value in state.items() if "ln_f" in name and name.endswith("weight"))
    W_U_VxD = next(value for name, value in state.items() if "lm_head" in name and name.endswith("weight"))
    directions_KxD = np.random.default_rng(0).standard_normal((3, model.d_model))
    centered_KxD = directions_KxD - directions_KxD.mean(1, keepdims=True)
    np.testing.assert_allclose(logit_weights(model, directions_KxD), (centered_KxD * gain_D) @ W_U_VxD.T, atol=2e-3)


# Labels.


def test_only_fields_with_few_different_texts_are_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(labels_module, "MOST_LABELS", 3)
    records = [
        {"text": "x", "kind": "ab"[i % 2], "title": f"no. {i}", "one": "same", "late": "p" if i < 3 else None}
        for i in range(8)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = labels_module.document_labels(tmp_path / "t.jsonl")
    assert list(found) == ["kind"] and found["kind"].names == ["a", "b"]
    assert found["kind"].codes.tolist() == [0, 1] * 4
    assert not labels_module.document_labels(tmp_path / "t.jsonl", ["kind"]), "the column that was read is no label"


def test_a_corpus_whose_text_has_another_key_has_labels(tmp_path):
    records = [{"body": f"text {i}", "kind": "ab"[i % 2]} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert list(labels_module.document_labels(tmp_path / "t.jsonl", ["body"])) == ["kind"]


def test_windows_with_one_position_have_no_position_labels():
    tokenizer = LanguageModel.load(str(BUNDLED_MODEL)).tokenizer
    assert list(labels_module.labels_of("t.txt", tokenizer, 1, 1)) == ["token class"]
    two = labels_module.labels_of("t.txt", tokenizer, 2, 1)["position"]
    assert two.codes.tolist() == [0, 1] and two.names == ["1", "2"], "as in the window, whose position 0 has no row"
    names = labels_module.labels_of("t.txt", tokenizer, 19, 1)["position"].names
    assert len(names) == 16 and names[0] == "1 to 2" and names[-1] == "19"


# Specialization.


def test_information_and_entropy_of_planted_features():
    rows_L = np.full(4, 10_000)
    count_FxL = np.array([[1000, 0, 0, 0], [250, 250, 250, 250], [500, 500, 0, 0]])
    np.testing.assert_allclose(specialization(count_FxL, rows_L), [1, 0, 0.5], atol=0.002)
    p = 0.025  # the feature fires on 1000 of 40,000 rows, all with one label
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    given_label = 0.25 * -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9))
    np.testing.assert_allclose(mutual_information(count_FxL, rows_L)[:2], [entropy - given_label, 0], atol=1e-4)
    assert np.isnan(specialization(np.zeros((1, 4), int), rows_L)).all()


def test_unequal_labels_do_not_make_a_feature_specialized():
    rows_L = np.array([30_000, 10_000])
    assert specialization(np.array([[3000, 1000]]), rows_L)[0] == pytest.approx(0, abs=1e-3)


@pytest.fixture(scope="module")
def planted():
    """(scores [S, F], density, specialists): half of 400 features fire on one topic each, in documents of 20 rows."""
    rng = np.random.default_rng(0)
    documents, topics, count = 1500, 10, 400
    topic_G, loud_G = rng.integers(0, topics, documents), rng.gamma(0.5, 2.0, (count, documents))
    special_F = np.arange(count) % 2 == 0
    rate_FxG = loud_G * rng.uniform(0.005, 0.1, (count, 1))
    rate_FxG *= np.where(special_F[:, None] & (topic_G == np.arange(count)[:, None] % topics), 4, 1)
    fires_FxG = rng.binomial(20, np.clip(rate_FxG, 0, 1))
    scores = []
    for shuffle in range(1 + 2 * SHUFFLES):
        of_G = topic_G if shuffle == 0 else rng.permutation(topic_G)
        onehot_GxL = np.eye(topics, dtype=int)[of_G]
        scores.append(specialization(fires_FxG @ onehot_GxL, 20 * onehot_GxL.sum(0)))
    return np.stack(scores), fires_FxG.sum(1), special_F


def test_planted_specialists_are_distinguished_from_features_on_few_documents(planted):
    score_SxF, count_F, special_F = planted
    found_F = stats.false_discovery_control(p_values(score_SxF[: 1 + SHUFFLES], count_F)) <= 0.05
    assert found_F[special_F].mean() > 0.95
    assert (found_F & ~special_F).sum() / found_F.sum() <= 0.1
    assert over_chance(score_SxF[: 1 + SHUFFLES])[~special_F].mean() == pytest.approx(0, abs=0.005)


def test_on_shuffled_labels_nothing_is_found(planted):
    score_SxF, count_F, _ = planted
    p_F = p_values(score_SxF[1 : 2 + SHUFFLES], count_F)  # the first shuffle replaces the true labels
    assert (stats.false_discovery_control(p_F) <= 0.05).mean() <= 0.01
    assert 0.02 < (p_F <= 0.05).mean() < 0.09


def test_a_few_specialists_among_many_features_are_found():
    rng, documents, rows = np.random.default_rng(0), 600, 40
    label_G, special_F = rng.integers(0, 4, documents), np.arange(1000) < 10
    rate_FxG = np.where(special_F[:, None], np.where(label_G == 0, 0.08, 0), 0.02)
    count_FxG, scores = rng.binomial(rows, rate_FxG), []
    for shuffle in range(1 + SHUFFLES):
        on_GxL = np.eye(4)[rng.permutation(label_G) if shuffle else label_G]
        scores.append(specialization(count_FxG @ on_GxL, on_GxL.sum(0) * rows))
    found_F = stats.false_discovery_control(p_values(np.stack(scores), count_FxG.sum(1))) <= 0.05
    assert found_F[special_F].all() and found_F[~special_F].mean() < 0.005


# Statistics of a run.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cache = shared_cache(tmp_path_factory)
    path = tmp_path_factory.mktemp("runs") / "described"
    done = typed(*THREE_KINDS, "--epochs", "3", "--run-dir", path, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    return FinishedRun.open(path), cache


def test_statistics_are_computed_once_and_then_read(run, monkeypatch):
    run, cache = run
    members = list(run.members)
    found = load_or_compute_features(run, members, cache)
    files = {path: path.stat().st_mtime_ns for path in (run.path / "analysis" / "features").iterdir()}
    assert sorted(path.stem for path in files) == sorted(members)
    monkeypatch.setattr(feature_statistics, "accumulate_firings", None)  # so that a call fails
    again = load_or_compute_features(run, members, cache)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    for name in members:
        for field, value in vars(found[name]).items():
            np.testing.assert_equal(getattr(again[name], field), value)


def test_statistics_computed_before_a_stop_are_kept(run, tmp_path, monkeypatch):
    run, cache = run
    copied = FinishedRun.open(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(copied.path / "analysis", ignore_errors=True)
    first, *others = copied.members

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "features" and done > total / 2:  # in the second of three members
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_compute_features(copied, list(copied.members), cache, stop)
    assert [path.stem for path in (copied.path / "analysis" / "features").iterdir()] == [first]
    passes = []
    monkeypatch.setattr(
        feature_statistics, "accumulate_firings", lambda *given: passes.append(given) or accumulate_firings(*given)
    )
    found = load_or_compute_features(copied, list(copied.members), cache)
    assert len(passes) == len(others)
    alone = load_or_compute_features(run, list(run.members), cache)
    for name in found:
        np.testing.assert_equal(vars(found[name]), vars(alone[name]))


def test_a_feature_fires_at_the_token_that_its_context_marks(run):
    run, cache = run
    name = next(name for name in run.members if name.startswith("topk"))
    of = load_or_compute_features(run, [name], cache)[name]
    store, sae, tokenizer = run.store(run.site(name), cache), run.dictionary(name).sae, run.language_model.tokenizer
    assert set(of.labels) == {"topic", "subject", "form", "token class", "position"}
    feature = int(of.density_F.argmax())
    row, value = int(of.top_row_FxK[feature, 0]), of.max_F[feature]
    split, local = (store.train, row) if row < len(store.train) else (store.held_out, row - len(store.train))
    assert np.asarray(sae.encode(split.read(local, local + 1).astype(np.float32)))[0, feature] == pytest.approx(value)
    context = context_text(store, tokenizer, row)
    tokens_T, position, document = split.context(local)
    assert context.token == tokenizer.decode([tokens_T[position]]) and context.document == document
    assert context.before + context.token + context.after in tokenizer.decode(tokens_T)


def test_a_context_does_not_begin_or_end_within_a_character():
    tokenizer = load_tokenizer(str(BUNDLED_MODEL))
    tokens_T = np.array(tokenizer.encode("\N{SNOWMAN}\N{COMET}\N{CLOUD}" * 8))
    train = MagicMock(context=lambda row: (tokens_T, row, 0))
    train.__len__.return_value = len(tokens_T)
    for row in range(len(tokens_T)):
        context = context_text(SimpleNamespace(train=train, held_out=[]), tokenizer, row)
        assert not context.before.startswith("\ufffd") and not context.after.endswith("\ufffd")


def test_statistics_of_another_version_are_computed_again(run, tmp_path):
    path = tmp_path / "old.npz"
    write_arrays(path, {"format": np.array(feature_statistics.FORMAT - 1)})
    assert Features.load(path) is None
