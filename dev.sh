#!/usr/bin/env bash
# Run the service like run.sh, and restart it whenever the code changes.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/venv.sh
. scripts/sandbox.sh
prepare_venv requirements.txt sandbox/requirements.txt constraints.txt
prepare_sandbox_image
exec .venv/bin/python -m app --reload "$@"
