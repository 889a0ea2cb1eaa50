"""SAEBench's core metrics on cases with a known answer, and the whole command on the bundled model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from command_line import BUNDLED, shared_cache, trained

import main
from analysis.quality import absorption, sparse_probing, spurious_correlation
from analysis.quality.pooling import Pooled, pool
from analysis.quality.saebench import SAEBench, on_words
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.request import Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.passages import LETTERS, document_passages, labelled_text, spelling
from sae_jax.models.base import SAE
from sae_jax.models.registry import KINDS

N = 800


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def is_train(n: int = N) -> np.ndarray:
    return np.arange(n) % 4 != 0


# Sparse probing.


def test_a_feature_that_equals_the_class_is_found_and_random_ones_are_not(rng):
    labels_N = rng.choice(["law", "sea", "war", "space"], N)
    f_NxF = rng.random((N, 50)) * 0.1
    random = sparse_probing.compute_sparse_probing(f_NxF, labels_N, is_train(), ks=(1, 5))
    for column, name in ((7, "law"), (8, "sea"), (20, "war"), (31, "space")):
        f_NxF[:, column] += labels_N == name
    found = sparse_probing.compute_sparse_probing(f_NxF, labels_N, is_train(), ks=(1, 5))
    assert found.accuracy["1"] == 1.0
    assert {name: of[0] for name, of in found.columns.items()} == {"law": 7, "sea": 8, "war": 20, "space": 31}
    assert all(0.4 < accuracy < 0.6 for accuracy in random.accuracy.values())


def test_a_class_that_needs_two_features_is_not_predicted_by_one(rng):
    a_N, b_N = rng.random(N) < 0.5, rng.random(N) < 0.5  # the class is a quarter; one feature alone is right on 5 of 6
    found = sparse_probing.compute_sparse_probing(
        np.stack([a_N, b_N], 1).astype(float), np.where(a_N & b_N, "both", "not"), is_train(), ks=(1, 2)
    )
    assert found.classes["both"]["1"] == pytest.approx(5 / 6, abs=0.08)
    assert found.classes["both"]["2"] == 1.0


def test_held_out_documents_neither_choose_columns_nor_train_probes(rng):
    labels_N = rng.choice(["law", "sea"], N)
    f_NxF = rng.random((N, 20))
    f_NxF[~is_train(), 3] += 10 * (labels_N[~is_train()] == "law")  # separates the classes only in held-out documents
    assert sparse_probing.compute_sparse_probing(f_NxF, labels_N, is_train(), ks=(1,)).columns["law"] != [3]


def test_small_classes_are_named_and_the_rest_is_balanced(rng):
    labels_N = np.array(["a"] * 100 + ["b"] * 500 + ["c"] * 190 + ["d"] * 10)
    found = sparse_probing.compute_sparse_probing(rng.random((N, 9)), labels_N, is_train(), ks=(1,))
    assert found.left_out == {"d": 10} and set(found.classes) == {"a", "b", "c"}
    rows = sparse_probing.balanced(labels_N, "a", labels_N != "d", rng)
    assert dict(zip(*np.unique(labels_N[rows], return_counts=True), strict=True)) == {"a": 100, "b": 50, "c": 50}
    with pytest.raises(InputError, match="no two labels"):
        sparse_probing.compute_sparse_probing(rng.random((N, 9)), np.full(N, "a"), is_train())


# Absorption.


def words_on(own_token: int | None, rng) -> tuple[Pooled, list[str], np.ndarray, np.ndarray]:
    """(pooled, words, letters, is_train) for 40 words per letter; x is the letter's direction plus noise.

    There is one feature for each letter, which fires on all its words. With `own_token`, words 0, 4, 8, ... of the
    first `own_token` words of the first letter are absorbed: its feature is silent there, and another one fires.
    """
    letters_N = np.repeat(list("abcde"), 40)
    n, d = len(letters_N), 64
    basis_DxD = np.linalg.qr(rng.standard_normal((d, d)))[0]
    letter_of_N = np.repeat(np.arange(5), 40)
    x_NxD = 3 * basis_DxD[letter_of_N] + 0.05 * rng.standard_normal((n, d))
    f_NxF = np.zeros((n, 6))
    f_NxF[np.arange(n), letter_of_N] = 3.0
    absorbing_D = (basis_DxD[0] + basis_DxD[9]) / np.sqrt(2)
    if own_token is not None:
        words = np.arange(0, own_token, 4)
        x_NxD[words] += 3 * basis_DxD[9]
        f_NxF[words, 0], f_NxF[words, 5] = 0.0, 3 * np.sqrt(2)
    decoder_FxD = np.stack([*basis_DxD[:5], absorbing_D])
    names = [f"{letter}{i}" for i, letter in enumerate(letters_N)]
    return Pooled(x_NxD, f_NxF, decoder_FxD), names, letters_N, np.arange(n) % 4 != 0


def absorption_of(pooled: Pooled, *words) -> absorption.Absorption:
    return absorption.compute_absorption(pooled, *words, absorption.letter_probes(pooled.x_NxD, *words[1:]))


def test_absorbed_words_are_counted(rng):
    clean = absorption_of(*words_on(None, rng))
    assert (clean.full, clean.fraction, clean.split_features) == (0.0, 0.0, 1.0)
    assert clean.split_f1 == clean.probe_f1 == 1.0
    found = absorption_of(*words_on(20, rng))  # 5 of the 10 held-out words of letter a
    assert found.letters["a"].words == 10 and found.letters["a"].split_features == [0]
    assert found.letters["a"].full == found.letters["a"].fraction == 0.5
    assert found.letters["a"].absorbed == [(f"a{i}", 5) for i in range(0, 20, 4)]
    assert found.full == found.fraction == pytest.approx(0.1)  # the four other letters have no absorption


def absorbed_of(projection: float, f_F: list[float], cosine_F: list[float]) -> tuple[float, bool]:
    fraction_M, full_M, _ = absorption.absorbed(np.array([projection]), np.array([f_F]), np.array(cosine_F), [0])
    return float(fraction_M[0]), bool(full_M[0])


def test_absorption_of_a_word_equals_the_formula():
    assert absorbed_of(10, [0, 8, 0], [0.9, 0.5, 0.2]) == (1.0, True)  # the feature is silent, another adds 4
    assert absorbed_of(10, [0, 7, 0], [0.9, 0.5, 0.2]) == (0.0, False)  # another adds only 3.5
    assert absorbed_of(10, [0, 7, 5], [0.9, 0.5, 0.2]) == (1.0, False)  # two others add 3.5 and 1
    assert absorbed_of(10, [4, 8, 0], [0.9, 0.5, 0.2]) == (pytest.approx(4 / 7.6), False)  # the feature adds 3.6
    assert absorbed_of(10, [10, 8, 0], [0.9, 0.5, 0.2]) == (pytest.approx(1 / 10), False)  # the feature adds 9
    assert absorbed_of(10, [12, 8, 0], [0.9, 0.5, 0.2]) == (0.0, False)  # the feature adds everything
    assert absorbed_of(10, [0, 90, 0], [0.9, 0.05, 0.2]) == (0.0, True)  # this cosine allows only full absorption
    assert absorbed_of(10, [0, 900, 0], [0.9, 0.02, 0.2]) == (0.0, False)  # the cosine is too low for both
    assert absorbed_of(-1, [0, 8, 0], [0.9, 0.5, 0.2]) == (0.0, False)  # the activation does not contain the letter
    four = [0, 2, 2, 2, 2]
    assert absorbed_of(10, [2, *four[1:]], [0.5, *[0.9] * 4]) == (pytest.approx(5.4 / 6.4), False)  # 3 of 4 count


def test_a_dictionary_that_never_fires_has_no_absorption(rng):
    pooled, words, letters_N, train_N = words_on(None, rng)
    found = absorption_of(pooled._replace(f_NxF=np.zeros_like(pooled.f_NxF)), words, letters_N, train_N)
    assert found.fraction is None and found.full is None and found.letters == {}
    assert set(found.left_out) == set(letters_N) and "no feature" in found.left_out["a"]


def test_a_letter_that_the_model_does_not_represent_is_not_measured(rng):
    pooled, words, letters_N, train_N = words_on(20, rng)
    shuffled = pooled._replace(x_NxD=rng.permutation(pooled.x_NxD))
    found = absorption_of(shuffled, words, letters_N, train_N)
    assert found.full is None and set(found.left_out) == set("abcde")


# Spurious correlation removal.


def concepts_in(x_has_b: bool, rng) -> tuple[Pooled, dict[str, np.ndarray]]:
    """(pooled, concepts a, b) for x = ±u ± 2.5·v + noise. Probes follow v if a equals b. Feature 3 is v, or unused."""
    a_N, b_N = rng.random(N) < 0.5, rng.random(N) < 0.5
    basis_DxD = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    signs_Nx2 = np.where(np.stack([a_N, b_N], 1), 1, -1)
    x_NxD = signs_Nx2 @ np.stack([basis_DxD[0], 2.5 * basis_DxD[1]]) + 0.2 * rng.standard_normal((N, 16))
    decoder_FxD = basis_DxD[[0, 5, 6, 1 if x_has_b else 7]]
    return Pooled(x_NxD, x_NxD @ decoder_FxD.T, decoder_FxD), {"a": a_N, "b": b_N}


def test_ablating_the_biased_feature_removes_the_bias(rng):
    pooled, concepts = concepts_in(True, rng)
    found = spurious_correlation.compute_spurious_correlation(pooled, concepts, is_train(), ns=(1,))
    loud = found.directions[0]
    assert (loud.wanted, loud.spurious, loud.features) == ("a", "b", [3])
    assert loud.base < 0.6 and loud.oracle > 0.95
    assert found.score == loud.score  # the bias of the other direction is smaller
    assert found.score["1"] == pytest.approx(1, abs=0.1)


def test_nothing_is_removed_if_no_feature_has_the_bias(rng):
    pooled, concepts = concepts_in(False, rng)
    score = spurious_correlation.compute_spurious_correlation(pooled, concepts, is_train(), ns=(1,)).score["1"]
    assert score == pytest.approx(0, abs=0.1)


def test_without_a_bias_there_is_no_score(rng):
    pooled, concepts = concepts_in(True, rng)
    loud_a_NxD = pooled.x_NxD + 20 * concepts["a"][:, None] * pooled.decoder_FxD[0]
    quiet = spurious_correlation.compute_spurious_correlation(
        pooled._replace(x_NxD=loud_a_NxD), concepts, is_train(), ns=(1,)
    )
    assert quiet.directions[0].base == quiet.directions[0].oracle == 1 and quiet.directions[0].score == {"1": None}
    with pytest.raises(InputError, match="combination"):
        spurious_correlation.compute_spurious_correlation(
            pooled, {"a": concepts["a"], "b": concepts["a"]}, is_train(), ns=(1,)
        )


# Reading of texts and words.


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load(str(BUNDLED_MODEL))


def identity(d: int) -> SAE:
    """A dictionary with f = relu(±x), a decoder of norm 2 and an encoder of norm ½."""
    both = np.concatenate([np.eye(d), -np.eye(d)]).astype(np.float32)
    zeros = {"b_enc": np.zeros(2 * d, np.float32), "b_dec": np.zeros(d, np.float32)}
    return KINDS["relu"]({"W_encT": both / 2, "W_dec": both * 2, **zeros})


def test_a_document_is_the_mean_of_its_windows_rows_without_first_positions(model):
    texts = [
        "The sea was calm, and the ships lay in the harbour until the wind came up.",
        "A court decides.",
        "It rained for nine days and nobody could work in the fields.",
    ]
    site = Site(2, "resid_pre")
    passages = document_passages(model.tokenizer, texts, tokens_each=15, seq_len=6, first=1)
    pooled = pool(model, passages, {"id": identity(model.d_model)}, {"id": site})["id"]
    for i, text in enumerate(texts):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"][:15]
        rows = [model.activations(np.array([ids[s : s + 6]]), [site])[site][0, 1:] for s in range(0, len(ids), 6)]
        x_RxD = np.concatenate(rows)
        np.testing.assert_allclose(pooled.x_NxD[i], x_RxD.mean(0), atol=1e-4)
        f_F = np.concatenate([np.maximum(x_RxD, 0), np.maximum(-x_RxD, 0)], 1).mean(0)
        np.testing.assert_allclose(pooled.f_NxF[i], f_F, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(pooled.decoder_FxD, axis=1), 1, atol=1e-6)


def test_equal_documents_are_in_one_split_and_seeds_change_the_split():
    text = labelled_text(BUNDLED_CORPUS, ("topic", "form"), 400, 0.8, seed=0)
    other = labelled_text(BUNDLED_CORPUS, ("topic",), 400, 0.8, seed=1)
    assert len(text.texts) == len(text.labels["form"]) == 400 and 0.7 < text.is_train_N.mean() < 0.9
    assert text.texts == labelled_text(BUNDLED_CORPUS, ("topic",), 400, 0.8, seed=0).texts
    assert set(text.texts) != set(other.texts)


def test_equal_labelled_documents_are_in_one_split(tmp_path):
    lines = [json.dumps({"text": f"text {i % 50}", "label": i}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    text = labelled_text(tmp_path / "a.jsonl", ("label",), 300, 0.5, seed=0)
    sides = {(t, bool(side)) for t, side in zip(text.texts, text.is_train_N, strict=True)}
    assert len(sides) == 50 and len({side for _, side in sides}) == 2
    with pytest.raises(InputError, match="line 1: no label under the key 'genre' .the keys are text, label"):
        labelled_text(tmp_path / "a.jsonl", ("genre",), 300, 0.5, seed=0)


def test_a_spelling_prompt_ends_at_its_word_after_examples_of_training_words(model):
    asked = spelling(model.tokenizer, 600, 30, 0.8, seed=0)
    train = {word for word, side in zip(asked.words, asked.is_train_N, strict=True) if side}
    assert not {word.strip().lower() for word in train} & {w.strip().lower() for w in set(asked.words) - train}
    assert (asked.passages.counts_WxT.sum(1) == 1).all() and len(asked.words) == 600
    for i in (0, 17, 599):
        end = asked.passages.counts_WxT[i].argmax()
        *examples, word = model.tokenizer.decode(asked.passages.tokens_WxT[i, : end + 1]).split("\n")
        assert word == asked.words[i] and word.strip()[0].lower() == asked.letters_N[i] in LETTERS
        assert len(examples) == asked.n_examples > 0
        for example in examples:
            taught, letter = example.split(" has the first letter: ")
            assert taught in train and taught != word and taught.strip()[0].upper() == letter
    with pytest.raises(InputError, match="must fit into windows of 3 tokens"):
        spelling(model.tokenizer, 600, 3, 0.8, seed=0)


# The command.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cache = shared_cache(tmp_path_factory)
    argv = (*BUNDLED, "--n-samples", "100", "--seq-len", "20", "--activation", "topk", "--hidden-dim", "48", "--k", "8")
    argv += ("--layer", "1", "2", "--epochs", "1")
    path = trained(tmp_path_factory.mktemp("runs") / "two", cache, *argv).path
    return path


def test_from_a_run_to_the_table(run, capsys):
    argv = ["saebench", str(run), "--documents", "1200", "--label", "form", "--k", "1", "5", "--n-ablated", "2", "10"]
    argv += ["--words", "1000", "--document-tokens", "40"]
    assert main.run_as_command(argv) == 0
    out = capsys.readouterr().out
    ids = sorted(p.name for p in (run / "members").iterdir())
    assert len(ids) == 2 and all(name in out for name in (*ids, "activations, blocks.2.hook_resid_pre"))
    found = {name: json.loads((run / "analysis" / f"{name}.json").read_text()) for name in main_questions()}
    assert all(of["settings"]["seq_len"] == 20 and of["settings"]["documents"] == 1200 for of in found.values())
    probing = found["sparse_probing"]["members"]
    assert set(probing) == {*ids, "activations, blocks.1.hook_resid_pre", "activations, blocks.2.hook_resid_pre"}
    neurons = probing["activations, blocks.2.hook_resid_pre"]["form"]
    assert neurons["accuracy"]["all"] > 0.7 and len(neurons["classes"]) == 8  # the model separates diaries and news
    assert f"{neurons['accuracy']['all']:.3f}" in out
    assert neurons["documents"].keys() == neurons["classes"].keys()
    train, held_out = (min(of[side] for of in neurons["documents"].values()) for side in ("train", "held_out"))
    assert train >= 20 and held_out >= 5
    assert f"form: each class has at least {train} documents to train on and {held_out} held out" in out
    assert all(0.4 < probing[name]["form"]["accuracy"]["5"] < 1 for name in ids)
    judged = found["absorption"]["members"][ids[0]]
    assert set(judged["letters"]) | set(judged["left_out"]) <= set(LETTERS)
    assert "letters that the model represents" in out
    scr = found["spurious_correlation"]["members"][ids[0]]
    assert set(scr["score"]) == {"2", "10"} and min(scr["documents"].values()) >= 10


def main_questions() -> tuple[str, ...]:
    from analysis.quality.saebench import BENCHMARKS

    return tuple(BENCHMARKS.values())


def test_a_dictionary_that_never_fires_does_not_change_the_absorption_of_others(run):
    finished, notes = FinishedRun.open(run), []
    alive, other = (finished.dictionary(name) for name in finished.members)
    silent = replace(other, tensors={**other.tensors, "b_enc": np.full(48, -1e6, np.float32)})
    few = SAEBench(metrics=("absorption",), words=600)
    found = on_words(few, finished, {alive.name: alive.sae, other.name: silent.sae}, notes)
    assert found[alive.name] == on_words(few, finished, {alive.name: alive.sae}, [])[alive.name]
    assert not found[other.name].letters and other.name in notes[0]


def test_benchmarks_are_written_when_they_are_finished(run, capsys):
    path = run / "analysis" / "sparse_probing.json"
    path.unlink(missing_ok=True)
    argv = ["--documents", "300", "--document-tokens", "20", "--label", "form", "--k", "1", "--words", "1"]
    assert main.run_as_command(["saebench", str(run), "--metrics", "probing", "absorption", *argv]) == 2
    assert "raise --words" in capsys.readouterr().err
    assert json.loads(path.read_text())["members"]


def test_invalid_requests_are_refused(run, tmp_path, capsys, monkeypatch):
    def refused(*argv: str) -> str:
        assert main.run_as_command(["saebench", *argv]) == 2
        return capsys.readouterr().err

    (tmp_path / "a.jsonl").write_text('{"text": "a", "genre": "b"}')
    assert "has no config.json" in refused(str(tmp_path))
    for name in ("results.json", "config.json"):
        (tmp_path / name).write_text('{"members": []}')
    assert "has no checksum" in refused(str(tmp_path))
    assert "--member nobody is not in" in refused(str(run), "--member", "nobody")
    assert "--metrics spelling: must be one of" in refused(str(run), "--metrics", "spelling")
    assert "--label is missing" in refused(str(run), "--dataset", str(tmp_path / "a.jsonl"))
    monkeypatch.setattr(LanguageModel, "load", None)  # all of these errors come before a model is loaded
    few = [str(run), "--metrics", "probing", "--documents", "200"]
    assert "--documents 200: may be too few: no two labels of" in refused(*few)
    four_hundred = [str(run), "--documents", "400", "--label", "form", "--n-ablated", "5"]
    assert "--documents 400: may be too few: a combination of topic=" in refused(*four_hundred)
    assert "error: --concepts form=poem: must be KEY=A,..:B,.." in refused(
        *four_hundred, "--concepts", "form=poem", "topic=sea:law"
    )
    assert "--n-ablated 49: must be at most 48" in refused(str(run), "--metrics", "scr", "--n-ablated", "49")
    assert "--k 49: must be at most 48" in refused(*few, "--k", "49")
    assert "no document has form 'poem'" in refused(
        *four_hundred, "--metrics", "scr", "--concepts", "form=poem:news", "topic=sea:law"
    )
