"""The pictures of docs/methods: ``plots.py`` makes all, ``plots.py averaging online`` some.

Each is one function, which runs the simulator and returns points; they are kept in results/ as
plot_NAME.json, from which ``--draw`` draws again without a run.  The same code gives the same
points, bit for bit.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from threadpoolctl import threadpool_limits

from sparkdist import L1, L2, MLP, Hinge, Logistic, codecs, datasets
from sparkdist.blocks import Array, Block
from sparkdist.consistency import asp
from sparkdist.result import Result
from sparkdist.simulate import Network, Service, exponential, lognormal, simulate, stragglers
from sparkdist.solvers.owlqn import owlqn
from sparkdist.updaters import adagrad, adaptive_revision, delay_adaptive, momentum, sgd

IMAGES = Path(__file__).parents[1] / "docs" / "images"
#: Of mean logistic loss of a9a + (1e-3 / 2) |w|^2, and of the hinge loss, as in bench_methods.py.
MINIMUM, MACHINE = 0.33334075206872, 0.356524
Line = dict[str, Any]
Panel = dict[str, Any]

INK, FAINT, PAPER = "#1f2933", "#9aa5b1", "#fcfcfa"
#: Told apart also by those who do not see red and green as different; each line is named besides.
COLOURS = ("#2563a8", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d")


def main() -> None:
    """Run what was asked for, keep the points, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--draw", action="store_true", help="only draw, from the points kept")
    arguments = parser.parse_args()
    for name in arguments.names or FIGURES:
        kept = points_of(name)
        if not arguments.draw:
            with threadpool_limits(1), np.errstate(all="ignore"):
                kept.write_text(json.dumps(FIGURES[name](), indent=1) + "\n")
        print(draw(json.loads(kept.read_text()), IMAGES / f"methods-{name}.svg"))


def points_of(name: str) -> Path:
    """Where the points of a picture are kept."""
    return RESULTS / f"plot_{name}.json"


# --- what is shown ----------------------------------------------------------------------------


def synchronous() -> list[Panel]:
    """Gap after as many rows, by the number of workers whose batches are one step."""
    two = {"batch_size": 32, "epochs": 2}
    workers = [1, 2, 4, 8, 16, 32, 64]
    rates: dict[str, Callable[[int], float]] = {
        "rate × workers": lambda k: 0.05 * k,
        "rate × √workers": lambda k: 0.05 * sqrt(k),
        "the same rate": lambda k: 0.05,
    }
    lines = [
        line(name, workers, [gap(a9a("sgd", k, updater=sgd(rate(k)), **two)) for k in workers])
        for name, rate in rates.items()
    ]
    return [panel("", "workers, with 32 rows of each in a step", GAP, lines, log="xy")]


def asynchronous() -> list[Panel]:
    """Gap by megabytes and by rows, for workers that push seldom."""
    by_bytes, by_rows = [], []
    for n in (1, 4, 16):
        how = {"n_push": n, "n_fetch": n, "updater": adagrad(0.1), "batch_size": 32, "epochs": 8}
        found = a9a("downpour", 16, points=60, latency=exponential(0.1), **how)
        gaps, name = gaps_of(found), "every batch" if n == 1 else f"every {n} batches"
        megabytes = [b / 1e6 for b in found.history.bytes]
        by_bytes.append(line(name, megabytes[1:], gaps[1:]))
        by_rows.append(line(name, epochs_of(found, 8)[1:], gaps[1:]))
    return [
        panel("by traffic", "megabytes, both ways", GAP, by_bytes, log="xy"),
        panel("by rows", "epochs", GAP, by_rows, log="y"),
    ]


def averaging() -> list[Panel]:
    """Gap by epochs, for rows in random order and sorted by label."""
    X, y = adult()
    orders = {
        "rows in random order": np.random.default_rng(0).permutation(len(y)),
        "rows sorted by label": np.argsort(y, kind="stable"),
    }
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "every batch": ("local_sgd", {"steps": 1}),
        "8 batches": ("local_sgd", {"steps": 8}),
        "64 batches": ("local_sgd", {"steps": 64}),
        "every epoch": ("mixing", {}),
        "once": ("one_shot", {}),
    }
    panels = []
    for title, order in orders.items():
        lines = []
        for name, (method, more) in calls.items():
            how = {"inner": sgd(0.5), "batch_size": 32, "epochs": 4, "data": (X[order], y[order])}
            found = a9a(method, 8, points=40, **how, **more)
            lines.append(line(name, epochs_of(found, 4)[1:], gaps_of(found)[1:]))
        panels.append(panel(title, "epochs", GAP, lines, log="y"))
    return panels


def batch_size() -> list[Panel]:
    """Loss of a network after as many epochs, by the batch and the rule for the rate."""
    rules: dict[str, Callable[[float], float]] = {
        "rate × k": lambda k: k,
        "rate × √k": sqrt,
        "the same rate": lambda k: 1.0,
    }
    sizes = [16, 32, 64, 128, 256, 512, 1024, 1437]

    @functools.cache  # with k = 1 the rules are one
    def loss(size: int, rate: float) -> float:
        how = {"updater": momentum(rate), "batch_size": size, "epochs": 20}
        return float(np.median([digits(seed=seed, **how).fun for seed in range(3)]))

    lines = [
        line(name, sizes, [loss(size, 0.01 * rule(size / 16)) for size in sizes])
        for name, rule in rules.items()
    ]
    return [panel("", "rows in a batch, 16 k", "loss after 20 epochs", lines, log="xy")]


def compression() -> list[Panel]:
    """Loss of a network by megabytes pushed, and by epochs."""
    senders = {
        "as it is": None,
        "float16": codecs.float16(),
        "qsgd": codecs.qsgd(),
        "sign": codecs.error_feedback(codecs.sign()),
        "top_k, 1%": codecs.error_feedback(codecs.top_k(0.01)),
        "power_sgd": codecs.error_feedback(codecs.power_sgd(2)),
    }
    by_bytes, by_rows = [], []
    for name, codec in senders.items():
        how = {"updater": sgd(0.3), "batch_size": 16, "epochs": 15, "codec": codec}
        found = digits(workers=4, points=30, **how)
        pushed = [b / 1e6 for b in found.history.bytes_in]
        by_bytes.append(line(name, pushed[1:], found.history.fun[1:]))
        by_rows.append(line(name, epochs_of(found, 15)[1:], found.history.fun[1:]))
    pushed_panel = panel("by what is pushed", "megabytes pushed", "loss", by_bytes, log="xy")
    return [
        pushed_panel | {"names": "start", "top": 8.0},
        panel("by rows", "epochs", "loss", by_rows, log="y"),
    ]


def delays() -> list[Panel]:
    """Gap by the rate, without delay and with 32 workers."""
    rates = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    ways: dict[str, Callable[[float], dict[str, Any]]] = {
        "SGD": lambda rate: {"updater": sgd(rate)},
        "SGD, damped": lambda rate: {"updater": sgd(rate), "damping": delay_adaptive()},
        "Adagrad": lambda rate: {"updater": adagrad(rate)},
        "AdaptiveRevision": lambda rate: {"updater": adaptive_revision(rate)},
    }
    panels = []
    for workers, title in ((1, "1 worker: no delay"), (32, "32 workers: 31 versions old")):
        lines = []
        for name, way in ways.items():
            if workers > 1 or name != "SGD, damped":  # which is SGD where nothing is old
                found = [
                    gap(a9a("downpour", workers, epochs=1, **way(rate), **JITTER)) for rate in rates
                ]
                lines.append(line(name, rates, found))
        panels.append(panel(title, "rate", "relative gap after one epoch", lines, log="xy"))
    return panels


def duals() -> list[Panel]:
    """Gap by epochs: SVRG beside SGD, and CoCoA+ beside CoCoA."""
    how = {"batch_size": 64, "epochs": 12, "points": 24}
    runs = {
        "SGD, rate 0.5": a9a("sgd", 2, updater=sgd(0.5), **how),
        "SGD, rate 0.05": a9a("sgd", 2, updater=sgd(0.05), **how),
        "SVRG, rate 0.5": a9a("svrg", 2, rate=0.5, **how),
    }
    smooth = [line(name, epochs_of(r, 12)[1:], gaps_of(r)[1:]) for name, r in runs.items()]
    machines = []
    for name, gamma in (("averaging", 1 / 8), ("adding", 1.0)):
        found = a9a("cocoa", 8, objective=Hinge(), gamma=gamma, **how)
        machines.append(line(name, epochs_of(found, 12)[1:], gaps_of(found, MACHINE)[1:]))
    return [
        panel("logistic loss, 2 workers", "epochs", GAP, smooth, log="y"),
        panel("hinge loss, 8 workers: CoCoA", "epochs, each one round", GAP, machines, log="y"),
    ]


def online() -> list[Panel]:
    """Loss on rows that were not seen, by the number of weights that are not 0.

    FOBOS is Adagrad with a proximal step for an L1 penalty.
    """
    X, y = adult()
    test = datasets.load("a9a", "test")
    whole = Block(X, y, np.ones(len(y)))

    def exact(l1: float) -> Array:
        def fun(w: Array) -> tuple[float, Array]:
            total = Logistic().value_and_grad(w, whole)
            return total.loss / total.weight, total.grad / total.weight

        return owlqn(fun, np.zeros(X.shape[1]), l1=l1).x

    def once(method: str, **more: Any) -> Array:
        return a9a(method, 1, epochs=1, **{"penalty": None} | more).x

    ways: dict[str, tuple[Sequence[float], Callable[[float], Array]]] = {
        "FOBOS": (
            (3e-2, 2e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4),
            lambda l1: once("downpour", updater=adagrad(0.1), penalty=L1(l1)),
        ),
        "FTRL": (
            (40.0, 20.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03),
            lambda l1: once("ftrl", rate=0.1, l1=l1),
        ),
        "exact, by owlqn": ((3e-2, 2e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4), exact),
    }
    lines = []
    for name, (strengths, solve) in ways.items():
        found = [solve(l1) for l1 in strengths]
        sizes = [np.count_nonzero(w) for w in found]
        lines.append(line(name, sizes, [unseen(w, *test) for w in found]))
    return [panel("", "weights that are not 0, of 123", "loss on the test rows", lines)]


def simulator() -> list[Panel]:
    """The example of the page: the objective by simulated seconds."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "sgd": ("sgd", {"updater": sgd(2.0)}),
        "backup_workers, 4": ("backup_workers", {"updater": sgd(2.0), "extra": 4}),
        "backup_workers, 16": ("backup_workers", {"updater": sgd(2.0), "extra": 16}),
        "stale_synchronous": ("stale_synchronous", {"updater": sgd(0.02), "bound": 3}),
        "downpour": ("downpour", {"updater": adagrad(0.05)}),
    }
    lines = []
    for name, (method, more) in calls.items():
        found = simulate(
            "logistic",
            adult(),
            workers=100,
            method=method,
            batch_size=32,
            epochs=4,
            latency=stragglers(median=0.1),
            network=Network(0.5e-3, 125e6),
            service=Service(0.6e-3, 1e9),
            points=100,
            **more,
        )
        lines.append(line(name, found.history.seconds[1:], found.history.fun[1:]))
    shown = panel("", "simulated seconds", "objective", lines, log="x")
    return [shown | {"top": 0.6, "drawstyle": "steps-post"}]


FIGURES: dict[str, Callable[[], list[Panel]]] = {
    "synchronous": synchronous,
    "asynchronous": asynchronous,
    "averaging": averaging,
    "batch-size": batch_size,
    "compression": compression,
    "delays": delays,
    "duals": duals,
    "online": online,
    "simulator": simulator,
}

# --- runs -------------------------------------------------------------------------------------

GAP = "relative gap to the minimum"
#: Asynchronous workers of about one speed.
JITTER = {"latency": lognormal(0.01, 0.3), "consistency": asp(), "batch_size": 32}


@functools.cache
def adult() -> tuple[Any, Array]:
    """The 32,561 training rows of a9a."""
    return datasets.load("a9a")


def a9a(method: str, workers: int, *, points: int = 1, **options: Any) -> Result:
    """Simulate a run on a9a."""
    common = {"objective": "logistic", "data": adult(), "penalty": L2(1e-3), "batch_size": 16}
    return simulate(workers=workers, method=method, points=points, **common | options)


@functools.cache
def images() -> tuple[Array, Array]:
    """The 1,437 training rows of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:1437]
    return X[order] / 16.0, y[order].astype(float)


def digits(workers: int = 1, points: int = 1, **options: Any) -> Result:
    """Simulate synchronous SGD of a network on the digits."""
    network = MLP([64, 64, 10])
    return simulate(network, images(), workers=workers, method="sgd", points=points, **options)


def gap(result: Result) -> float | None:
    """How far the end is above the minimum, relative to it."""
    return number(result.fun / MINIMUM - 1)


def gaps_of(result: Result, minimum: float = MINIMUM) -> list[float | None]:
    """How far the history is above a minimum, relative to it."""
    return [number(fun / minimum - 1) for fun in result.history.fun]


def epochs_of(result: Result, epochs: int) -> list[float]:
    """Epochs at the entries of the history, of a run that saw every row in each of them."""
    seen = result.history.examples
    return [epochs * rows / seen[-1] for rows in seen]


def unseen(w: Array, X: Any, y: Array) -> float:
    """Mean logistic loss of rows."""
    return float(np.mean(np.logaddexp(0.0, -y * (X @ w))))


def number(value: float) -> float | None:
    """What JSON can hold."""
    return float(value) if np.isfinite(value) else None


def line(name: str, x: Sequence[float], y: Sequence[float | None]) -> Line:
    """Make a line of its points, rounded to what can be seen; of each x the last point."""
    there = {
        float(f"{a:.5g}"): float(f"{b:.5g}") for a, b in zip(x, y, strict=True) if b is not None
    }
    return {"name": name, "x": list(there), "y": list(there.values())}


def panel(title: str, x: str, y: str, lines: list[Line], log: str = "") -> Panel:
    """Make a panel: its title, the names of its axes, and which of them are logarithmic."""
    return {"title": title, "x": x, "y": y, "log": log, "lines": lines}


# --- drawing ----------------------------------------------------------------------------------


def draw(panels: list[Panel], path: Path) -> Path:
    """Draw panels beside each other, on paper of their own: pages are light or dark."""
    named = [[one["name"] for one in content["lines"]] for content in panels]
    colours = dict(zip(dict.fromkeys(itertools.chain(*named)), itertools.cycle(COLOURS)))
    apart = len(panels) > 1 and not set(named[0]) & set(named[1])  # each panel names its lines
    # Letters as paths look the same everywhere; a salt and no date give the same file.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "sparkdist", "font.size": 9}):
        width = 8.6 if len(panels) > 1 else 6.4
        figure = Figure(figsize=(width, 3.4), facecolor=PAPER)
        all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        figure.subplots_adjust(0.72 / width, 0.15, 1 - 1.5 / width, 0.9, 0.62 if apart else 0.1)
        for axes, content in zip(all_axes, panels, strict=True):
            draw_panel(axes, content, colours)
        all_axes[0].set_ylabel(panels[0]["y"], color=INK)
        figure.draw_without_rendering()  # places are known from here on
        for axes, content in zip(all_axes, panels, strict=True):
            if content.get("names") == "start":
                name_starts(axes, content["lines"], colours)
            elif apart or content is panels[-1]:
                name_lines(axes, content["lines"], colours)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
    return path


def draw_panel(axes: Axes, content: Panel, colours: dict[str, str]) -> None:
    """Draw lines, axes and grid."""
    for one in content["lines"]:
        few = len(one["x"]) <= 16
        style = {"color": colours[one["name"]], "marker": "o" if few else "", "ms": 3.5}
        how = content.get("drawstyle", "default")
        axes.plot(one["x"], one["y"], lw=1.7, drawstyle=how, **style)
    axes.set_xscale("log" if "x" in content["log"] else "linear")
    axes.set_yscale("log" if "y" in content["log"] else "linear")
    if "x" in content["log"]:
        places = {x for one in content["lines"] for x in one["x"]}
        if len(places) <= 8:
            axes.set_xticks(sorted(places))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    if "y" in content["log"]:
        least, most = axes.get_ylim()
        if most / least < 100:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.margins(x=0.02)
    if "top" in content:
        axes.set_ylim(top=content["top"])
    axes.set_title(content["title"], loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel(content["x"], color=INK)
    axes.set_facecolor(PAPER)
    axes.grid(color=FAINT, alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=INK, length=0, labelsize=8)


def name_lines(axes: Axes, lines: list[Line], colours: dict[str, str]) -> None:
    """Write the name of each line beside its last point, apart from the others."""
    ends = sorted(
        (float(axes.transData.transform((one["x"][-1], one["y"][-1]))[1]), one["name"])
        for one in lines
    )
    least = 11.0 * axes.figure.dpi / 72
    heights = spread([height for height, _ in ends], least, axes.bbox.y0, axes.bbox.y1)
    for (_, name), height in zip(ends, heights, strict=True):
        at = axes.transAxes.inverted().transform((0.0, height))[1]
        style = {"color": colours[name], "fontsize": 8.5, "va": "center"}
        axes.text(1.02, at, name, transform=axes.transAxes, **style)


def name_starts(axes: Axes, lines: list[Line], colours: dict[str, str]) -> None:
    """Write the name of each line above its first point, of lines that fall beside each other."""
    starts = sorted(
        (*map(float, axes.transData.transform((one["x"][0], one["y"][0]))), one["name"])
        for one in lines
    )
    points = axes.figure.dpi / 72
    across = spread([x for x, _, _ in starts], 14.0 * points, axes.bbox.x0, axes.bbox.x1)
    for (_, y, name), x in zip(starts, across, strict=True):
        at = axes.transAxes.inverted().transform((x, y + 5.0 * points))
        style = {"color": colours[name], "fontsize": 8.5, "va": "bottom", "rotation": 60}
        axes.text(*at, name, transform=axes.transAxes, rotation_mode="anchor", **style)


def spread(heights: list[float], least: float, bottom: float, top: float) -> list[float]:
    """Move sorted places apart, upwards and then down from the top."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, bottom, *(h + least for h in found[-1:])))
    for i in reversed(range(len(found))):
        found[i] = min(found[i], found[i + 1] - least if i + 1 < len(found) else top)
    return found


if __name__ == "__main__":
    main()
