"""Progress: a live line where somebody looks, and nothing elsewhere."""

import io
import sys
import types

import pytest

from sparkdist.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def written(monkeypatch, stream, *, shown=True, passes=3):
    """What a run of some passes leaves on standard error."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(shown, "sparkdist lbfgs") as bar:
        for k in range(passes):
            bar.show(k + 1, 0.123456789 + k, 1.5e-4, 0.0254)
    return stream.getvalue()


def test_a_terminal_sees_objective_gradient_and_seconds(monkeypatch):
    last = written(monkeypatch, Terminal()).split("\r")[-1]
    assert last.startswith("sparkdist lbfgs: 3 passes")
    assert "objective 2.1234568, |gradient| 1.50e-04, 0.025 s/pass" in last
    assert last.endswith("\n")  # what is printed next begins a line


def test_a_log_file_sees_nothing(monkeypatch):
    assert written(monkeypatch, io.StringIO()) == ""


def test_who_does_not_want_it_sees_nothing(monkeypatch):
    assert written(monkeypatch, Terminal(), shown=False) == ""


def in_kernel(monkeypatch, kernel):
    """Have IPython loaded, and the program run in a kernel or not; what its cell shows."""
    lines = []
    shell = types.SimpleNamespace(kernel=None) if kernel else None
    display = types.SimpleNamespace(
        display=lambda *a, **k: types.SimpleNamespace(
            update=lambda data, raw: lines.append(data["text/plain"])
        )
    )
    fake = types.ModuleType("IPython")
    fake.get_ipython, fake.display = lambda: shell, display
    monkeypatch.setitem(sys.modules, "IPython", fake)
    return lines


def test_a_notebook_sees_it_too(monkeypatch):
    lines = in_kernel(monkeypatch, kernel=True)
    assert written(monkeypatch, io.StringIO(), passes=2) == ""
    assert lines[-1].startswith("sparkdist lbfgs: 2 passes")


def test_a_program_that_has_only_loaded_ipython_is_no_notebook(monkeypatch):
    lines = in_kernel(monkeypatch, kernel=False)
    assert written(monkeypatch, io.StringIO()) == ""
    assert lines == []


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_line_is_closed_after_the_with(monkeypatch, error):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        with Progress(True, "run") as bar:
            bar.show(1, 1.0, 1.0, 1.0)
            if error:
                raise error
    except RuntimeError:
        pass
    closed = stream.getvalue()
    assert closed.endswith("\n")
    bar.show(2, 2.0, 2.0, 2.0)
    assert stream.getvalue() == closed


def test_an_error_inside_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError), Progress(True, "run"):
        raise KeyError
