"""Asynchronous client of the Docker engine. It calls the blocking, untyped Docker SDK in threads of its own."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ValidationError

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker.engine_objects import EngineContainer, EngineNetwork, EngineObject, EngineVolume

log = logging.getLogger(__name__)

ObjectT = TypeVar("ObjectT", bound=EngineObject)

MAX_THREADS = 12
"""Maximum number of simultaneous calls to the engine."""

QUERY_SECONDS = 10.0
"""Timeout in seconds of a call that only reads."""

CHANGE_SECONDS = 90.0
"""Timeout in seconds of a call that changes something, which may wait for the engine's disk or a loaded machine."""

PING_SECONDS = 3.0
"""Timeout in seconds of a call that checks availability."""

THREAD_MARGIN_SECONDS = 1.0
"""Time in seconds that a thread may take beyond the timeout of its call."""

NOT_RUNNING = "The Docker engine does not respond. Start it; sandboxes are available again as soon as it runs."
NO_PERMISSION = "This service may not use the Docker engine's socket: run it as a user who may use Docker."
IMAGE_MISSING = "The sandbox image (SANDBOX_IMAGE) is not on this machine: build it with ./run.sh, or pull it."
UNKNOWN_REFUSAL = "The Docker engine refused the request. The service's log has its reason."

_KNOWN_REFUSALS = (
    ("no space left", "The disk of the Docker engine is full."),
    ("unknown runtime", "SANDBOX_RUNTIME: the Docker engine has no such runtime."),
    ("invalid runtime", "SANDBOX_RUNTIME: the Docker engine has no such runtime."),
    ("range of cpus", "SANDBOX_CPUS: the machine has fewer CPUs."),
    ("minimum memory limit", "SANDBOX_MEMORY: too small."),
    ("invalid container name", "SANDBOX_NAME_PREFIX: not a valid Docker name."),
    ("seccomp", "The Docker engine cannot filter system calls (seccomp), which sandboxes need."),
    ("address pool", "The Docker engine has no addresses left for SANDBOX_NETWORK: remove unused networks."),
    ("no available ipv4 addresses", "SANDBOX_NETWORK has no addresses left."),
    ("cannot allocate memory", "The machine has no memory left for another sandbox."),
)
"""Parts of engine error messages, in lower case, and the text that an operator gets instead."""


class EngineUnavailable(SandboxUnavailable):
    """The engine does not respond."""


class ObjectNotFound(SandboxUnavailable):
    """The engine has no such container, volume or network."""


class ObjectConflict(SandboxUnavailable):
    """The name is taken, or the object is in use or being removed."""


class ImageMissing(SandboxUnavailable):
    """The sandbox image is not on the engine's machine."""


class EngineRefused(SandboxUnavailable):
    """The engine rejected the request. Only the log has the engine's own message: it may contain paths."""


class DockerEngine:
    """The engine at `DOCKER_HOST`, or at the default socket. Connects on first use and again after a lost connection.

    Every method raises `SandboxUnavailable`, as one of the classes above.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Create the client without connecting.

        Args:
            environment: The variables that say where the engine is (`DOCKER_HOST`); those of this process when None.
        """
        self._environment = dict(os.environ if environment is None else environment)
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="docker")
        self._clients: dict[float, Any] = {}
        self.outages = 0
        """Number of calls that the engine did not respond to. After one, its firewall rules may be gone."""

    async def ping(self) -> None:
        """Return if the engine responds."""
        await self._query(lambda client: client.ping(), seconds=PING_SECONDS)

    async def has_image(self, image: str) -> bool:
        """Return whether the engine has `image`."""
        try:
            await self._query(lambda client: client.inspect_image(image), seconds=PING_SECONDS)
        except (ImageMissing, ObjectNotFound):
            return False
        return True

    async def container(self, name_or_id: str) -> EngineContainer | None:
        """Return the container, or None if it does not exist."""
        return await self._inspect(EngineContainer, lambda client: client.inspect_container(name_or_id))

    async def containers(self, labels: Mapping[str, str]) -> list[EngineContainer]:
        """Return all containers that have `labels`, including those that have ended."""
        return await self._list(EngineContainer, lambda client: client.containers(all=True, filters=_filters(labels)))

    async def create_container(self, name: str, config: Mapping[str, object]) -> str:
        """Create a container and return its id.

        Raises:
            ObjectConflict: The name is taken.
        """
        return await self._change(lambda client: client.create_container_from_config(config, name)["Id"])

    async def start_container(self, name_or_id: str) -> None:
        """Start a container. Do nothing if it is running."""
        await self._change(lambda client: client.start(name_or_id))

    async def stop_container(self, name_or_id: str, *, grace: int) -> None:
        """Stop a container and kill it after `grace` seconds. Do nothing if it has ended or does not exist."""
        await self._change_if_exists(lambda client: client.stop(name_or_id, grace))

    async def unpause_container(self, name_or_id: str) -> None:
        """Resume a paused container."""
        await self._change(lambda client: client.unpause(name_or_id))

    async def rename_container(self, name_or_id: str, name: str) -> None:
        """Rename a container.

        Raises:
            ObjectConflict: The name is taken.
        """
        await self._change(lambda client: client.rename(name_or_id, name))

    async def remove_container(self, name_or_id: str) -> None:
        """Kill and remove a container but keep its volumes. Do nothing if it does not exist or is being removed."""
        with suppress(ObjectConflict):
            await self._change_if_exists(lambda client: client.remove_container(name_or_id, force=True))

    async def wait_for_exit(self, name_or_id: str) -> int:
        """Wait until a container ends and return its exit status."""
        return await self._change(lambda client: client.wait(name_or_id)["StatusCode"])

    async def log_tail(self, name_or_id: str, lines: int = 20) -> str:
        """Return the last `lines` lines of a container's log."""
        output: bytes = await self._query(lambda client: client.logs(name_or_id, tail=lines))
        return output.decode("utf-8", "replace").strip()

    async def volume(self, name: str) -> EngineVolume | None:
        """Return the volume, or None if it does not exist."""
        return await self._inspect(EngineVolume, lambda client: client.inspect_volume(name))

    async def volumes(self, labels: Mapping[str, str]) -> list[EngineVolume]:
        """Return all volumes that have `labels`."""
        return await self._list(EngineVolume, lambda client: client.volumes(filters=_filters(labels))["Volumes"] or [])

    async def get_or_create_volume(self, name: str, labels: Mapping[str, str]) -> EngineVolume:
        """Create a volume with `labels`, or return the existing one with its own labels."""
        return await self._change(lambda client: EngineVolume.model_validate(client.create_volume(name, labels=labels)))

    async def remove_volume(self, name: str) -> None:
        """Remove a volume. Do nothing if it does not exist.

        Raises:
            ObjectConflict: A container uses it.
        """
        await self._change_if_exists(lambda client: client.remove_volume(name))

    async def network(self, name_or_id: str) -> EngineNetwork | None:
        """Return the network, or None if it does not exist."""
        return await self._inspect(EngineNetwork, lambda client: client.inspect_network(name_or_id))

    async def networks(self, labels: Mapping[str, str]) -> list[EngineNetwork]:
        """Return all networks that have `labels`."""
        return await self._list(EngineNetwork, lambda client: client.networks(filters=_filters(labels)))

    async def create_network(self, name: str, options: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Create a bridge network.

        Raises:
            ObjectConflict: The name or the bridge is taken.
        """
        await self._change(
            lambda client: client.create_network(name, "bridge", options, labels=labels, check_duplicate=True)
        )

    async def remove_network(self, name_or_id: str) -> None:
        """Remove a network. Do nothing if it does not exist.

        Raises:
            ObjectConflict: A container is connected to it.
        """
        await self._change_if_exists(lambda client: client.remove_network(name_or_id))

    async def connect(self, container: str, network: str, aliases: Sequence[str]) -> None:
        """Connect a container to a network, where the other containers can also call it by `aliases`."""
        await self._change(
            lambda client: client.connect_container_to_network(container, network, aliases=list(aliases))
        )

    async def disconnect(self, container: str, network: str) -> None:
        """Disconnect a container from a network."""
        await self._change_if_exists(lambda client: client.disconnect_container_from_network(container, network))

    def close(self) -> None:
        """Close the connections. Calls that hang end by their own timeouts."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    async def _inspect(self, kind: type[ObjectT], call: Callable[[Any], object]) -> ObjectT | None:
        try:
            return await self._query(lambda client: kind.model_validate(call(client)))
        except ObjectNotFound:
            return None

    async def _list(self, kind: type[ObjectT], call: Callable[[Any], Sequence[object]]) -> list[ObjectT]:
        return await self._query(lambda client: [kind.model_validate(each) for each in call(client)])

    async def _change_if_exists(self, call: Callable[[Any], Any]) -> None:
        with suppress(ObjectNotFound):
            await self._change(call)

    async def _change(self, call: Callable[[Any], Any]) -> Any:
        """Run a call that changes something. A cancelled caller waits for its end, so that it can undo the change."""
        running = asyncio.ensure_future(self._query(call, seconds=CHANGE_SECONDS))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()  # retrieved, so that asyncio does not log it
            raise

    async def _query(self, call: Callable[[Any], Any], *, seconds: float | None = None) -> Any:
        loop, seconds = asyncio.get_running_loop(), seconds or QUERY_SECONDS
        try:
            async with asyncio.timeout(seconds + THREAD_MARGIN_SECONDS):
                return await loop.run_in_executor(self._threads, self._call, call, seconds)
        except TimeoutError:
            self.outages += 1
            raise EngineUnavailable(NOT_RUNNING) from None
        except EngineUnavailable:
            self.outages += 1
            raise

    def _call(self, call: Callable[[Any], Any], seconds: float) -> Any:
        from docker import errors
        from requests.exceptions import ConnectionError as ConnectionFailed
        from requests.exceptions import RequestException

        try:
            if (client := self._clients.get(seconds)) is not None:
                try:
                    return call(client)
                except ConnectionFailed:
                    # The engine was restarted and closed this connection. Repeat the call on a new one: if the engine
                    # had carried it out, the repetition fails with a conflict of names.
                    self._clients.pop(seconds, None)
            client = self._clients[seconds] = _connect(self._environment, seconds)
            return call(client)
        except errors.ImageNotFound as error:
            raise ImageMissing(IMAGE_MISSING) from error
        except errors.APIError as error:
            raise parse_refusal(error.status_code, error.explanation) from error
        except (errors.DockerException, RequestException, OSError) as error:
            no_permission = "PermissionError" in str(error)
            raise EngineUnavailable(NO_PERMISSION if no_permission else NOT_RUNNING) from error
        except ValidationError as error:
            log.warning("the Docker engine's response is malformed: %s", error)
            raise EngineRefused("The Docker engine's response is malformed.") from error


def parse_refusal(status: object, explanation: object) -> SandboxUnavailable:
    """Return the exception for an error response of the engine.

    Args:
        status: The HTTP status code.
        explanation: The engine's message.
    """
    message = str(explanation or "").lower()
    known = next((meaning for part, meaning in _KNOWN_REFUSALS if part in message), None)
    if known is None and status == 404:
        return ObjectNotFound("The Docker engine does not have this object any more.")
    if known is None and status in (403, 409):
        return ObjectConflict("The Docker engine reports that the object is in use.")
    log.warning("the Docker engine refused a request: %s", explanation)
    return EngineRefused(known or UNKNOWN_REFUSAL)


def _connect(environment: Mapping[str, str], seconds: float) -> Any:
    from docker import APIClient
    from docker.utils import kwargs_from_env

    options = kwargs_from_env(dict(environment))
    return APIClient(version="auto", timeout=int(seconds), max_pool_size=MAX_THREADS, **options)


def _filters(labels: Mapping[str, str]) -> Mapping[str, object]:
    return {"label": [f"{name}={value}" for name, value in labels.items()]} if labels else {}
