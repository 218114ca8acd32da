"""Loads models on a thread of its own, hands them to streams, and gives each its own requests to run."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator, Sequence

from serverlight.errors import ModelLoading
from serverlight.plan import Plan
from serverlight.runtime.catalogue import Catalogue, Engine, Offer
from serverlight.runtime.scheduler import Answer, Job

__all__ = ["Engines"]

_LAST_LOAD_S = 10.0
"""How long a server that stops waits for a model that is being loaded."""

_log = logging.getLogger(__name__)


class Engines:
    """The models of one server, for threads: any may hold one, the compute thread runs their requests.

    Models are loaded one after the other, beside the compute thread, which goes on with those that are there.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._changed = threading.Condition()  # guards the catalogue
        self._is_stopped = False
        self.head_shares: dict[tuple[str, str], float] = {}  # by model and cut, of all that have been loaded so far
        self._note_shares()
        self._thread = threading.Thread(target=self._load_wanted, name="serverlight-loading", daemon=True)

    def start(self) -> None:
        """Begins to load what is asked for."""
        self._thread.start()

    def stop(self) -> None:
        """Loads nothing more; what is being loaded is waited for, for a while."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_LAST_LOAD_S)

    @property
    def catalogue(self) -> Catalogue:
        """What there is; to be looked at only."""
        return self._catalogue

    def hold(self, plan: Plan) -> Engine:
        """The model of a plan, which stays until :meth:`release`; raises what :meth:`Catalogue.hold` raises at once, and
        :class:`PlanMismatch` where the model is served otherwise.
        """
        with self._changed:
            try:
                engine = self._catalogue.hold(plan.model, time.monotonic())
            except ModelLoading:
                self._changed.notify_all()
                raise
        try:
            engine.agree(plan)
        except BaseException:
            self.release(engine)
            raise
        return engine

    def release(self, engine: Engine) -> None:
        """A stream that held the model is gone."""
        with self._changed:
            self._catalogue.release(engine, time.monotonic())

    def prepare(self, job: Job) -> None:
        """Reads a request before its turn."""
        assert job.engine is not None
        job.engine.runner.prepare(job)

    def run(self, jobs: Sequence[Job], *, is_shared: bool) -> Iterator[tuple[Job, Answer]]:
        """Runs the requests of each model together, one model after the other; an error is of one model's requests."""
        by_engine: dict[Engine, list[Job]] = {}
        for job in jobs:
            assert job.engine is not None
            by_engine.setdefault(job.engine, []).append(job)
        for engine, own in by_engine.items():
            left = dict.fromkeys(own)
            try:
                for job, answer in engine.runner.run(own, is_shared=is_shared):
                    del left[job]
                    yield job, answer
            except Exception as error:
                for job in left:
                    yield job, error

    def _load_wanted(self) -> None:
        while True:
            with self._changed:
                while not self._is_stopped and (offer := self._catalogue.begin(time.monotonic())) is None:
                    self._changed.wait()
                if self._is_stopped:
                    return
                assert offer is not None
            gc.collect()  # what was dropped for it may hang in cycles
            self._load(offer)

    def _load(self, offer: Offer) -> None:
        started_s = time.monotonic()
        _log.info("loading %s", offer.name)
        try:
            engine = offer.load()
        except BaseException:  # whatever a user's code raises, the thread must live on for other models
            _log.exception("%s could not be loaded", offer.name)
            with self._changed:
                self._catalogue.fail(offer, time.monotonic())
            return
        with self._changed:
            has_room = self._catalogue.add(offer, engine, time.monotonic())
            self._note_shares()
        if has_room:
            _log.info("loaded %s in %.1f s", offer.name, time.monotonic() - started_s)
        else:
            _log.warning("%s takes %d bytes, and there is no room for it now", offer.name, engine.num_bytes)

    def _note_shares(self) -> None:
        for engine in self._catalogue.engines:
            self.head_shares |= {(engine.model, cut): share for cut, share in engine.head_shares.items()}
