"""Model: predictions from closed forms, and a folder that comes back whole or not at all."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.special import expit

from sparkdist import Model, objectives, registry
from sparkdist.blocks import Block
from sparkdist.errors import InvalidCall, ModelFileError
from sparkdist.layout import Layout
from sparkdist.objectives import Hinge, Huber, Logistic, Poisson, Softmax, Squared, UserLoss

D = 4
X = np.random.default_rng(7).normal(size=(20, D))
NAMES = [
    name
    for name in registry.names(objectives)
    if registry.get(objectives, name)().n_features is None
]
BINARY = ["hinge", "logistic", "squared_hinge"]


def fitted(objective, *, intercept, **given):
    """A model whose parameters are all different."""
    shape = objective.shape(D)
    weights = np.sin(np.arange(1.0, np.prod(shape) + 1)).reshape(shape)
    if not intercept:
        return Model(objective, weights, D, **given)
    b = np.array(0.3) if len(shape) == 1 else 0.3 - np.arange(float(shape[1]))
    return Model(objective, {"weights": weights, "intercept": b}, D, **given)


def assert_same_parameters(found, wanted):
    assert type(found) is type(wanted)
    if isinstance(wanted, np.ndarray):
        found, wanted = {"": found}, {"": wanted}
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert_array_equal(found[name], array)


# --- predictions ----------------------------------------------------------------------------


def margins(model):
    if isinstance(model.parameters, dict):
        return X @ model.parameters["weights"] + model.parameters["intercept"]
    return X @ model.parameters


CLOSED_FORMS = {
    **dict.fromkeys(BINARY, lambda m: np.where(m > 0, 1.0, 0.0)),
    "huber": lambda m: m,
    "squared": lambda m: m,
    "poisson": np.exp,
    "softmax": lambda s: s.argmax(axis=1),
}


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_their_closed_forms(name, intercept):
    model = fitted(registry.get(objectives, name)(), intercept=intercept)
    assert_allclose(model.scores(X), margins(model), rtol=1e-12)
    assert_allclose(model.predict(X), CLOSED_FORMS[name](margins(model)), rtol=1e-12)
    assert_allclose(model.predict(csr_array(X)), model.predict(X), rtol=1e-12)
    assert_allclose(model.predict(X.tolist()), model.predict(X), rtol=1e-12)


def test_probabilities_are_their_closed_forms():
    logistic, softmax = (fitted(o, intercept=True) for o in (Logistic(), Softmax(3)))
    assert_allclose(logistic.predict_proba(X), expit(margins(logistic)), rtol=1e-12)
    odds = np.exp(margins(softmax))
    assert_allclose(softmax.predict_proba(X), odds / odds.sum(axis=1, keepdims=True), rtol=1e-12)
    assert logistic.gives_probabilities
    assert softmax.gives_probabilities


@pytest.mark.parametrize("objective", [Hinge(), Squared(), Poisson()])
def test_what_is_no_likelihood_of_classes_has_no_probabilities(objective):
    model = fitted(objective, intercept=False)
    assert not model.gives_probabilities
    with pytest.raises(InvalidCall, match=f"{type(objective).__name__} gives no probabilities"):
        model.predict_proba(X)


@pytest.mark.parametrize("name", BINARY)
def test_labels_come_back_as_they_were(name, tmp_path):
    model = fitted(registry.get(objectives, name)(), intercept=True, labels=(-1.0, 1.0))
    expected = np.sign(margins(model))
    assert set(expected) == {-1, 1}
    assert_array_equal(model.predict(X), expected)
    assert_array_equal(Model.load(model.save(tmp_path)).predict(X), expected)


def test_classes_are_numbers_whatever_the_two_labels():
    model = fitted(Softmax(3), intercept=False, labels=(-1.0, 1.0))
    assert_array_equal(model.predict(X), margins(model).argmax(axis=1))


@pytest.mark.parametrize("shape", [(5, 3), (5, 5), (4,), (2, 2, 4)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidCall) as caught:
        fitted(Logistic(), intercept=False).predict(np.ones(shape))
    assert caught.value.problems == (f"X must have shape (n, 4); it has {shape}",)


@pytest.mark.parametrize("bad", [[["a"] * D], [[1.0], [1.0, 2.0]], X * 1j, "abc"], ids=str)
def test_what_is_no_array_of_numbers_is_refused(bad):
    with pytest.raises(InvalidCall, match="X is a .*; it must be an array of numbers"):
        fitted(Logistic(), intercept=False).predict(bad)


@pytest.mark.parametrize("name", NAMES)
def test_of_a_row_with_nan_nobody_knows(name):
    model, holed = fitted(registry.get(objectives, name)(), intercept=True), X.copy()
    holed[1, 2] = np.nan
    found, whole = model.predict(holed), model.predict(X)
    assert np.isnan(found[1])
    assert_array_equal(np.delete(found, 1), np.delete(whole, 1))


def test_columns_of_a_pandas_frame_are_taken_by_name():
    names = ["a", "b", "c", "d"]
    model = dataclasses.replace(fitted(Logistic(), intercept=True), features=names)
    frame = pd.DataFrame(X, columns=names).assign(label=1.0)
    for given in (frame[["label", "d", "b", "a", "c"]], pd.DataFrame(X)):  # no names: by position
        assert_allclose(model.scores(given), model.scores(X), rtol=1e-13)
    with pytest.raises(InvalidCall) as error:
        model.predict(frame.drop(columns="d"))
    (problem,) = error.value.problems
    assert problem.startswith("there are no columns ['d'], which the model was trained on; there")
    masked = frame.assign(_mask=1.0)  # a name, and no mask
    assert_allclose(model.scores(masked), model.scores(X), rtol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_of_no_rows_there_are_no_predictions(name):
    model = fitted(registry.get(objectives, name)(), intercept=True)
    assert model.predict(np.zeros((0, D))).shape == (0,)


@pytest.mark.parametrize(
    "parameters",
    [
        np.arange(3.0),
        {"w": np.ones((2, 3)), "b": np.array(7.0)},
        {"parameters": np.arange(3.0)},
    ],
    ids=["array", "dict", "of one"],
)
def test_ones_own_loss_saves_its_parameters_and_predicts_nothing(parameters, tmp_path):
    loss = UserLoss(lambda w, X, y: (0.0, w), Layout.of(parameters))
    model = Model(loss, parameters, 3, features=["a", "b", "c"], metrics={"auc": 0.5})
    back = Model.load(model.save(tmp_path / "model"))
    assert (back.n_features, back.features, back.metrics) == (3, ["a", "b", "c"], {"auc": 0.5})
    assert back.objective.layout == loss.layout
    found = back.parameters
    if isinstance(parameters, dict):
        assert list(found) == list(parameters)
        for name, array in parameters.items():
            assert_array_equal(found[name], array)
    else:
        assert_array_equal(found, parameters)
    for one in (model, back):
        with pytest.raises(InvalidCall, match="use its `parameters` as your loss means them"):
            one.predict(X)
    block = Block(np.ones((1, 3)), np.ones(1), np.ones(1))
    with pytest.raises(InvalidCall, match="which the folder does not hold"):
        back.objective.value_and_grad(np.zeros(loss.layout.size), block)


def test_ones_own_class_is_not_saved(tmp_path):
    class Own(Logistic):
        pass

    with pytest.raises(InvalidCall, match="Own is your own class, and code is not saved"):
        Model(Own(), np.zeros(D), D).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- the folder -----------------------------------------------------------------------------

MEMBERS = [*(registry.get(objectives, name)() for name in NAMES), Softmax(5), Huber(0.25)]


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("objective", MEMBERS, ids=repr)
def test_loading_inverts_saving(tmp_path, objective, intercept):
    metrics = {"loss": 0.1 + 0.2, "passes": 7}
    model = fitted(objective, intercept=intercept, features=["b", "a"], metrics=metrics)
    assert model.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    found = Model.load(str(tmp_path / "new" / "folder"))
    assert_same_parameters(found.parameters, model.parameters)
    for name in ("objective", "n_features", "labels", "features", "metrics"):
        assert getattr(found, name) == getattr(model, name)
    assert_array_equal(found.predict(X), model.predict(X))


def test_a_second_model_replaces_the_first(tmp_path):
    fitted(Softmax(3), intercept=True).save(tmp_path)
    fitted(Logistic(), intercept=False).save(tmp_path)
    assert Model.load(tmp_path).objective == Logistic()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    metrics = {"rows": np.int64(7), "error": np.float32(0.5), "done": np.bool_(True)}
    fitted(Softmax(np.int64(3)), intercept=False, metrics=metrics).save(tmp_path)
    found = Model.load(tmp_path)
    assert found.objective == Softmax(3)
    assert found.metrics == {"rows": 7, "error": 0.5, "done": True}


def test_what_cannot_be_saved_leaves_no_folder(tmp_path):
    with pytest.raises(TypeError):
        fitted(Logistic(), intercept=False, metrics={"data": object()}).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_array_is_saved_by_value_and_not_by_memory(tmp_path):
    W = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    Model(Softmax(3), W, D).save(tmp_path)
    assert_array_equal(Model.load(tmp_path).parameters, W)


def test_the_folder_is_readable_without_sparkdist(tmp_path):
    model = fitted(Softmax(3), intercept=True, features="f").save(tmp_path)
    text = json.loads((model / "model.json").read_text())
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    assert text["objective"] == {"name": "softmax", "arguments": {"n_classes": 3}}
    assert text["parameters"] == {"weights": [4, 3], "intercept": [3]}
    assert (text["format"], text["n_features"], text["features"]) == (1, 4, "f")
    assert text["labels"] == [0.0, 1.0]
    assert set(text["versions"]) == {"python", "sparkdist", "numpy", "scipy", "pyspark"}
    assert text["versions"]["numpy"] == np.__version__
    scores = X @ tensors["weights"] + tensors["intercept"]
    assert_array_equal(scores.argmax(axis=1), Model.load(tmp_path).predict(X))


# --- damage ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    return fitted(Softmax(3), intercept=True).save(tmp_path / "model")


def refused(folder, match=""):
    with pytest.raises(ModelFileError, match="is not a model folder of sparkdist: .*" + match):
        Model.load(folder)


def edit(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "."])
def test_what_is_missing_is_refused(saved, name):
    if name == ".":
        saved = saved / "elsewhere"
    else:
        (saved / name).unlink()
    refused(saved, "No such file")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0, 1, 7, 8, 9, 0.3, 0.6, 0.9, -2])  # bytes, or of the whole
def test_a_truncated_file_is_refused(saved, name, share):
    whole = (saved / name).read_bytes()
    length = int(share * len(whole)) if 0 < share < 1 else share
    (saved / name).write_bytes(whole[:length])
    refused(saved)


def test_a_flipped_bit_in_the_tensors_is_refused(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(saved)


def test_a_flipped_bit_in_the_description_is_refused_or_harmless(saved):
    path = saved / "model.json"
    whole = path.read_bytes()
    n_refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            model = Model.load(saved)
        except ModelFileError:
            n_refused += 1
        else:
            assert model.objective == Softmax(3)
            assert model.predict(X).shape == (20,)
    assert n_refused > len(whole) / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": None},
        {"parameters": {"weights": [4, 3], "intercept": [2]}},
        {"parameters": {"weights": [3, 4], "intercept": [3]}},
        {"parameters": {"weights": [4, 3]}},
        {"parameters": None},
        {"n_features": 5},
        {"n_features": "4"},
        {"n_features": None},
        {"n_features": float("inf")},
        {"objective": {"name": "softmax", "arguments": {"n_classes": 4}}},
        {"objective": {"name": "softmax", "arguments": {"n_classes": 1}}},
        {"objective": {"name": "softmax", "arguments": {"k": 3}}},
        {"objective": {"name": "softmax", "arguments": None}},
        {"objective": {"name": "logistic", "arguments": {}}},
        {"objective": {"name": "_user", "arguments": {}}},
        {"objective": {"name": "os.system", "arguments": {"command": "touch x"}}},
        {"objective": {"name": ["softmax"], "arguments": {}}},
        {"objective": "softmax"},
        {"labels": [0.0]},
        {"labels": [None, 1.0]},
        {"labels": ["no", "yes"]},
        {"labels": None},
        {"sha256": "0" * 64},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(saved, changes):
    edit(saved, **changes)
    refused(saved)


def test_another_format_is_named(saved):
    edit(saved, format=7)
    refused(saved, "format 7; this version reads 1")


def test_tensors_of_another_model_are_refused(saved, tmp_path):
    other = fitted(Softmax(3), intercept=True)
    other.parameters["weights"][0, 0] += 1
    other.save(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(saved / "model.safetensors")
    refused(saved, "not the file that model.json was written with")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"format"', "", "{}", "[" * 100_000, "\x00"])
def test_json_that_is_no_description_is_refused(saved, text):
    (saved / "model.json").write_text(text)
    refused(saved)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_never_run(saved, tmp_path, name, protocol):
    (saved / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol))
    refused(saved)
    assert not (tmp_path / "ran").exists()
    pickle.loads((saved / name).read_bytes())
    assert (tmp_path / "ran").exists()  # it would have
