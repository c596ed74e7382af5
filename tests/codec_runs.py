"""What the tests of codecs share: members, and distributed descent in one process."""

import numpy as np
from scipy.special import expit

from sparkdist import codecs, registry
from sparkdist.codecs import (
    ef21,
    error_feedback,
    float16,
    one_bit,
    power_sgd,
    qsgd,
    random_k,
    sign,
    sparse,
    stream,
    top_k,
)

DEFAULTS = [registry.get(codecs, name)() for name in registry.names(codecs)]
MEMBERS = [
    *DEFAULTS,
    *(top_k(0.3), random_k(0.3), random_k(0.3, scaled=False), qsgd(1, 16), qsgd(5, 7)),
    *(sign(16), one_bit(7), power_sgd(1), error_feedback(sign(16)), error_feedback(power_sgd())),
    *(error_feedback(random_k(0.2, scaled=False)), error_feedback(sparse())),
    *(ef21(float16()), ef21(power_sgd(3)), ef21(random_k(0.5, scaled=False))),
]


def vector(size, dtype=np.float64, seed=0):
    """Gaussian, with coordinates of different sizes, and some zeros."""
    rng = np.random.default_rng([seed, size])
    x = rng.normal(size=size) * 10 ** rng.uniform(-3, 1, size=size)
    return np.where(rng.random(size) < 0.2, 0, x).astype(dtype)


def there_and_back(codec, x, seed=0):
    """What the receiver reads of the first vector of a sender."""
    payload, _ = codec.encode(x, codec.init(x.size, x.dtype), stream(seed, 0, 0))
    return codec.decode(payload, x.size, x.dtype)


def draws(codec, x, n):
    """What the receiver reads of ``n`` senders of one vector, shape (n, d)."""
    return np.array([there_and_back(codec, x, seed) for seed in range(n)])


def logistic_gradient(X, y, w, l2):
    """Of the mean over rows of log(1 + exp(-y x.w)), and (l2 / 2) |w|^2."""
    return X.T @ (-y * expit(-y * (X @ w))) / len(y) + l2 * w


def descend(codec, gradients, d, rounds, rate):
    """Each round w -= mean_k C_k(rate(t) gradient_k(t, w)); gives w and the states after each.

    The rate is inside what is compressed, as in the papers; without a codec nothing is.
    """
    w = np.zeros(d)
    states = [codec.init(d, w.dtype) if codec else () for _ in gradients]
    known = np.zeros((len(gradients), d))
    for t in range(rounds):
        for k, gradient in enumerate(gradients):
            x = rate(t) * gradient(t, w)
            if codec:
                payload, states[k] = codec.encode(x, states[k], stream(0, k, t))
                x = codec.decode(payload, d, w.dtype)
            known[k] = known[k] + x if codec and codec.differences else x
        w = w - known.mean(axis=0)
        yield w, states


def last(walk):
    """Return the last w of a descent."""
    for w, _ in walk:  # noqa: B007, of which only the last one is wanted
        pass
    return w


def batches(X, y, n_workers, size, l2, seed=0):
    """Workers whose gradients are of batches drawn from every ``n_workers``-th row."""

    def worker(k):
        rows = np.arange(k, len(y), n_workers)

        def gradient(t, w):
            batch = np.random.default_rng([seed, k, t]).choice(rows, size, replace=False)
            return logistic_gradient(X[batch], y[batch], w, l2)

        return gradient

    return [worker(k) for k in range(n_workers)]


def sorted_parts(X, y, n_workers, l2):
    """Workers whose gradients are of all rows of theirs, which were dealt out sorted by label."""
    parts = np.array_split(np.argsort(y, kind="stable"), n_workers)
    blocks = [(X[rows], y[rows]) for rows in parts]
    return [lambda t, w, b=block: logistic_gradient(*b, w, l2) for block in blocks]
