"""Result and History: lists that pickle, travel as JSON and draw themselves."""

import json
import pickle
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import OptimizeResult

from sparkdist.result import History, Result, TrainingHistory, end_of_epochs

ENTRIES = [(0.5, 1, 4.0, 1.0), (0.75, 3, 2.0, 0.5), (1.5, 4, 1.0, 0.25)]


def history(entries=ENTRIES):
    found = History()
    for entry in entries:
        found.append(*entry)
    return found


def result():
    return Result(
        x=np.array([1.0, 2.0]), fun=1.0, passes=4, method="lbfgs", success=True, history=history()
    )


def drawn(figure):
    """The numbers of each line: objective and distance, against seconds and passes."""
    return [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]


def test_entries_go_to_equally_long_lists():
    found = history()
    assert len(found) == 3
    assert found.to_dict() == {
        "seconds": [0.5, 0.75, 1.5],
        "passes": [1, 3, 4],
        "fun": [4.0, 2.0, 1.0],
        "grad_norm": [1.0, 0.5, 0.25],
    }


def test_histories_do_not_share_their_lists():
    history()
    assert len(History()) == 0


def test_a_history_survives_json_and_pickle():
    found = history()
    assert History(**json.loads(json.dumps(found.to_dict()))) == found
    assert pickle.loads(pickle.dumps(found)) == found


def test_to_dict_gives_lists_of_its_own():
    found = history()
    found.to_dict()["fun"].clear()
    assert len(found) == 3


def test_a_result_is_an_optimizeresult_and_survives_pickle():
    back = pickle.loads(pickle.dumps(result()))
    assert isinstance(back, Result)
    assert isinstance(back, OptimizeResult)
    assert (back.fun, back["passes"], back.history) == (1.0, 4, history())
    assert_array_equal(back.x, [1, 2])


def test_a_plot_holds_the_numbers_of_the_history():
    figure = history().plot("a title")
    assert isinstance(figure, Figure)
    fun_seconds, fun_passes, gap_seconds, gap_passes = drawn(figure)
    assert fun_seconds == [[0.5, 4], [0.75, 2], [1.5, 1]]
    assert fun_passes == [[1, 4], [3, 2], [4, 1]]
    # The distance to the best; the best itself has none.
    assert gap_seconds == [[0.5, 3], [0.75, 1]]
    assert gap_passes == [[1, 3], [3, 1]]


def test_a_plot_says_what_it_shows():
    figure = history().plot("a title")
    left, right, below_left, below_right = figure.axes
    assert figure.get_suptitle() == "a title"
    assert (left.get_ylabel(), below_left.get_ylabel()) == ("objective", "objective − best")
    assert (below_left.get_xlabel(), below_right.get_xlabel()) == (
        "seconds",
        "passes over the data",
    )
    assert [axes.get_yscale() for axes in figure.axes] == ["linear"] * 2 + ["log"] * 2
    assert_allclose([below_left.get_xlim(), below_right.get_xlim()], [[0, 1.53], [0, 4.08]])


def test_a_result_plots_under_its_method_and_value():
    assert result().plot().get_suptitle() == "lbfgs: 1 after 4 passes"


@pytest.mark.parametrize("entry", [ENTRIES[0], (0.0, 0, 1.0, 1.0)])
def test_one_entry_is_drawn(entry, tmp_path):
    figure = history([entry]).plot()
    assert drawn(figure) == [[[entry[0], entry[2]]], [[entry[1], entry[2]]], [], []]
    figure.savefig(tmp_path / "one.png")


def test_a_level_history_is_drawn(tmp_path):
    figure = history([(1.0, 1, 2.0, 0.0), (2.0, 2, 2.0, 0.0)]).plot()
    assert drawn(figure)[2:] == [[], []]
    figure.savefig(tmp_path / "level.png")


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "sparkdist._plot", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install 'sparkdist\[plot\]'"):
        history().plot()


def test_a_result_of_the_model_server_shows_itself():
    shown = repr(Result(x=np.array([1.0]), fun=1.5, staleness={0: 3, 12: 1}))
    assert "1.5" in shown and "12: 1" in shown


@pytest.mark.parametrize(
    ("fun", "start", "status"),
    [
        (0.5, 0.7, 0),
        (0.521242, 0.521241, 0),  # the noise of batches around the minimum
        (-2.0, -1.9, 0),
        (0.8, 0.7, 3),
        (1e199, 1.0, 3),
        (np.inf, 1.0, 3),
        (np.nan, 1.0, 3),
        (0.0, 0.0, 0),
        (0.1, 0.0, 3),
    ],
)
def test_a_run_that_ends_far_above_its_start_has_diverged(fun, start, status):
    found, message = end_of_epochs(fun, start)
    assert found == status
    assert (f"is {fun:.6g}, and was {start:.6g} at the start" in message) == (status == 3)


def test_a_plot_of_training_shows_loss_and_staleness():
    found = TrainingHistory()
    for seconds, examples, loss, stale in ((0.5, 10, 8.0, 2), (1.0, 30, 4.0, 0)):
        found.seconds.append(seconds)
        found.examples.append(examples)
        found.loss.append(loss)
        found.staleness.append(stale)
    figure = found.plot("a title")
    assert drawn(figure) == [
        [[0.5, 8], [1, 4]], [[10, 8], [30, 4]], [[0.5, 2], [1, 0]], [[10, 2], [30, 0]],
    ]  # fmt: skip
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == [
        "mean loss of the batches", "mean staleness",
    ]  # fmt: skip
    assert [axes.get_ylim()[0] == 0 for axes in figure.axes] == [False, False, True, True]
