"""The fixtures of the Docker tests."""

from tests.integration.docker.conftest import docker_ready, engine, provider

__all__ = ["docker_ready", "engine", "provider"]
