"""The run worker: carries out attempts at runs and turns every failure into an error that the user can read."""

import logging
from dataclasses import dataclass, field

from app.application import context
from app.application.run_monitor import RunMetrics, RunMonitor
from app.domain.errors import LeaseLost, ModelFailure, NotFound, RunGivenUp, StoreUnavailable, Superseded
from app.domain.external.run_queue import Attempt
from app.domain.services.flows.plan_act import FlowDependencies, PlanActFlow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanActWorker:
    """The `RunWorker` that carries out runs with `PlanActFlow`."""

    dependencies: FlowDependencies
    monitor: RunMonitor = field(default_factory=lambda: RunMonitor(RunMetrics()))

    async def work(self, session_id: str, attempt: Attempt) -> None:
        """Implement `RunWorker.work`. Errors that the queue does not handle end the run with an `error` event."""
        context.session_id.set(session_id)
        context.owner.set(attempt.owner)
        with self.monitor.attempt(session_id, crashed=attempt.crashed):
            await self._work(session_id, attempt)

    async def _work(self, session_id: str, attempt: Attempt) -> None:
        flow = self._flow(session_id, attempt.fencing_token)
        try:
            await flow.run(attempt.reason, crashed=attempt.crashed)
        except (Superseded, StoreUnavailable, LeaseLost):
            raise
        except NotFound:
            log.info("the session was deleted during its run")
        except ModelFailure as error:
            log.warning("run failed: the model failed", extra={"error": str(error)})
            await flow.fail(str(error))
        except RunGivenUp as error:
            log.error("run given up", extra={"error": str(error)})
            await flow.fail(str(error))
        except Exception:
            log.exception("run failed: unexpected error")
            await flow.fail("something went wrong inside the service; send a message to try again")

    async def kill_open_calls(self, session_id: str) -> None:
        """Implement `RunWorker.kill_open_calls`."""
        await self._flow(session_id, None).kill_open_calls()

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        """Implement `RunWorker.finish_stopped`."""
        await self._flow(session_id, fencing_token).finish_stopped(up_to=up_to)

    async def release(self, session_id: str) -> None:
        """Implement `RunWorker.release`."""
        await self.dependencies.browsers.release(session_id)

    def _flow(self, session_id: str, fencing_token: int | None) -> PlanActFlow:
        return PlanActFlow(self.dependencies, session_id, fencing_token=fencing_token)
