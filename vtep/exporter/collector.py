"""The collector of prometheus-client: it reads a status at each scrape, and keeps no metric.

The classes of a family, its format and its escaping are those of the library.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from vtep.control.schema import Status
from vtep.errors import VtepError
from vtep.exporter.metric import Metric, Snapshot
from vtep.exporter.metrics import METRICS, SCRAPE_DURATION, UP
from vtep.exporter.other_hosts import OtherHosts

_QUEUE_S = 4.0
"""Time that a scrape waits for those before it, which may wait for a VTEP that does not answer."""

Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily


class StatusCollector(Collector):
    """The metrics of the VTEP whose status a function returns, at each scrape anew.

    The function raises VtepError if there is no answer: then `pyvtep_up` is 0.
    """

    def __init__(
        self,
        status: Callable[[], Status],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        self._others = OtherHosts()

    def describe(self) -> Iterable[Family]:
        """Return all families without values, from which the registry has their names."""
        return [_family(metric, ()) for metric in (UP, SCRAPE_DURATION, *METRICS)]

    def collect(self) -> Iterator[Family]:
        """Yield the families with their present values."""
        began = self._clock()
        families = self._read()
        took = self._clock() - began
        yield _family(UP, [((), float(families is not None))])
        yield _family(SCRAPE_DURATION, [((), took)])
        yield from families or ()

    def _read(self) -> list[Family] | None:
        """Return the families of a status; None without an answer that makes sense."""
        # One at a time: scrapes share the connection, and the sums of other hosts need an order.
        if not self._lock.acquire(timeout=_QUEUE_S):
            return None
        try:
            status = self._status()
            snapshot = Snapshot(status, self._others.update(status))
            return [_family(metric, metric.values(snapshot)) for metric in METRICS]
        except VtepError:
            return None
        except KeyError as error:
            self._note(f"the status has no {error}: run the exporter of the same version as pyvtep")
            return None
        finally:
            self._lock.release()


def registry_of(collector: StatusCollector) -> CollectorRegistry:
    """Return a registry with a collector only: the process of the exporter is of no interest."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _family(metric: Metric, values: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    if metric.kind == "info":
        info = InfoMetricFamily(metric.name.removesuffix("_info"), metric.help, labels=())
        for labels, _ in values:
            info.add_metric((), dict(zip(metric.labels, labels, strict=True)))
        return info
    family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
        metric.name, metric.help, labels=metric.labels
    )
    for labels, value in values:
        family.add_metric(labels, value)
    return family
