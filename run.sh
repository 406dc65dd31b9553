#!/usr/bin/env bash
# Install what the service needs (once) and run it. Settings: environment variables or .env; see .env.example.
# ./run.sh check-model [PROFILE] [--save] probes a model instead.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/venv.sh
. scripts/sandbox.sh
prepare_venv requirements.txt sandbox/requirements.txt constraints.txt
[ "${1:-}" = check-model ] || prepare_sandbox_image
exec .venv/bin/python -m app "$@"
