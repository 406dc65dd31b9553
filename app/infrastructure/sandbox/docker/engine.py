"""The Docker engine, asked in threads of our own: the SDK blocks and is untyped. Nothing of it leaves this module."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol, TypeVar, cast

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker import facts, failures
from app.infrastructure.sandbox.docker.facts import Container, JsonObject, Network, Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 12
QUICK_SECONDS = 10.0
"""For what the engine looks up. Creating and removing may wait for its disk, starting for a loaded machine."""
SLOW_SECONDS = 90.0
PING_SECONDS = 3.0
MARGIN_SECONDS = 1.0
"""What a thread may take beyond the time-out of its call."""


class _Api(Protocol):
    """What is used of `docker.APIClient`."""

    def ping(self) -> bool: ...
    def close(self) -> None: ...
    def inspect_image(self, image: str) -> JsonObject: ...
    def inspect_container(self, container: str) -> JsonObject: ...
    def containers(self, *, all: bool, filters: JsonObject) -> list[JsonObject]: ...
    def create_container_from_config(self, config: JsonObject, name: str) -> JsonObject: ...
    def start(self, container: str) -> None: ...
    def stop(self, container: str, timeout: int) -> None: ...
    def unpause(self, container: str) -> None: ...
    def rename(self, container: str, name: str) -> None: ...
    def remove_container(self, container: str, *, force: bool) -> None: ...
    def wait(self, container: str) -> JsonObject: ...
    def logs(self, container: str, *, tail: int) -> bytes: ...
    def volumes(self, *, filters: JsonObject) -> JsonObject: ...
    def create_volume(self, name: str, *, labels: Mapping[str, str]) -> JsonObject: ...
    def inspect_volume(self, name: str) -> JsonObject: ...
    def remove_volume(self, name: str) -> None: ...
    def networks(self, *, filters: JsonObject) -> list[JsonObject]: ...
    def inspect_network(self, net_id: str) -> JsonObject: ...
    def create_network(
        self, name: str, driver: str, options: Mapping[str, str], *, labels: Mapping[str, str], check_duplicate: bool
    ) -> JsonObject: ...
    def remove_network(self, net_id: str) -> None: ...
    def connect_container_to_network(self, container: str, net_id: str, *, aliases: list[str]) -> None: ...
    def disconnect_container_from_network(self, container: str, net_id: str) -> None: ...


class Engine:
    """The engine at `DOCKER_HOST`, or at its usual socket. Connects when it is first asked, and again when it was away.

    Raises (every method):
        SandboxUnavailable: one of `failures`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: where `DOCKER_HOST` and its like are looked up; this process's when None."""
        self._environment = dict(os.environ if environment is None else environment)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._clients: dict[float, _Api] = {}
        self.absences = 0
        """How often it did not answer: what it kept for others in its memory may be gone since."""

    async def ping(self) -> None:
        """Return when it answers."""
        await self._ask(lambda api: api.ping(), seconds=PING_SECONDS)

    async def has_image(self, image: str) -> bool:
        """Whether `image` is there."""
        try:
            await self._ask(lambda api: api.inspect_image(image), seconds=PING_SECONDS)
        except (failures.ImageMissing, failures.Missing):
            return False
        return True

    async def container(self, name_or_id: str) -> Container | None:
        """The container; None when there is none."""
        found = await self._find(lambda api: api.inspect_container(name_or_id))
        return facts.inspected(found) if found else None

    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """The containers with these labels, ended ones too."""
        found = await self._ask(lambda api: api.containers(all=True, filters=_filters(labels)))
        return [facts.listed(each) for each in found]

    async def create(self, name: str, config: JsonObject) -> str:
        """Make a container; answers its id. `Taken`: there is one of this name."""
        made = await self._do(lambda api: api.create_container_from_config(config, name))
        return facts.text(made, "Id")

    async def start(self, name_or_id: str) -> None:
        """Start a container; nothing when it runs."""
        await self._do(lambda api: api.start(name_or_id))

    async def stop(self, name_or_id: str, *, grace: int) -> None:
        """End a container in order, or after `grace` seconds without; nothing when there is none or it has ended."""
        await self._drop(lambda api: api.stop(name_or_id, grace))

    async def unpause(self, name_or_id: str) -> None:
        """Let a paused container go on."""
        await self._do(lambda api: api.unpause(name_or_id))

    async def rename(self, name_or_id: str, name: str) -> None:
        """Give a container another name. `Taken`: there is one of this name."""
        await self._do(lambda api: api.rename(name_or_id, name))

    async def remove(self, name_or_id: str) -> None:
        """Kill and remove a container; nothing when there is none, or it is being removed. Its volumes stay."""
        with suppress(failures.Taken):
            await self._drop(lambda api: api.remove_container(name_or_id, force=True))

    async def wait(self, name_or_id: str) -> int:
        """Wait for a container's end; answers its exit status."""
        ended = await self._do(lambda api: api.wait(name_or_id))
        status = ended.get("StatusCode")
        return status if isinstance(status, int) else -1

    async def last_words(self, name_or_id: str, lines: int = 20) -> str:
        """The end of a container's log."""
        return (await self._ask(lambda api: api.logs(name_or_id, tail=lines))).decode("utf-8", "replace").strip()

    async def volume(self, name: str) -> Volume | None:
        """The volume; None when there is none."""
        found = await self._find(lambda api: api.inspect_volume(name))
        return facts.volume(found) if found else None

    async def volumes(self, labels: Mapping[str, str]) -> list[Volume]:
        """The volumes with these labels."""
        found = await self._ask(lambda api: api.volumes(filters=_filters(labels)))
        return [facts.volume(each) for each in facts.objects(found.get("Volumes"))]

    async def claim_volume(self, name: str, labels: Mapping[str, str]) -> Volume:
        """The volume of this name: a new one with `labels`, or the one that there is, with its own."""
        return facts.volume(await self._do(lambda api: api.create_volume(name, labels=labels)))

    async def remove_volume(self, name: str) -> None:
        """Remove a volume; nothing when there is none. `Taken`: a container has it."""
        await self._drop(lambda api: api.remove_volume(name))

    async def network(self, name_or_id: str) -> Network | None:
        """The network; None when there is none."""
        found = await self._find(lambda api: api.inspect_network(name_or_id))
        return facts.network(found) if found else None

    async def networks(self, labels: Mapping[str, str]) -> list[Network]:
        """The networks with these labels; with none, all of them."""
        found = await self._ask(lambda api: api.networks(filters=_filters(labels)))
        return [facts.network(each) for each in found]

    async def create_network(self, name: str, options: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Make a bridge network. `Taken`: there is one of this name, or with this bridge."""
        await self._do(lambda api: api.create_network(name, "bridge", options, labels=labels, check_duplicate=True))

    async def remove_network(self, name_or_id: str) -> None:
        """Remove a network; nothing when there is none. `Taken`: a container is in it."""
        await self._drop(lambda api: api.remove_network(name_or_id))

    async def connect(self, container: str, network: str, aliases: Sequence[str]) -> None:
        """Put a container into a network, where its siblings may also call it by `aliases`."""
        await self._do(lambda api: api.connect_container_to_network(container, network, aliases=list(aliases)))

    async def disconnect(self, container: str, network: str) -> None:
        """Take a container out of a network."""
        await self._drop(lambda api: api.disconnect_container_from_network(container, network))

    def close(self) -> None:
        """Close the connections. Calls that hang end by their own time-outs."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    async def _find(self, call: Callable[[_Api], T]) -> T | None:
        try:
            return await self._ask(call)
        except failures.Missing:
            return None

    async def _drop(self, call: Callable[[_Api], object]) -> None:
        try:
            await self._do(call)
        except failures.Missing:
            return

    async def _do(self, call: Callable[[_Api], T]) -> T:
        """For what changes something: a caller that is cancelled waits for the outcome, or could not clear up."""
        asking = asyncio.ensure_future(self._ask(call, seconds=SLOW_SECONDS))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait({asking})
            if not asking.cancelled():
                asking.exception()  # seen: nobody is told of it any more
            raise

    async def _ask(self, call: Callable[[_Api], T], *, seconds: float | None = None) -> T:
        loop, seconds = asyncio.get_running_loop(), seconds or QUICK_SECONDS
        try:
            async with asyncio.timeout(seconds + MARGIN_SECONDS):
                return await loop.run_in_executor(self._threads, self._call, call, seconds)
        except TimeoutError:
            self.absences += 1
            raise failures.EngineAway(failures.AWAY) from None
        except failures.EngineAway:
            self.absences += 1
            raise

    def _call(self, call: Callable[[_Api], T], seconds: float) -> T:
        from docker import errors
        from requests.exceptions import ConnectionError as ConnectionFailed
        from requests.exceptions import RequestException

        try:
            if (client := self._clients.get(seconds)) is not None:
                try:
                    return call(client)
                except ConnectionFailed:
                    # The engine was restarted and this is what is left of a connection to the one before. What was
                    # asked is asked once more: should it have been done all the same, its name tells.
                    self._clients.pop(seconds, None)
            client = self._clients[seconds] = _connect(self._environment, seconds)
            return call(client)
        except errors.ImageNotFound as error:
            raise failures.ImageMissing(failures.NO_IMAGE) from error
        except errors.APIError as error:
            raise _refusal(error.status_code, error.explanation) from error
        except (errors.DockerException, RequestException, OSError) as error:
            closed = "PermissionError" in str(error)
            raise failures.EngineAway(failures.NOT_ALLOWED if closed else failures.AWAY) from error


def _connect(environment: Mapping[str, str], seconds: float) -> _Api:
    from docker import APIClient
    from docker.utils import kwargs_from_env

    options = kwargs_from_env(dict(environment))
    return cast("_Api", APIClient(version="auto", timeout=int(seconds), max_pool_size=THREADS, **options))


def _refusal(status: object, explanation: object) -> SandboxUnavailable:
    said = str(explanation or "")
    failure = failures.refusal(status if isinstance(status, int) else 0, said)
    if isinstance(failure, failures.Refused):
        log.warning("the Docker engine refused: %s", said)
    return failure


def _filters(labels: Mapping[str, str]) -> JsonObject:
    return {"label": [f"{name}={value}" for name, value in labels.items()]} if labels else {}
