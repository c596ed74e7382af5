"""What the benchmarks share: sessions, clocks, memory, tables, JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

RESULTS = Path(__file__).parent / "results"

os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def start_session(memory: str = "6g", master: str = "local[2]", **conf: str) -> Any:
    """Start a quiet session, on two threads; of names in ``conf`` a dot is written as ``__``."""
    from pyspark.sql import SparkSession

    more = {name.replace("__", "."): value for name, value in conf.items()}
    return (
        SparkSession.builder.config(map=more)
        .master(master)
        .appName("sparkdist benchmark")
        .config("spark.driver.memory", memory)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    warmups: int = 2,
    after: Callable[[Any], object] = lambda result: None,
) -> dict[str, list[float]]:
    """Time the contenders A B C A B C ...: what disturbs the machine disturbs them all.

    ``after`` is called on what a contender returns, when the clock has stopped.
    """
    for work in contenders.values():
        for _ in range(warmups):
            after(work())
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            start = time.perf_counter()
            result = work()
            times[name].append(time.perf_counter() - start)
            after(result)
    return times


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of pairs that were timed next to each other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class PeakMemory:
    """Samples the memory of this process and all its descendants, in MB.

    Shared pages, as of a mapped file, count once: the kernel's proportional set size (PSS).
    ``of`` chooses processes, and ``over`` is what is done with their sizes: their sum or the
    largest.
    """

    def __init__(
        self,
        of: Callable[[int], bool] = lambda pid: True,
        over: Callable[[list[float]], float] = sum,
        period: float = 0.05,
    ):
        self.peak, self._of, self._over, self._period = 0.0, of, over, period
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._period):
            sizes = [_pss(pid) for pid in _descendants(os.getpid()) if self._of(pid)]
            self.peak = max(self.peak, self._over(sizes or [0.0]))


def is_python_worker(pid: int) -> bool:
    """Whether a process is one of Spark's Python workers."""
    try:
        return b"pyspark.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:")), 0.0)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, open_ = [], [root]
    while open_:
        pid = open_.pop()
        found.append(pid)
        open_ += children.get(pid, [])
    return found


def report(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    notes: Sequence[str] = (),
    show: bool = True,
) -> None:
    """Write a table, with machine and versions, as JSON; and print it."""
    packages = ("sparkdist", "pyspark", "numpy", "scipy", "pyarrow", "scikit-learn")
    content = {
        "title": title,
        "rows": rows,
        "notes": list(notes),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_memory_gb()} GB, Python {platform.python_version()}",
        "versions": {package: version(package) for package in packages},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    if show:
        print(f"\n{markdown(content)}\n")


def markdown(content: dict[str, Any]) -> str:
    """Write a result as a Markdown table under its title, with its notes."""
    heads = list(content["rows"][0])
    lines = [f"**{content['title']}**", "", " | ".join(["", *heads, ""]).strip()]
    lines.append("|" + "---|" * len(heads))
    lines += [
        " | ".join(["", *(_cell(row[h]) for h in heads), ""]).strip() for row in content["rows"]
    ]
    lines += ["", *(f"{note}  " for note in content["notes"])]
    packages = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    lines.append(f"<sub>{content['date']}, {content['machine']}; {packages}</sub>")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _memory_gb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
