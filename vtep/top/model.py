"""The state of `pyvtep top`: what to ask for next, and what the answers mean for the screen."""

from attrs import define, field

from vtep.control.schema import FdbSample, Status
from vtep.top.macs import MacRequest, MacSampler
from vtep.top.rates import RateMeter
from vtep.top.view import View


@define
class Model:
    """The view, and the meters behind it."""

    meter: RateMeter
    view: View
    _sampler: MacSampler | None = field(init=False, default=None)
    _wanted: str = field(init=False, default="")

    def request(self) -> MacRequest | None:
        """Return the sample of MACs to ask for beside the status, or None."""
        vni = self.view.vni_of_macs
        if vni is None:
            self._sampler = None
        elif self._sampler is None or self._sampler.vni != vni:
            self._sampler = MacSampler(vni, self.view.wanted)
        elif self._wanted != self.view.wanted:
            self._sampler.select(self.view.wanted)
        self._wanted = self.view.wanted
        self._show_macs()
        return self._sampler.request() if self._sampler is not None else None

    def take(self, status: Status, asked: MacRequest | None, sample: FdbSample | None) -> None:
        """Take the answers to a request."""
        self.view.problem = None
        self.view.rates = self.meter.take(status)
        sampler = self._sampler
        # Meanwhile another VNI may have been chosen.
        if sampler is not None and asked is not None and asked.vni == sampler.vni:
            if sample is not None:
                sampler.take(asked, sample)
            else:
                self._sampler = None
        self._show_macs()

    def fail(self, problem: str) -> None:
        """Note that there was no answer. The rows stay; the next rates are unknown."""
        self.view.problem = problem
        self.meter.forget()
        self._sampler = None

    def _show_macs(self) -> None:
        sampler = self._sampler
        self.view.macs = sampler.rows() if sampler is not None else ()
        self.view.macs_in_fdb = sampler.fdb_entries if sampler is not None else 0
