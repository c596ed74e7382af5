"""Problems for the tests of the solvers: each is a ``fun`` with its books kept from outside."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from sklearn.datasets import load_svmlight_file

from sparkdist import datasets
from sparkdist.blocks import Block
from sparkdist.objectives import Logistic

#: Problem T: RCV1 vectors may not be redistributed, so they lie beside the checkout, or nowhere.
TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "text" / "train.libsvm.gz"


class Problem:
    """fun(w) -> (value, gradient), and hessp; notes each call and refuses a second at one w."""

    step = None  # a constant step that converges
    optimum = None
    may_repeat = False

    def __init__(self):
        self.calls, self.products, self.seen = 0, 0, set()
        self.last = None

    def __call__(self, w):
        self.calls += 1
        self.last = w.copy()
        assert self.may_repeat or w.tobytes() not in self.seen, "a second pass at the same w"
        self.seen.add(w.tobytes())
        return self.value_and_grad(w)

    def hessp(self, w, v):
        self.products += 1
        assert np.array_equal(w, self.last), "a product at a w that fun did not see last"
        return self.hessian_times(w, v)

    def metric(self, w):
        """The diagonal of the Hessian: a preconditioner that leaves work to do."""
        self.products += 1
        return np.diag([self.hessian_times(w, axis) @ axis for axis in np.eye(w.size)])


class Quadratic(Problem):
    """0.5 (w - x).H (w - x) + 3 with eigenvalues from 1 / condition to 1."""

    def __init__(self, d=8, condition=30.0, seed=0, scale=1.0):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.vectors = np.linalg.qr(rng.normal(size=(d, d)))[0]
        self.values = scale * np.geomspace(1.0 / condition, 1.0, d)
        self.H = self.vectors * self.values @ self.vectors.T
        self.optimum, self.start = rng.normal(size=d), np.zeros(d)
        self.lowest, self.step = 3.0 * scale, 1.0 / self.values.max()

    def value_and_grad(self, w):
        r = w - self.optimum
        return self.lowest + 0.5 * r @ self.H @ r, self.H @ r

    def hessian_times(self, w, v):
        return self.H @ v


class SumOfExponentials(Problem):
    """Mean of exp(a_i.w) plus 0.05 |w|^2: convex, far from quadratic, overflows if stepped on."""

    step = 0.05

    def __init__(self, n=40, d=6, seed=1):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.A = rng.normal(size=(n, d)) + 0.3
        self.start = rng.normal(size=d)

    def value_and_grad(self, w):
        with np.errstate(over="ignore", invalid="ignore"):
            e = np.exp(self.A @ w)
            return e.mean() + 0.05 * w @ w, self.A.T @ e / len(e) + 0.1 * w

    def hessian_times(self, w, v):
        return self.A.T @ (np.exp(self.A @ w) * (self.A @ v)) / len(self.A) + 0.1 * v


class Barrier(Problem):
    """c.w - sum(log(w)), optimum 1 / c; outside of w > 0 the value is ``outside``.

    There the gradient is NaN like the value, or finite beside an infinite value.
    """

    step = 1e-3

    def __init__(self, outside=np.inf):
        super().__init__()
        self.c, self.outside = np.array([5.0, 10.0, 30.0]), outside
        self.optimum, self.start = 1.0 / self.c, np.full(3, 0.4)
        self.strayed = False

    def value_and_grad(self, w):
        if not (w > 0).all():
            self.strayed = True
            return self.outside, np.full(3, self.outside) if np.isnan(self.outside) else self.c
        return self.c @ w - np.log(w).sum(), self.c - 1.0 / w

    def hessian_times(self, w, v):
        return v / w**2


class Rosenbrock(Problem):
    """The banana, in two dimensions: not convex."""

    optimum, start = np.ones(2), np.array([-1.2, 1.0])

    def value_and_grad(self, w):
        x, y = w
        slope = [-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)]
        return 100 * (y - x**2) ** 2 + (1 - x) ** 2, np.array(slope)

    def hessian_times(self, w, v):
        x, y = w
        return np.array([[1200 * x**2 - 400 * y + 2, -400 * x], [-400 * x, 200.0]]) @ v


class Lasso(Problem):
    """|X w - y|^2 / (2 n) with badly scaled, correlated columns; l1 is for the solver."""

    def __init__(self, seed, n=43, d=46, share=0.01):
        super().__init__()
        rng = np.random.default_rng(seed)
        X = np.sqrt(0.1) * rng.normal(size=(n, d)) + np.sqrt(0.9) * rng.normal(size=(n, 1))
        self.X = X * 10 ** rng.uniform(-1, 1, size=d)
        true = rng.normal(size=d) * (rng.random(d) < 0.3)
        self.y = self.X @ true + 0.1 * rng.normal(size=n)
        self.start = rng.normal(size=d)
        self.l1 = share * np.abs(self.X.T @ self.y / n).max()

    def value_and_grad(self, w):
        r = self.X @ w - self.y
        return 0.5 * r @ r / len(r), self.X.T @ r / len(r)


class MeanLogistic(Problem):
    """Mean logistic loss over rows, plus (l2 / 2) |w|^2, no intercept."""

    loss = Logistic()

    def __init__(self, X, y, l2=0.0):
        super().__init__()
        self.block, self.l2 = Block(X, y, np.ones(len(y))), l2
        self.start = np.zeros(X.shape[1])

    def value_and_grad(self, w):
        sums = self.loss.value_and_grad(w, self.block)
        return sums.loss / sums.weight + 0.5 * self.l2 * (
            w @ w
        ), sums.grad / sums.weight + self.l2 * w

    def hessian_times(self, w, v):
        return self.loss.hessp(w, v, self.block) / len(self.block.y) + self.l2 * v

    def hessian(self, w):
        return np.array([self.hessian_times(w, e) for e in np.eye(w.size)])


@lru_cache
def a9a():
    return datasets.load("a9a")


@lru_cache
def text():
    """X and y of problem T, 2,000 rows of 9,947 features."""
    X, y = load_svmlight_file(str(TEXT), n_features=9947)
    X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)  # for liblinear
    return csr_array(X), y
