"""Metrics: the books in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["exposition"]

_NOISE = {
    "windows": "Windows of pushes that the gradient noise scale is measured on.",
    "gradient_squared": "Estimate of the squared norm of the gradient over all rows.",
    "noise": "Estimate of the trace of the covariance of the gradients of single rows.",
    "batch_size": "Simple gradient noise scale, in rows: the quotient of the two.",
}
_GAUGES = {
    "version": "Version of the parameters: how many updates they have had.",
    "durable_version": "Version in the newest checkpoint; -1 without one.",
    "checkpoint_failures": "Checkpoints that could not be written.",
    "examples": "Rows in the applied pushes.",
    "n_workers": "Workers of this run.",
    "size": "Number of parameters.",
}


def exposition(status: dict[str, Any]) -> bytes:
    """Render the store's status; ``sparkdist_pushes_total`` by fate sums up to those received."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Books(status))
    return generate_latest(registry)


class _Books:
    def __init__(self, status: dict[str, Any]):
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status, counts = self._status, dict(self._status["counts"])
        yield CounterMetricFamily(
            "sparkdist_pushes_received",
            "Pushes that came in, admitted or not.",
            value=counts.pop("received", 0),
        )
        fates = CounterMetricFamily(
            "sparkdist_pushes", "What became of the pushes that were received.", labels=["fate"]
        )
        for fate, count in sorted(counts.items()):
            fates.add_metric([fate], count)
        yield fates
        staleness = GaugeMetricFamily(
            "sparkdist_staleness_pushes",
            "Applied pushes by the age of their parameters, in versions.",
            labels=["versions"],
        )
        for age, count in status["staleness"]:
            staleness.add_metric([str(age)], count)
        yield staleness
        for name, what in _GAUGES.items():
            yield GaugeMetricFamily(f"sparkdist_{name}", what, value=status[name])
        for name, value in (status["noise_scale"] or {}).items():
            if value is not None:
                yield GaugeMetricFamily(f"sparkdist_noise_{name}", _NOISE[name], value=value)
