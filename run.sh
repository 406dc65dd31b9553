#!/usr/bin/env bash
# Install what the service needs (once) and run it. Settings: environment variables or .env; see .env.example.
# ./run.sh check-model [PROFILE] [--save] probes a model instead; ./run.sh backup FILE and ./run.sh restore FILE copy the
# store; ./run.sh token NAME makes a token for API_TOKENS; ./run.sh verify-audit checks the audit log. See
# docs/operations.md.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/venv.sh
. scripts/sandbox.sh
prepare_venv requirements.txt sandbox/requirements.txt constraints.txt
case "${1:-}" in
check-model | backup | restore | token | verify-audit) ;;
*) prepare_sandbox_image ;;
esac
exec .venv/bin/python -m app "$@"
