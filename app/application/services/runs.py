"""Runs: one attempt at a session's work, from its checkpoint, with every failure turned into words for the user."""

import logging
from dataclasses import dataclass

from app.application import context
from app.domain.errors import LeaseLost, ModelFailure, NotFound, RunGivenUp, StoreUnavailable, Superseded
from app.domain.external.browser import Browsers
from app.domain.external.run_queue import Attempt
from app.domain.external.sandbox import SandboxProvider
from app.domain.external.screenshots import Screenshots
from app.domain.external.search import SearchEngine
from app.domain.services.flows.plan_act import FlowParts, PlanActFlow
from app.domain.services.tools.base import ToolContext

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunService:
    """The `RunWorker` that queues call."""

    parts: FlowParts
    sandboxes: SandboxProvider
    browsers: Browsers
    screenshots: Screenshots
    engine: SearchEngine

    async def work(self, session_id: str, attempt: Attempt) -> None:
        """See `RunWorker.work`. The root of a run: whatever else goes wrong ends here, logged, as an `error`."""
        context.session_id.set(session_id)
        flow = self._flow(session_id, attempt.fencing_token)
        try:
            await flow.run(attempt.reason, crashed=attempt.crashed)
        except (Superseded, StoreUnavailable, LeaseLost):
            raise
        except NotFound:
            log.info("the session was deleted under its run")
        except ModelFailure as error:
            log.warning("the model failed", extra={"error": str(error)})
            await flow.fail(str(error))
        except RunGivenUp as error:
            log.error("a run was given up", extra={"error": str(error)})
            await flow.fail(str(error))
        except Exception:
            log.exception("a run failed")
            await flow.fail("something went wrong inside the service; send a message to try again")

    async def abort(self, session_id: str, *, everything: bool) -> None:
        """See `RunWorker.abort`."""
        await self._flow(session_id, None).abort(everything=everything)

    async def stop(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        """See `RunWorker.stop`."""
        await self._flow(session_id, fencing_token).stop(up_to=up_to)

    async def forget(self, session_id: str) -> None:
        """See `RunWorker.forget`."""
        await self.browsers.release(session_id)

    def _flow(self, session_id: str, fencing_token: int | None) -> PlanActFlow:
        reach = ToolContext(
            session_id=session_id,
            sandboxes=self.sandboxes,
            browsers=self.browsers,
            screenshots=self.screenshots,
            engine=self.engine,
        )
        return PlanActFlow(self.parts, reach, fencing_token=fencing_token)
