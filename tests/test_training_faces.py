"""The faces of the model server with real Spark: minimize, the user's own rows, resume, TLS."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import trustme
from numpy.testing import assert_allclose, assert_array_equal
from pyspark import SparkConf
from pyspark.sql import SparkSession
from sklearn.linear_model import LogisticRegression

from sparkdist import L1, L2, MLP, Dataset, ElasticNet, ModelServer, minimize
from sparkdist.blocks import Array, Block
from sparkdist.consistency import bsp
from sparkdist.errors import BadGradient, InvalidCall, PassFailed, ServerUnavailable
from sparkdist.spark.network import bind_host, driver_host
from sparkdist.spark.training.server_options import ServerOptions
from sparkdist.updaters import adagrad, inverse_time, sgd
from sparkdist.workers import local_sgd
from tests.conftest import LOCAL

pytestmark = pytest.mark.spark

N, D = 300, 4


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    return start(LOCAL, folder)


@pytest.fixture(scope="module")
def rows() -> Block:
    random = np.random.default_rng(8)
    X = random.normal(size=(N, D))
    y = (X @ [1.0, -2.0, 0.5, 0.0] + 0.7 + random.logistic(size=N) > 0).astype(float)
    return Block(X, y, np.ones(N))


@pytest.fixture(scope="module")
def data(spark: SparkSession, rows: Block) -> Dataset:
    return Dataset.from_arrays(spark, rows.X, rows.y, n_partitions=2)


def best(rows: Block, l2: float) -> tuple[Array, float]:
    """Weights and intercept of scikit-learn for mean logistic loss + (l2 / 2) |weights|^2."""
    solver = LogisticRegression(C=1 / (N * l2), solver="newton-cg", tol=1e-12)
    fitted = solver.fit(rows.X, rows.y)
    return fitted.coef_[0], float(fitted.intercept_[0])


# --- minimize ---------------------------------------------------------------------------------


def test_sgd_with_an_intercept_comes_to_the_minimum_that_leaves_it_free(
    data: Dataset, rows: Block
) -> None:
    # One batch an epoch makes it gradient descent, which comes as close as one likes.
    result = minimize(
        "logistic", data, method="sgd", penalty=L2(0.1), intercept=True,
        updater=sgd(1.0), batch_size=N, epochs=150,
    )  # fmt: skip
    weights, intercept = best(rows, 0.1)
    assert_allclose(result.x["weights"], weights, atol=1e-6)
    assert_allclose(result.x["intercept"], intercept, atol=1e-6)
    assert np.abs(result.jac["weights"]).max() < 1e-6
    assert result.method == "sgd"
    assert result.success
    assert (result.model.predict(rows.X) == rows.y).mean() > 0.7


def test_downpour_on_a_dataframe_comes_near_the_minimum(spark: SparkSession, rows: Block) -> None:
    df = spark.createDataFrame(
        [(x.tolist(), float(label)) for x, label in zip(rows.X, rows.y, strict=True)],
        "features array<double>, label double",
    )
    seen: list[int] = []
    result = minimize(
        "logistic", df, method="downpour", penalty=L2(0.1), batch_size=16, epochs=20, seed=3,
        callback=lambda state: seen.append(state.nit),
    )  # fmt: skip
    exact = minimize("logistic", df, penalty=L2(0.1), progress=False)
    assert exact.fun <= result.fun <= 1.005 * exact.fun
    assert seen == sorted(seen) and seen[-1] == result.nit
    assert result.counts["applied"] == result.nfev == result.nit


@pytest.mark.parametrize("face", ["objective", "rows"])
def test_a_run_that_diverges_is_no_success_and_says_what_to_do(
    data: Dataset, spark: SparkSession, rows: Block, face: str
) -> None:
    """Gradient descent on 1/2 mean (Xw - y)^2 with a step above 2 / L, L the largest eigenvalue."""
    largest = np.linalg.eigvalsh(rows.X.T @ rows.X / N)[-1]
    for rate, converges in ((1.0 / largest, True), (4.0 / largest, False)):
        with ModelServer(np.zeros(D), updater=sgd(rate), consistency=bsp()) as server:
            options = {"batch_size": N, "epochs": 20, "progress": False}
            if face == "objective":
                result = server.train(data, "squared", **options)
            else:
                pairs = spark.sparkContext.parallelize([*zip(rows.X, rows.y, strict=True)], 1)
                result = server.train(pairs, squares, **options)
        assert (result.success, result.status) == ((True, 0) if converges else (False, 3))
        if not converges:
            start = 0.5 * np.mean(rows.y**2)
            assert f"and was {start:.6g} at the start: lower the rate" in result.message
            assert result.fun > start


def squares(w: Array, batch: list[Any]) -> tuple[float, Array]:
    X, y = np.array([x for x, _ in batch]), np.array([label for _, label in batch])
    return 0.5 * float((X @ w - y) @ (X @ w - y)), X.T @ (X @ w - y)


@pytest.mark.parametrize("skip", [False, True])
def test_r22_a_loss_that_overflows_is_told_or_left_out(
    spark: SparkSession, rows: Block, skip: bool
) -> None:
    """The margin 1e160 is finite, and its square is not."""
    with Dataset.from_arrays(spark, np.full((4, 1), 1e160), np.ones(4), n_partitions=1) as far:
        server = ModelServer(np.ones(1), updater=sgd(1e-300), skip_not_finite=skip)
        with server, np.errstate(over="ignore"):
            if not skip:
                with pytest.raises(PassFailed, match="push 0: the loss is NaN or infinite; if it"):
                    server.train(far, "squared", batch_size=2, progress=False)
                return
            result = server.train(far, "squared", batch_size=2, progress=False)
    assert result.counts["skipped"] == 2 and result.x == 1.0
    assert not result.success and "inf" in result.message


def test_train_names_the_columns_of_a_dataframe(spark: SparkSession, rows: Block) -> None:
    """One batch is the whole of a worker's rows: SGD's step is -rate F'(0), weights and all."""
    weight = 1.0 + np.arange(N) % 3
    df = spark.createDataFrame(
        [(*x.tolist(), float(y), float(w)) for x, y, w in zip(rows.X, rows.y, weight, strict=True)],
        [*(f"x{i}" for i in range(D)), "clicked", "times"],
    ).repartition(1)
    columns = {"features": [f"x{i}" for i in range(D)], "label": "clicked", "weight": "times"}
    with ModelServer(np.zeros(D), updater=sgd(1.0), consistency=bsp()) as server:
        server.train(df, "logistic", batch_size=N, progress=False, **columns)
        found = server.model
        with pytest.raises(InvalidCall, match="label can only be given with a DataFrame"):
            server.train(df.rdd, "logistic", label="clicked")
    gradient = rows.X.T @ (weight * (0.5 - rows.y)) / weight.sum()  # the slope at 0 is 1/2 - y
    assert_allclose(found, -gradient, rtol=1e-12)


def test_a_network_starts_from_its_own_draw_and_its_biases_are_free(data: Dataset) -> None:
    network = MLP([D, 3, 2])
    # After no step at all the penalty would draw every parameter towards 0 but the biases.
    result = minimize(
        network, data, method="sgd", penalty=L2(1e3), updater=sgd(1e-3), batch_size=N, seed=5
    )
    start = network.initial(5)
    for name, array in result.x.items():
        if name in network.biases:
            assert array.any()
        else:
            # w - 1e-3 (grad + 1e3 w) = -1e-3 grad: the start is forgotten.
            assert np.abs(array).max() < 1e-2 < np.abs(start[name]).max()


def test_the_lasso_of_sgd_has_the_zeros_of_owlqn(data: Dataset) -> None:
    penalty = L1(0.05)
    result = minimize(
        "logistic", data, method="sgd", penalty=penalty, updater=sgd(1.0), batch_size=N, epochs=300
    )
    exact = minimize("logistic", data, method="owlqn", penalty=penalty, progress=False)
    assert_allclose(result.fun, exact.fun, rtol=1e-9)
    assert_array_equal(result.x == 0, exact.x == 0)
    assert np.abs(result.jac).max() < 1e-6


def test_float32_stays_float32_on_the_server(data: Dataset) -> None:
    with ModelServer(np.zeros(D, np.float32)) as server:
        assert server.status()["dtype"] == "<f4"
        assert server.train(data, "logistic").success


def test_a_callback_may_end_the_run(data: Dataset) -> None:
    def stop(state: Any) -> None:
        raise StopIteration

    result = minimize("logistic", data, method="downpour", epochs=2_000, callback=stop)
    assert not result.success
    assert "callback" in result.message
    assert result.history.examples[-1] < 2_000 * N


def test_what_only_exact_methods_know_is_refused_with_the_rest(data: Dataset) -> None:
    with pytest.raises(InvalidCall) as caught:
        minimize(
            "logistic", data, method="downpour", tol=1e-3, bounds=[(0, 1)] * D, history=5
        )  # fmt: skip
    unknown, exact = caught.value.problems
    assert "history" in unknown and "batch_size" in unknown
    assert (
        exact == "tol, bounds cannot be used with downpour: downpour sees every row `epochs` times"
    )


def test_a_model_that_does_not_belong_to_the_data_is_refused(data: Dataset) -> None:
    with ModelServer(np.zeros(D + 3)) as server:
        with pytest.raises(InvalidCall, match=r"has 7 parameters; Logistic .* 4 or 5"):
            server.train(data, "logistic")
        with pytest.raises(InvalidCall, match=r"9 inputs; the data 4 features"):
            server.train(data, MLP([9, 2]))


# --- the user's own rows ----------------------------------------------------------------------


def mean_of(model: dict[str, Array], rows: list[float]) -> tuple[float, dict[str, Array]]:
    """Squared distance to the rows: its minimum is their mean."""
    residuals = [model["centre"] - row for row in rows]
    return sum(float(r @ r) / 2 for r in residuals), {"centre": np.sum(residuals, axis=0)}


def test_any_rdd_is_trained_on_by_a_gradient_of_its_rows(spark: SparkSession) -> None:
    values = np.random.default_rng(2).normal(size=101)
    rdd = spark.sparkContext.parallelize(values.tolist(), 3)
    with ModelServer({"centre": np.zeros(2)}, updater=sgd(1.0), consistency=bsp()) as server:
        # Each round holds all rows: one step of length 1 is Newton's, to the mean.
        result = server.train(rdd, mean_of, batch_size=101)
    assert_allclose(result.x["centre"], [values.mean()] * 2, rtol=1e-12)
    assert_allclose(result.fun, values.var(), rtol=1e-12)  # half of it in each coordinate
    assert_allclose(result.jac["centre"], 0, atol=1e-13)
    assert result.history.examples[-1] == 101


def test_c4_rows_in_batches_are_one_process_on_the_same_batches(spark: SparkSession) -> None:
    rdd = spark.sparkContext.parallelize([1.0, 2.0, 4.0, 8.0, 16.0], 1)
    batches: list[list[float]] = []

    def gradient(model: Array, rows: list[float]) -> Array:
        return np.array([model[0] * len(rows) - sum(rows)])

    with ModelServer(np.zeros(1), updater=sgd(0.5), consistency=bsp()) as server:
        found = server.train(rdd, gradient, batch_size=2, epochs=2, seed=7)
    w = 0.0
    for epoch in range(2):
        stream = np.random.SeedSequence([7, epoch, 0])
        order = np.random.default_rng(stream).permutation(5)
        for start in (0, 2, 4):
            rows = [2.0**i for i in np.sort(order[start : start + 2])]
            w = w - 0.5 * ((w * len(rows) - sum(rows)) / len(rows))
            batches.append(rows)
    assert len(batches) == 6
    assert_allclose(found.x, [w], rtol=1e-12)
    assert np.isnan(found.fun)  # this gradient tells no losses


def test_a_gradient_of_another_shape_is_told_in_the_users_words(spark: SparkSession) -> None:
    rdd = spark.sparkContext.parallelize([1.0], 1)
    with ModelServer({"centre": np.zeros(2)}) as server:
        with pytest.raises(PassFailed, match=r"a dict of centre\(2,\), it returned .*shape \(3,\)"):
            server.train(rdd, lambda model, rows: np.zeros(3))
        with pytest.raises(PassFailed, match="read-only"):
            server.train(rdd, lambda model, rows: model["centre"].fill(1.0))


def test_a_gradient_of_rows_needs_rows(data: Dataset) -> None:
    with ModelServer(np.zeros(D)) as server, pytest.raises(InvalidCall, match="is for an RDD"):
        server.train(data, lambda model, rows: model)


# --- resume -----------------------------------------------------------------------------------


def run(data: Dataset, callback: Any = None, **options: Any) -> Any:
    with ModelServer(
        np.zeros(D), updater=adagrad(inverse_time(0.5, 0.1)), consistency=bsp(), checkpoint="every",
        **options,
    ) as server:  # fmt: skip
        return server.train(data, "logistic", batch_size=10, epochs=3, callback=callback)


def test_r17_a_run_whose_driver_died_ends_as_if_it_had_not(data: Dataset, tmp_path: Path) -> None:
    undisturbed = run(data)

    class Died(Exception):
        pass

    def die(status: dict[str, Any]) -> None:
        if status["version"] >= 5:
            raise Died

    with pytest.raises(Died):
        run(data, die, folder=tmp_path)
    resumed = run(data, resume=tmp_path)
    assert_array_equal(resumed.x, undisturbed.x)
    assert resumed.counts["applied"] == undisturbed.counts["applied"]
    again = run(data, resume=tmp_path)  # a run that is over is not run again
    assert_array_equal(again.x, undisturbed.x)
    assert again.counts["applied"] == undisturbed.counts["applied"]


def test_r17_calls_that_were_over_are_not_made_again(data: Dataset, tmp_path: Path) -> None:
    def program(callback: Any = None, **options: Any) -> Any:
        with ModelServer(
            np.zeros(D), updater=sgd(0.1), consistency=bsp(), checkpoint="every", **options
        ) as server:
            for call in range(3):
                told = callback if call == 1 else None
                result = server.train(data, "logistic", batch_size=30, callback=told)
        return result

    undisturbed = program()

    def die(status: dict[str, Any]) -> None:
        raise KeyError("died")

    with pytest.raises(KeyError):
        program(die, folder=tmp_path)
    assert_array_equal(program(resume=tmp_path).x, undisturbed.x)


def test_r17_a_call_that_was_over_may_come_before_one_that_had_pushed_nothing(
    spark: SparkSession, tmp_path: Path
) -> None:
    """The books are those of the second call, in which no row has been seen yet."""
    rows = spark.sparkContext.parallelize([1.0, 2.0], 2)

    def program(second: Any, **options: Any) -> Any:
        with ModelServer(np.zeros(1), checkpoint="every", **options) as server:
            return [server.train(rows, one) for one in (toward, second)][-1]

    with pytest.raises(PassFailed, match="division by zero"):
        program(lambda model, batch: 1 / 0, folder=tmp_path)
    assert program(toward, resume=tmp_path).success


def toward(model: Array, batch: list[float]) -> Array:
    return np.array([sum(model[0] - x for x in batch)])


def test_what_cannot_be_resumed_is_refused_before_anything_is_changed(
    data: Dataset, tmp_path: Path
) -> None:
    run(data, folder=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidCall, match="a new run needs another folder"):
        ModelServer(np.zeros(D), folder=tmp_path)
    with pytest.raises(InvalidCall, match="there are no checkpoints"):
        ModelServer(np.zeros(D), resume=tmp_path / "nowhere")
    for wrong, said in ((3, "folder must be a path; it is 3"), (__file__, "which is a file")):
        with pytest.raises(InvalidCall, match=said):
            ModelServer(np.zeros(D), folder=wrong)
    with pytest.raises(InvalidCall, match=r"has 4 parameters in float64; the model 7"):
        ModelServer(np.zeros(7), resume=tmp_path).__enter__()
    with pytest.raises(InvalidCall, match="another updater"):
        ModelServer(np.zeros(D), updater=sgd(0.1), resume=tmp_path).__enter__()
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    options = {"updater": adagrad(0.1), "consistency": bsp(), "resume": tmp_path}
    with ModelServer(np.zeros(D), **options) as server:
        with pytest.raises(InvalidCall, match="batch_size was 10 and is 20"):
            server.train(data, "logistic", batch_size=20, epochs=3)


def averaged(data: Dataset, rate: Any, callback: Any = None, **options: Any) -> Any:
    worker = local_sgd(2, inner=sgd(rate))
    with ModelServer(
        np.zeros(D), updater=sgd(1.0), consistency=bsp(), checkpoint="every", **options
    ) as server:
        return server.train(data, "logistic", worker=worker, epochs=3, callback=callback)


def test_a_schedule_that_no_other_process_knows_again_is_refused_where_a_checkpoint_stays(
    data: Dataset, tmp_path: Path
) -> None:
    def schedule(t: int) -> float:
        return 0.5 / (1 + 0.1 * t)

    with pytest.raises(InvalidCall, match=r"schedule of sparkdist\.updaters"):
        averaged(data, schedule, folder=tmp_path / "refused")
    undisturbed = averaged(data, schedule)  # in a folder of its own, which nobody resumes

    def die(status: dict[str, Any]) -> None:
        if status["version"]:
            raise KeyError("died")

    with pytest.raises(KeyError):
        averaged(data, inverse_time(0.5, 0.1), die, folder=tmp_path)
    with pytest.raises(InvalidCall, match=r"schedule of sparkdist\.updaters"):
        averaged(data, schedule, resume=tmp_path)
    assert_array_equal(averaged(data, inverse_time(0.5, 0.1), resume=tmp_path).x, undisturbed.x)


# --- TLS, and Spark's own encryption ----------------------------------------------------------


def test_r47_with_a_certificate_nothing_crosses_the_network_in_the_clear(
    data: Dataset, tmp_path: Path
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    (tmp_path / "key.pem").write_bytes(issued.private_key_pem.bytes())
    chain = [*(blob.bytes() for blob in issued.cert_chain_pems), authority.cert_pem.bytes()]
    (tmp_path / "certificate.pem").write_bytes(b"".join(chain))
    paths = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key")}
    with ModelServer(np.zeros(D), **paths) as server:
        assert server.train(data, "logistic").success
    other = trustme.CA().cert_pem.bytes()
    with ModelServer(np.zeros(D), **paths) as server:
        paths["certificate"].write_bytes(other)  # executors are told to trust another one
        with pytest.raises((PassFailed, ServerUnavailable), match="(?i)certificate"):
            server.train(data, "logistic", patience=2.0)


@pytest.mark.parametrize(
    "name",
    [
        "spark.network.crypto.enabled",
        "spark.ssl.enabled",
        "spark.authenticate.enableSaslEncryption",
    ],
)
def test_r47_encryption_that_this_port_would_bypass_is_refused_or_warned_of(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    conf = SparkConf(loadDefaults=False).set(name, "true")
    with pytest.raises(InvalidCall, match=f"{name} is set"):
        ServerOptions().refuse_bypassed_encryption(conf, "10.0.0.1")
    ServerOptions().refuse_bypassed_encryption(conf, "127.0.0.1")  # nothing leaves the machine
    assert not caplog.records
    ServerOptions(plaintext=True).refuse_bypassed_encryption(conf, "10.0.0.1")
    assert "unencrypted" in caplog.text


def listening(port: int) -> set[str]:
    """Addresses that listen at a port, by the kernel's own table."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, _, at = local.partition(":")
        if state == "0A" and int(at, 16) == port:
            found.add(socket.inet_ntoa(struct.pack("<L", int(address, 16))))
    return found


def test_r38_in_local_mode_only_this_machine_can_reach_the_server(spark: SparkSession) -> None:
    with ModelServer(np.zeros(D)) as server:
        _, port = server._serving._where
        assert listening(port) == {"127.0.0.1"}
    assert listening(port) == set()


class Master(NamedTuple):
    """What is asked of a SparkContext."""

    master: str
    conf: dict[str, str]

    def getConf(self) -> dict[str, str]:
        return self.conf


@pytest.mark.parametrize(
    ("master", "conf", "advertised", "bound"),
    [
        ("local", {"spark.driver.host": "10.1.2.3"}, "127.0.0.1", "127.0.0.1"),
        ("local[2,4]", {"spark.driver.bindAddress": "0.0.0.0"}, "127.0.0.1", "127.0.0.1"),
        ("spark://m:7077", {"spark.driver.host": "10.1.2.3"}, "10.1.2.3", "10.1.2.3"),
        (
            "k8s://m",
            {"spark.driver.host": "driver.svc", "spark.driver.bindAddress": "10.9.9.9"},
            "driver.svc",
            "10.9.9.9",
        ),
        ("yarn", {"spark.driver.host": "h", "spark.driver.bindAddress": "0.0.0.0"}, "h", "0.0.0.0"),
    ],
)
def test_r38_on_a_cluster_it_is_the_drivers_address_and_all_of_them_only_by_name(
    master: str, conf: dict[str, str], advertised: str, bound: str
) -> None:
    context: Any = Master(master, conf)
    assert driver_host(context) == advertised
    assert bind_host(context, advertised) == bound


def test_options_of_the_server_that_do_not_go_together_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(InvalidCall) as caught:
        ModelServer(
            np.zeros(D), checkpoint="none", folder=tmp_path, resume=tmp_path, certificate="no.pem"
        )
    assert len(caught.value.problems) == 5


def test_the_penalty_has_the_same_value_as_with_exact_methods(data: Dataset) -> None:
    penalty = ElasticNet(0.01, 0.2)
    result = minimize("logistic", data, method="sgd", penalty=penalty, intercept=True, batch_size=N)
    again = minimize(
        "logistic", data, w0=result.x, penalty=L2(0.2), intercept=True, max_iter=0, progress=False
    )
    assert_allclose(result.fun, again.fun + 0.01 * np.abs(result.x["weights"]).sum(), rtol=1e-12)


def test_bad_gradients_of_rows_are_told_before_they_are_sent() -> None:
    from sparkdist.layout import Layout
    from sparkdist.spark.training.units import RowWork
    from sparkdist.workers import Epochs

    work = RowWork(
        lambda model, rows: (1.0, "text"), Layout.of(np.zeros(2)), "<f8", Epochs(1, 1, 0, 1)
    )
    with pytest.raises(BadGradient, match="it returned a tuple"):
        work.sums([1], np.zeros(2))
