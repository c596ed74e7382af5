"""What train leaves behind: files, and a report for a person or for a script."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["as_json", "as_text", "facts", "save"]

logger = logging.getLogger("sparkdist.train")

Facts = dict[str, Any]


def save(result: Any, folder: Path) -> list[str]:
    """Write the model, the history and the plot; return the files' names."""
    result.model.save(folder)
    (folder / "history.json").write_text(as_json(result.history.to_dict()) + "\n")
    files = ["model.safetensors", "model.json", "history.json"]
    try:
        result.plot().savefig(folder / "history.png")
    except ImportError as error:
        logger.warning("no picture: %s", error)
        return files
    return [*files, "history.png"]


def as_json(found: Facts) -> str:
    """Write strict JSON, in which what is not finite is null."""
    return json.dumps(_finite(found), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def facts(
    options: argparse.Namespace,
    result: Any,
    dataset: Any,
    ingested: float,
    metrics: Mapping[str, Mapping[str, float]],
    files: list[str],
) -> Facts:
    """Everything that is reported; times are in seconds."""
    import sparkdist

    expected = options.expect
    books = ("counts", "staleness", "restarts", "memories_lost")
    on_server = {name: result[name] for name in books if name in result}
    seconds = result.history.seconds
    if on_server:
        on_server["examples"] = max(result.history.examples, default=0)  # none if it was over
    else:
        on_server["seconds_per_pass"] = (seconds[-1] - seconds[0]) / max(result.passes - 1, 1)
    return {
        "sparkdist": sparkdist.__version__,
        "data": options.data,
        "rows": dataset.n_rows,
        "features": dataset.n_features,
        "partitions": dataset.n_partitions,
        "ingested": ingested,
        "objective": options.objective,
        "method": result.method,
        "l1": options.l1,
        "l2": options.l2,
        "fun": float(result.fun),
        "success": bool(result.success),
        "message": result.message,
        "iterations": int(result.nit),
        "passes": int(result.passes),
        "seconds": result.seconds,
        **on_server,
        "expected": expected,
        "reached": None if expected is None else abs(_gap(result.fun, expected)) <= 1e-10,
        "metrics": {name: dict(values) for name, values in metrics.items()},
        "model": str(options.output),
        "files": files,
    }


def _gap(found: float, expected: float) -> float:
    """Relative; absolute where an optimum of 0 is expected."""
    return float((found - expected) / (abs(expected) or 1.0))


def as_text(found: Facts) -> str:
    """Write what a person wants to know."""
    size = f"{found['rows']:,} rows x {found['features']:,} features"
    partitions = f"in {found['partitions']} partitions, ingested in {found['ingested']:.1f} s"
    penalty = f"(with penalty: l1={found['l1']:g}, l2={found['l2']:g})"
    why = found["message"].removeprefix("converged; ")
    verdict = f"{'yes' if found['success'] else 'NO'}: {why}"
    lines = {
        "data": f"{found['data']}: {size} {partitions}",
        "objective": f"{found['fun']:.14g}  {penalty}",
        **(_of_server(found, verdict) if "counts" in found else _of_solver(found, verdict)),
    }
    if found["expected"] is not None:
        reached = "reached" if found["reached"] else "MISSED"
        gap = _gap(found["fun"], found["expected"])
        lines["expected"] = f"{found['expected']:.14g}  {reached}, relative difference {gap:.1e}"
    for name, values in found["metrics"].items():
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.5f}" for key, value in values.items())
        lines[name] = shown
    lines["model"] = f"{found['model']}/: {', '.join(found['files'])}"
    head = f"sparkdist {found['sparkdist']}: {found['objective']} by {found['method']}"
    told = "".join(f"{name:<11}{text}\n" for name, text in lines.items())
    return f"\n{head}\n{'-' * len(head)}\n{told}"


def _of_solver(found: Facts, verdict: str) -> dict[str, str]:
    each = f"{found['seconds_per_pass']:.3f} s each"
    passes = f"{found['passes']} over the data in {found['seconds']:.1f} s, {each}"
    return {"converged": verdict, "passes": passes}


def _of_server(found: Facts, verdict: str) -> dict[str, str]:
    fates = [f"{count:,} {fate}" for fate, count in found["counts"].items()
             if count and fate != "received"]  # fmt: skip
    rate = found["examples"] / found["seconds"]
    applied = sum(found["staleness"].values())
    mean = sum(int(age) * count for age, count in found["staleness"].items()) / max(applied, 1)
    return {
        "finished": verdict,
        "pushes": f"{', '.join(fates)} in {found['seconds']:.1f} s, {rate:,.0f} rows/s",
        "staleness": f"{mean:.2f} versions in the mean",
    }
