"""Model: fitted parameters that predict, and the folder that holds them, readable without Spark."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.sparse import csr_array, issparse

from sparkdist import objectives, registry
from sparkdist.blocks import Array, Matrix, reals
from sparkdist.errors import InvalidCall, ModelFileError
from sparkdist.layout import Layout
from sparkdist.layout import Model as Parameters
from sparkdist.objectives import Objective, UserLoss

__all__ = ["Model", "ensemble_of", "labels_of", "pooled_scores", "stack"]

M = TypeVar("M", bound="Model")
_FORMAT, _OF_ENSEMBLES = 1, 2
_ONE_ARRAY = "parameters"  # safetensors has no nameless tensors
_OWN = "own"  # the objective's name where it is a function of the user's
#: What reading a damaged file can raise.
_DAMAGE = (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError)


@dataclass(frozen=True)
class Model:
    """Parameters of an objective, and what is needed to use them.

    A saved model is a folder with ``model.safetensors`` (the parameters) and ``model.json``
    (everything else): no code, no pickle, nothing of Spark.
    """

    objective: Objective
    parameters: Parameters
    n_features: int
    #: The two labels of the training data in its own convention, {0, 1} or {-1, +1}.
    labels: tuple[float, float] = (0.0, 1.0)
    #: Names of the feature column or columns that it was trained on.
    features: str | list[str] = "features"
    #: Numbers worth keeping with it.
    metrics: dict[str, Any] = field(default_factory=dict)
    #: Of an ensemble, the weight of each of its models, in all 1; the first axis of each array of
    #: ``parameters`` then counts the models, and what is predicted is the mean of what they do.
    shares: tuple[float, ...] = ()

    def scores(self, X: ArrayLike) -> Array:
        """Scores of the rows of X (n, d), dense or sparse: (n,), or (n, n_classes).

        Of a pandas DataFrame the columns are taken by the names that the model was trained on, if
        it was trained on a list of columns.

        Raises
        ------
        InvalidCall
            If X does not have ``n_features`` columns, or those names, or has no numbers; or if the
            loss is the user's own, of which only its author knows how it predicts.
        """
        self.require_known_loss()
        X = self._by_name(X)
        # In float64, also of X, or the objective would multiply in float32.
        try:
            X = csr_array(X, dtype=np.float64) if issparse(X) else reals(X)
        except (TypeError, ValueError) as error:
            problem = f"X is a {type(X).__name__}; it must be an array of numbers: {error}"
            raise InvalidCall("predict", [problem]) from None
        if X.ndim != 2 or X.shape[1] != self.n_features:
            problem = f"X must have shape (n, {self.n_features}); it has {X.shape}"
            raise InvalidCall("predict", [problem])
        return pooled_scores(self.objective, self.flat(), X, self.shares)

    def _by_name(self, X: Any) -> Any:
        names = [name for name in getattr(X, "columns", ()) if isinstance(name, str)]
        if not names or isinstance(self.features, str):
            return X
        if missing := [name for name in self.features if name not in names]:
            problem = f"there are no columns {missing}, which the model was trained on"
            raise InvalidCall("predict", [f"{problem}; there are {names}"])
        return X[self.features]

    def flat(self) -> Array:
        """Copy the parameters into one vector, in the order of the objective.

        Those of an ensemble into one row a model.
        """
        members = _members(self.parameters, len(self.shares))
        layout = self.objective.own_layout or Layout.of(members[0])
        rows = [layout.flatten(member) for member in members]
        return np.array(rows) if self.shares else rows[0]

    def require_known_loss(self) -> None:
        """Raise InvalidCall where the loss is the user's own function."""
        if isinstance(self.objective, UserLoss):
            problem = "its loss is your own function; use its `parameters` as your loss means them"
            raise InvalidCall("this model cannot predict", [problem])

    def predict(self, X: ArrayLike) -> Array:
        """Predictions for the rows of X, shape (n,): labels as in the training data, or means.

        Of a row with NaN it is NaN.
        """
        return self.from_scores(self.scores(X))

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities: (n,) of the positive class, or (n, n_classes).

        Raises
        ------
        InvalidCall
            If the objective has none, as hinge.
        """
        if not self.gives_probabilities:
            problem = f"{type(self.objective).__name__} gives no probabilities"
            raise InvalidCall("predict_proba", [problem])
        return self.objective.probability(self.scores(X))

    @property
    def gives_probabilities(self) -> bool:
        """Whether the objective is a likelihood of classes."""
        return self.objective.gives_probabilities

    def from_scores(self, scores: Array) -> Array:
        """Predictions for scores, in the labels of the training data."""
        predicted = self.objective.predict(scores)
        if not self.objective.classifies:
            return predicted
        if scores.ndim == 1:
            predicted = np.where(predicted > 0, self.labels[1], self.labels[0])
        # NaN is below 0, and the largest: it would be of a class.
        unknown = np.isnan(scores) if scores.ndim == 1 else np.isnan(scores).any(axis=1)
        return np.where(unknown, np.nan, predicted)

    def save(self, folder: str | Path) -> Path:
        """Write the folder, and return it; files of an earlier model are replaced.

        Code is not saved: of a loss that is the user's own function the folder holds the
        parameters, and all else that is here.

        Raises
        ------
        InvalidCall
            If the objective is of the user's own class.
        """
        if not type(self.objective).__module__.startswith("sparkdist.objectives."):
            problem = f"{type(self.objective).__name__} is your own class, and code is not saved"
            raise InvalidCall("save", [f"{problem}; save `result.x`"])
        # Not ascontiguousarray, which makes a vector of an intercept that is one number.
        arrays = {k: np.asarray(v, order="C") for k, v in _named(self.parameters).items()}
        tensors = save(arrays)
        # Numbers of NumPy, as in Softmax(y.max() + 1), become Python's.
        text = json.dumps(self._description(tensors), indent=2, default=np.generic.item)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(tensors)
        (folder / "model.json").write_text(text + "\n")
        return folder

    def _description(self, tensors: bytes) -> dict[str, Any]:
        return {
            "format": _OF_ENSEMBLES if self.shares else _FORMAT,
            "objective": self._named_objective(),
            "nameless": not isinstance(self.parameters, dict),
            "parameters": {
                name: list(array.shape) for name, array in _named(self.parameters).items()
            },
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "n_features": self.n_features,
            "features": self.features,
            "labels": list(self.labels),
            **({"shares": list(self.shares)} if self.shares else {}),
            "metrics": self.metrics,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("sparkdist", "numpy", "scipy", "pyspark")},
            },
        }

    def _named_objective(self) -> dict[str, Any]:
        if isinstance(self.objective, UserLoss):
            return {"name": _OWN, "arguments": {}}
        name = type(self.objective).__module__.rpartition(".")[2]
        return {"name": name, "arguments": vars(self.objective)}

    @classmethod
    def load(cls: type[M], folder: str | Path) -> M:
        """Read a folder that :meth:`save` wrote.

        The objective of one whose loss was the user's own function says only that it was.

        Raises
        ------
        ModelFileError
            If a file is missing, is not what it should be, or does not fit the other.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / "model.json").read_text())
            tensors = (folder / "model.safetensors").read_bytes()
            return cls._from(description, tensors)
        except _DAMAGE as error:
            raise ModelFileError(f"{folder} is not a model folder of sparkdist: {error}") from error

    @classmethod
    def _from(cls: type[M], description: Mapping[str, Any], tensors: bytes) -> M:
        if description["format"] not in (_FORMAT, _OF_ENSEMBLES):
            both = f"{_FORMAT} and {_OF_ENSEMBLES}"
            raise ValueError(f"format {description['format']}; this version reads {both}")
        of_many = description["format"] == _OF_ENSEMBLES
        shares = _as_shares(description["shares"]) if of_many else ()
        if description["sha256"] != hashlib.sha256(tensors).hexdigest():
            raise ValueError("model.safetensors is not the file that model.json was written with")
        arrays = load(tensors)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        if shapes != description["parameters"]:
            raise ValueError(
                f"model.json speaks of {description['parameters']}, the tensors are {shapes}"
            )
        objective = _objective(description)
        low, high = description["labels"]
        return cls(
            objective,
            _in_order(arrays, objective, description["n_features"], len(shares)),
            description["n_features"],
            (float(low), float(high)),
            description["features"],
            description["metrics"],
            shares,
        )


def _not_saved(w: Any, X: Any, y: Any) -> Any:
    problem = "its loss was its author's own function, which the folder does not hold"
    raise InvalidCall("this model", [problem])


def _objective(description: Mapping[str, Any]) -> Objective:
    saved, shapes = description["objective"], description["parameters"]
    if saved["name"] == _OWN:
        nameless = description["nameless"]
        named = ((None if nameless else name, tuple(size)) for name, size in shapes.items())
        return UserLoss(_not_saved, Layout(tuple(named)))
    found: Objective = registry.get(objectives, saved["name"])(**saved["arguments"])
    return found


def pooled_scores(objective: Objective, w: Array, X: Matrix, shares: Sequence[float]) -> Array:
    """Scores of the rows of X: of a model w, or of an ensemble with a model in each row of w."""
    if not shares:
        return objective.scores(w, X)
    scores = np.array([objective.scores(member, X) for member in w])
    return objective.pool(scores, np.array(shares))


def labels_of(loss: Objective, found: Any) -> tuple[float, float]:
    """Labels of the two classes of a binary model, as the data's, an array or None, write them."""
    return (-1.0, 1.0) if loss.classifies and found is not None and -1.0 in found else (0.0, 1.0)


def ensemble_of(
    weights: Array, models: Sequence[Array], layout: Layout, w: Array
) -> tuple[Parameters, tuple[float, ...]]:
    """Parameters and shares of models of these weights; of none those of w alone, and no shares."""
    if not len(models):
        return layout.unflatten(w), ()
    members = [layout.unflatten(model) for model in models]
    return stack(members), tuple((weights / weights.sum()).tolist())


def stack(members: Sequence[Parameters]) -> Parameters:
    """Put the parameters of several models into one, along a new first axis."""
    if isinstance(members[0], dict):
        return {name: np.array([m[name] for m in members]) for name in members[0]}  # type: ignore[call-overload]
    return np.array(members)


def _members(parameters: Parameters, n: int) -> list[Parameters]:
    """The models of an ensemble of n; with n = 0 the one model that is none."""
    if not n:
        return [parameters]
    if any(array.shape[:1] != (n,) for array in _named(parameters).values()):
        shapes = {name: array.shape for name, array in _named(parameters).items()}
        raise InvalidCall("Model", [f"there are {n} shares, and the parameters are {shapes}"])
    if isinstance(parameters, dict):
        return [{name: array[k] for name, array in parameters.items()} for k in range(n)]
    return list(parameters[:n])


def _as_shares(values: Sequence[Any]) -> tuple[float, ...]:
    shares = tuple(float(value) for value in values)
    if not (shares and min(shares) > 0 and abs(sum(shares) - 1.0) < 1e-9):
        raise ValueError(f"the shares of an ensemble are {shares}")
    return shares


def _named(parameters: Parameters) -> dict[str, Array]:
    return parameters if isinstance(parameters, dict) else {_ONE_ARRAY: parameters}


def _in_order(
    arrays: dict[str, Array], objective: Objective, n_features: int, n_models: int
) -> Parameters:
    """Return the arrays as the objective orders them: safetensors sorts by name.

    Those of an ensemble begin with the number of its models.
    """
    many = (n_models,) if n_models else ()
    if objective.n_features not in (None, n_features):
        raise ValueError(f"{n_features} features are not the {objective.n_features} of {objective}")
    shapes = {name: array.shape for name, array in arrays.items()}
    shape = objective.shape(n_features)
    if objective.own_layout is not None:
        own = objective.own_layout.shapes
        wanted = {name or _ONE_ARRAY: (*many, *size) for name, size in own}
    elif shapes == {_ONE_ARRAY: (*many, *shape)}:
        return arrays[_ONE_ARRAY]
    else:
        wanted = {"weights": (*many, *shape), "intercept": (*many, *shape[1:])}
    if shapes != wanted:
        raise ValueError(f"{objective} needs {wanted}, the tensors are {shapes}")
    nameless = objective.own_layout is not None and not objective.own_layout.names
    return arrays[_ONE_ARRAY] if nameless else {name: arrays[name] for name in wanted}
