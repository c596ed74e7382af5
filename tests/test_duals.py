"""CoCoA+ and SVRG: dual certificates, and steps without noise, with the real loops and store.

The numbers of J6 to J9 and M4 are those of ALGORITHMS.md, sections 9.4 and 15.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.sparse import csr_array, vstack
from sklearn.svm import LinearSVC

from sparkdist import L2
from sparkdist.blocks import Block
from sparkdist.client import Gradient
from sparkdist.consistency import asp, bsp
from sparkdist.errors import InvalidCall
from sparkdist.objectives import Hinge, Logistic
from sparkdist.simulate import constant, exponential, simulate
from sparkdist.updaters import momentum, sgd
from sparkdist.workers import Batches, Whole, cocoa, local_sgd, svrg
from tests.conftest import random_block
from tests.solver_problems import text
from tests.test_averaging import Rows, method, open_store, together
from tests.test_solvers import needs_text
from tests.test_workers import Direct


class Parts(Rows):
    """Batches of a loop's units, which know their rows; the n-th one that is asked for may fail."""

    fails_at = -1

    def __init__(self, loop, block, batch, partition, epochs):
        self.batches = Batches([block], batch, seed=3, partition=partition)
        cuts = loop.cuts(self.batches.per_epoch, epochs)
        self.total, self.steps, self.first = cuts.total, cuts.steps, cuts.first
        self.n_rows, self.weight = self.batches.n_rows, self.batches.weight

    def place(self, clock, step):
        if self.first(clock) + step == self.fails_at:
            self.fails_at = -1
            raise RuntimeError("disturbed")
        return divmod(self.first(clock) + step, self.batches.per_epoch)

    def rows(self, clock, step):
        place = self.place(clock, step)
        return self.batches.rows(*place), self.batches.get(*place)

    def gradient(self, clock, step, w):
        batch = self.batches.get(*self.place(clock, step))
        found = Logistic().value_and_grad(w, batch)
        return Gradient(found.grad, found.weight, len(batch.y), found.loss)


class Watched(Direct):
    """A client that keeps what each unit began with and what it left."""

    log: dict = {}

    def push(self, partition, clock, at, gradient, *, want):
        self.log[partition, clock] = None if partition else at.w, gradient.state
        return super().push(partition, clock, at, gradient, want=want)


def whole_of(blocks, strength, **other):
    """The run of these blocks, one a worker."""
    size = blocks[0].X.shape[1]
    weight = sum(float(block.weight.sum()) for block in blocks)
    known = {
        "objective": Hinge(),
        "n_workers": len(blocks),
        "n_rows": sum(len(block.y) for block in blocks),
        "weight": weight,
        "consistency": bsp(),
        "updater": sgd(1.0),
        "plain": True,
        "l1": 0.0,
        "l2": strength,
        "mask": np.ones(size),
    }
    return Whole(**known | other)


def stacked(blocks):
    """X, the classes as +1 and -1, and the weights, of all blocks."""
    X = vstack([csr_array(block.X) for block in blocks], format="csr")
    sign = np.where(np.hstack([b.y for b in blocks]) > 0, 1.0, -1.0)
    return X, sign, np.hstack([b.weight for b in blocks])


class Machine:
    """The support vector machine of some blocks: mean hinge loss + (l2 / 2) |w|^2."""

    def __init__(self, blocks, l2):
        self.blocks, self.l2 = blocks, l2
        self.X, self.sign, self.weight = stacked(blocks)
        self.n = self.weight.sum()

    def primal(self, w):
        gaps = np.maximum(1 - self.sign * (self.X @ w), 0)
        return self.weight @ gaps / self.n + self.l2 / 2 * w @ w

    def w_of(self, a):
        return self.X.T @ (self.weight * self.sign * a) / (self.l2 * self.n)

    def dual(self, a):
        w = self.w_of(a)
        return self.weight @ a / self.n - self.l2 / 2 * w @ w

    def run(self, loop, epochs, batch=10, fails_at=-1):
        """Return (w, a) before each round and after the last one."""
        told = loop.part_of(whole_of(self.blocks, self.l2))
        work = [Parts(told, b, batch, p, epochs) for p, b in enumerate(self.blocks)]
        work[0].fails_at = fails_at
        store = open_store(self.X.shape[1], len(work), bsp(), sgd(1.0))
        Watched.log = {}
        found = together(store, again_and_again(told), work, Watched)
        pasts = []
        for clock in range(1, work[0].total + 1):
            w = Watched.log[0, clock][0] if (0, clock) in Watched.log else found
            pasts.append((w, np.hstack([Watched.log[p, clock - 1][1] for p in range(len(work))])))
        assert all(
            (states := store.ledger.states)[p].size == len(b.y) for p, b in enumerate(self.blocks)
        )
        assert_array_equal(np.hstack([states[p] for p in sorted(states)]), pasts[-1][1])
        return pasts

    def gaps_of(self, pasts):
        return [self.primal(w) - self.dual(a) for w, a in pasts]

    def gaps(self, *arguments, **options):
        return self.gaps_of(self.run(*arguments, **options))


def again_and_again(loop):
    """A task that Spark runs again when it fails."""

    def task(client, partition, units):
        for _ in range(2):
            try:
                return loop(client, partition, units)
            except RuntimeError:
                continue

    return task


@lru_cache
def of_blocks(sparse=False):
    """Three workers with 60, 31 and 45 weighted rows, one of which is 0."""
    blocks = [random_block(n, 6, n) for n in (60, 31, 45)]
    blocks[1].X[3] = 0.0
    if sparse:
        blocks = [Block(csr_array(b.X), b.y, b.weight) for b in blocks]
    return Machine(blocks, 0.05)


@lru_cache
def of_text(n_workers):
    """T-SVM."""
    X, y = text()
    order = np.random.default_rng(0).permutation(len(y))
    parts = np.array_split(order, n_workers)
    return Machine([Block(X[rows], y[rows], np.ones(len(rows))) for rows in parts], 1e-3)


# --- CoCoA+ ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [constant(1.0), exponential(1.0)], ids=["alike", "unlike"])
def test_the_simulator_solves_the_same_dual_as_the_store_bit_for_bit(seconds):
    # Strength of the penalty, weight of all rows and number of workers are told by hand there.
    machine = of_blocks()
    w, a = machine.run(cocoa(2), epochs=3)[-1]
    found = simulate(
        "hinge", machine.blocks, method="cocoa", rounds=2, penalty=L2(machine.l2),
        batch_size=10, epochs=3, seed=3, latency=seconds,
    )  # fmt: skip
    assert_array_equal(found.x, w)
    assert found.fun == pytest.approx(machine.primal(w), rel=1e-12)
    assert_allclose(machine.w_of(a), w, rtol=1e-10)


@pytest.mark.parametrize("sparse", [False, True])
def test_j6_j9_the_gap_closes_at_the_optimum_of_liblinear(sparse):
    machine = of_blocks(sparse)
    pasts = machine.run(cocoa(), 300)
    gaps = machine.gaps_of(pasts)
    assert min(gaps) >= -1e-12 and gaps[-1] < 1e-6
    C = 1 / (machine.l2 * machine.n)
    judge = LinearSVC(C=C, loss="hinge", fit_intercept=False, tol=1e-10, max_iter=1_000_000)
    judge.fit(machine.X.toarray(), machine.sign, sample_weight=machine.weight)
    w, a = pasts[-1]
    assert machine.primal(w) == pytest.approx(machine.primal(judge.coef_[0]), abs=1e-6)
    assert 0 <= a.min() and a.max() <= 1


@pytest.mark.parametrize(
    "loop", [cocoa(), cocoa(3), cocoa(2, 1 / 3), cocoa(4, sigma=5.0)], ids=repr
)
def test_j7_w_is_that_of_the_dual_variables_after_every_round(loop):
    machine = of_blocks()
    pasts = machine.run(loop, 4)
    assert len(pasts) == 4 * loop.rounds
    for w, a in pasts:
        assert_allclose(w, machine.w_of(a), rtol=0, atol=1e-12)


def test_with_sigma_of_all_workers_the_dual_never_falls():
    machine = of_blocks()
    duals = [machine.dual(a) for _, a in machine.run(cocoa(5), 20)]
    assert (np.diff(duals) >= -1e-13).all() and duals[-1] > 10 * abs(np.diff(duals[-2:])[0])


def test_a_single_worker_is_dual_coordinate_ascent():
    """Hsieh et al., ICML 2008, Algorithm 1, on the same rows in the same order."""
    block = random_block(30, 4, 5)
    machine = Machine([block], 0.1)
    ((w, a),) = machine.run(cocoa(), 1, batch=30)
    order = np.random.default_rng([0, 0]).permutation(30)
    expected, u = np.zeros(30), np.zeros(4)
    for i in order:
        x, s, c = block.X[i], machine.sign[i], block.weight[i] / (0.1 * machine.n)
        new = np.clip(expected[i] + (1 - s * (x @ u)) / (c * (x @ x)), 0, 1)
        u, expected[i] = u + c * (new - expected[i]) * s * x, new
    assert_allclose(a, expected, rtol=1e-10, atol=1e-13)
    assert_allclose(w, u, rtol=1e-10)


@pytest.mark.parametrize("fails_at", [0, 7, 20])
def test_the_dual_variables_survive_a_task_that_fails(fails_at):
    machine = of_blocks()
    for (w, a), (u, b) in zip(
        machine.run(cocoa(3), 4, fails_at=fails_at), machine.run(cocoa(3), 4), strict=True
    ):
        assert_array_equal(w, u)
        assert_array_equal(a, b)


def test_workers_of_different_length_have_the_same_number_of_rounds():
    for per_epoch, firsts in [(5, [0, 2, 5, 7]), (1, [0, 0, 1, 1]), (4, [0, 2, 4, 6])]:
        cuts = cocoa(2).cuts(per_epoch, 2)
        assert [cuts.first(clock) for clock in range(cuts.total)] == firsts
        lengths = np.diff([*firsts, 2 * per_epoch]).tolist()
        assert [cuts.steps(clock) for clock in range(cuts.total)] == lengths
    assert cocoa(2).cuts(0, 2).total == 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"objective": Logistic()}, "must be Hinge"),
        ({"l1": 0.1}, "must be L2"),
        ({"l2": 0.0}, "must be L2"),
        ({"mask": np.array([1.0, 0.0])}, "no intercept"),
        ({"consistency": asp()}, "must be bsp"),
        ({"updater": sgd(0.5)}, r"updater sgd\(1.0\)"),
        ({"plain": False}, "without a codec"),
    ],
)
def test_what_cocoa_cannot_be_a_part_of_is_refused(other, said):
    with pytest.raises(InvalidCall, match=said):
        cocoa().part_of(whole_of(of_blocks().blocks, 0.1, **other))


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"gamma": 0.0}, {"gamma": 1.5}, {"sigma": 0.0}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InvalidCall, match=next(iter(wrong))):
        cocoa(**wrong)


def test_parameters_that_are_not_those_of_dual_variables_of_0_are_refused():
    machine = of_blocks()
    loop = cocoa().part_of(whole_of(machine.blocks, machine.l2))
    store = open_store(6, 1, bsp(), sgd(1.0))
    store._parameters._w[0] = 1.0
    with pytest.raises(InvalidCall, match="must start at 0"):
        loop(Direct(store), 0, Parts(loop, machine.blocks[0], 10, 0, 1))


@pytest.mark.long
@needs_text
def test_j8_adding_is_better_than_averaging_and_unsafe_adding_fails():
    # The bounds are the table's, of rows that are drawn with replacement: here each comes once.
    for n_workers, adding, averaging in [(4, 4.4e-3, 1.1e-2), (16, 5.5e-2, 9.3e-2)]:
        machine = of_text(n_workers)
        gaps = [machine.gaps(cocoa(10, gamma), 10)[-1] for gamma in (1.0, 1 / n_workers)]
        assert 0 < gaps[0] < 1.25 * adding and 0 < gaps[1] < 1.25 * averaging
        assert gaps[0] < gaps[1]
    assert min(of_text(16).gaps(cocoa(sigma=1.0), 30)) > 0.1


@pytest.mark.long
@needs_text
def test_j6_j9_on_text():
    machine = of_text(4)
    pasts = machine.run(cocoa(), 100)
    gaps = machine.gaps_of(pasts)
    assert min(gaps) >= 0 and gaps[-1] < 1e-4
    for after, table in [(10, 7.1e-2), (20, 9.4e-3), (50, 3.6e-4), (100, 2.4e-5)]:
        assert gaps[after - 1] < 1.25 * table
    best = machine.primal(pasts[-1][0])
    assert 0.1966281988 - 1e-10 <= best <= 0.1966281988 + 1e-4


# --- SVRG -----------------------------------------------------------------------------------


def mean_loss(blocks, l2, w):
    """Mean logistic loss + (l2 / 2) |w|^2, and its gradient."""
    sums = [Logistic().value_and_grad(w, block) for block in blocks]
    weight = sum(s.weight for s in sums)
    value = sum(s.loss for s in sums) / weight + l2 / 2 * w @ w
    return value, sum(s.grad for s in sums) / weight + l2 * w


def variance_reduced(blocks, rate, l2, epochs, batch=7, fails_at=-1):
    loop, policy, updater = method("svrg", rate=rate)
    loop = loop.part_of(whole_of(blocks, l2, updater=updater))
    work = [Parts(loop, block, batch, p, epochs) for p, block in enumerate(blocks)]
    work[0].fails_at = fails_at
    Watched.log = {}
    store = open_store(blocks[0].X.shape[1], len(blocks), policy, updater)
    return together(store, again_and_again(loop), work, Watched), work


THREE = [random_block(n, 5, n) for n in (50, 37, 61)]


def test_svrg_is_its_formula():
    rate, l2 = 0.4, 0.02
    found, work = variance_reduced(THREE, rate, l2, 6)
    w = np.zeros(5)
    for clock in range(0, 6, 2):
        anchor, mu, ends, weights = w, mean_loss(THREE, l2, w)[1], [], []
        start = w - rate * mu
        for units in work:
            x, weight = start, 0.0
            for step in range(units.steps(clock + 1)):
                batch = [units.batch(units.first(clock + 1) + step)]
                here, there = (mean_loss(batch, l2, point)[1] for point in (x, anchor))
                x, weight = x - rate * (here - there + mu), weight + batch[0].weight.sum()
            ends.append(x)
            weights.append(weight)
        w = np.average(ends, axis=0, weights=weights)
    assert_allclose(found, w, rtol=1e-10, atol=1e-13)


def test_m4_svrg_converges_linearly_where_the_noise_stops_sgd():
    l2 = 0.1
    best = minimize(lambda w: mean_loss(THREE, l2, w), np.zeros(5), jac=True, tol=1e-12).fun
    found, _ = variance_reduced(THREE, 0.5, l2, 60)
    assert abs(mean_loss(THREE, l2, found)[0] - best) < 1e-13
    loop = local_sgd("epoch", sgd(0.5)).penalised(0.0, l2, None)
    work = [Parts(loop, block, 7, p, 60) for p, block in enumerate(THREE)]
    plain = together(open_store(5, 3, bsp(), sgd(1.0)), loop, work)
    assert mean_loss(THREE, l2, plain)[0] - best > 1e-5


@pytest.mark.parametrize("fails_at", [0, 9, 12])
def test_the_point_that_the_gradient_is_from_survives_a_task_that_fails(fails_at):
    undisturbed, _ = variance_reduced(THREE, 0.4, 0.02, 4)
    found, work = variance_reduced(THREE, 0.4, 0.02, 4, fails_at=fails_at)
    assert work[0].fails_at == -1
    assert_array_equal(found, undisturbed)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"l1": 0.1}, "smooth"),
        ({"consistency": asp()}, "must be bsp"),
        ({"updater": sgd(0.3)}, "must be bsp.* and updater sgd"),
        ({"plain": False}, "clipping"),
    ],
)
def test_what_svrg_cannot_be_a_part_of_is_refused(other, said):
    with pytest.raises(InvalidCall, match=said):
        svrg(0.2).part_of(whole_of(THREE, 0.1, **{"updater": sgd(0.2)} | other))


def test_a_worker_whose_part_of_the_gradient_was_left_out_leaves_out_its_steps():
    units = Parts(svrg(), THREE[0], 7, 0, 4)
    for state in (None, np.array([0.0, *np.ones(5)])):
        pushed = svrg().unit(units, 3, np.ones(5), state)
        assert pushed.weight == 0 and not pushed.value.any()


@pytest.mark.parametrize("loop", [svrg(), cocoa(), local_sgd(3, momentum(0.1))], ids=repr)
def test_what_is_pushed_has_the_type_of_the_model_and_the_state_float64(loop):
    whole = whole_of(THREE, 0.1, updater=sgd(0.1) if isinstance(loop, svrg) else sgd(1.0))
    loop = loop.part_of(whole).penalised(0.0, 0.1, np.ones(5))
    units, w, state = Parts(loop, THREE[0], 7, 0, 4), np.zeros(5, "f4"), None
    for clock in range(2):
        pushed = loop.unit(units, clock, w, state)
        assert (pushed.value.dtype, pushed.value.shape) == (w.dtype, w.shape)
        assert pushed.state.dtype == np.float64 and pushed.state.ndim == 1
        assert pushed.state.size <= loop.state_size(5)
        w, state = w + np.float32(0.5), pushed.state


@pytest.mark.long
@needs_text
def test_m4_svrg_on_text_gains_a_digit_an_epoch():
    X, y = text()
    blocks = [Block(X, y, np.ones(len(y)))]
    found, work = variance_reduced(blocks, 2.0, 1e-3, 8, batch=1)
    points = [Watched.log[0, clock][0] for clock in range(2, 8, 2)] + [found]
    gaps = [mean_loss(blocks, 1e-3, w)[0] - 0.39316973670152 for w in points]
    # The table's, of rows that are drawn with replacement: here each comes once an epoch.
    for gap, table in zip(gaps, [4.6e-2, 2.2e-3, 1.0e-4, 2.2e-6], strict=True):
        assert gap < 4 * table
