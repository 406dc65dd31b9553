"""The fixtures of the Docker tests."""

from tests.integration.docker.conftest import docker_ready, engine, provider, sandbox
from tests.integration.docker_sessions.conftest import images, model, service

__all__ = ["docker_ready", "engine", "images", "model", "provider", "sandbox", "service"]
