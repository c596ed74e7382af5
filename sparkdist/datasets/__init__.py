"""Small real data sets that ship with the package."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from importlib.resources import as_file, files

import numpy as np
from scipy.sparse import csr_array

from sparkdist.blocks import Array
from sparkdist.errors import InvalidCall

__all__ = ["load", "names"]

_N_FEATURES = {"a9a": 123}


def names() -> list[str]:
    """Names that :func:`load` knows."""
    return sorted(_N_FEATURES)


def load(name: str = "a9a", split: str = "train") -> tuple[csr_array, Array]:
    """Return ``(X, y)`` of an embedded data set: X is CSR of shape (n, d), y has shape (n,).

    ``a9a`` is UCI Adult (Becker and Kohavi 1996, CC BY 4.0) in the LIBSVM encoding: predict
    whether somebody earns more than 50,000 dollars a year; 32,561 rows for ``split="train"``
    and 16,281 for ``split="test"``, 123 binary features, labels -1 and +1.
    """
    if name not in _N_FEATURES or split not in ("train", "test"):
        problem = f"there is no {name!r} {split!r}; there are {names()}, each with train and test"
        raise InvalidCall("datasets.load", [problem])
    with as_file(files(__name__) / name / f"{split}.libsvm.gz") as path, gzip.open(path) as lines:
        return _parse_libsvm(lines, _N_FEATURES[name])


def _parse_libsvm(lines: Iterable[bytes], n_features: int) -> tuple[csr_array, Array]:
    """Read ``label index:value ...`` rows, indices counted from 1."""
    labels, indptr, tokens = [], [0], []
    for line in lines:
        label, *pairs = line.split()
        labels.append(float(label))
        tokens += pairs
        indptr.append(len(tokens))
    pairs_array = np.array([token.split(b":") for token in tokens], dtype="S16").reshape(-1, 2)
    indices = pairs_array[:, 0].astype(np.int32) - 1
    values = pairs_array[:, 1].astype(np.float64)
    X = csr_array(
        (values, indices, np.asarray(indptr, dtype=np.int32)), shape=(len(labels), n_features)
    )
    return X, np.array(labels)
