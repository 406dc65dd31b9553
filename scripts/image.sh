#!/usr/bin/env bash
# Builds the sandbox image SANDBOX_IMAGE if it is missing or was built from other files than the current ones.
#   scripts/image.sh          build it if necessary
#   scripts/image.sh --check  do not build; succeed if it is up to date
# Run it, or source it and call `ensure_image`. It needs a running Docker engine (scripts/engine.sh can start one).

_DEFAULT_IMAGE=simpleyyt/anker-sandbox
SANDBOX_IMAGE=${SANDBOX_IMAGE:-$_DEFAULT_IMAGE}
_SOURCES_LABEL=anker.sources
_NAME_LABEL=anker.built-as
_IMAGE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Print a hash of the files that the image is built from. It must cover everything that the Dockerfile copies.
_image_sources() (
    cd "$_IMAGE_ROOT" || exit
    find sandbox constraints.txt .dockerignore -type f \
        ! -path '*/tests/*' ! -path '*/__pycache__/*' ! -path '*/.*_cache/*' -print0 |
        sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-16
)

# _image_is_current SOURCES: succeed if the image was built from SOURCES, or if it belongs to the operator: its name is
# not the default, and it was not built under this name by this script (it may inherit the labels of our image).
_image_is_current() {
    local labels
    labels=$(docker image inspect "$SANDBOX_IMAGE" 2>/dev/null --format \
        "{{index .Config.Labels \"$_NAME_LABEL\"}} {{index .Config.Labels \"$_SOURCES_LABEL\"}}") || return 1
    [ "${labels#* }" = "$1" ] || {
        [ "${labels%% *}" != "$SANDBOX_IMAGE" ] && [ "$SANDBOX_IMAGE" != "$_DEFAULT_IMAGE" ]
    }
}

ensure_image() {
    local sources log
    sources=$(_image_sources) || return
    if _image_is_current "$sources"; then
        return
    fi
    if [ "${1:-}" = --check ]; then
        return 1
    fi
    echo "Building the sandbox image $SANDBOX_IMAGE (takes some minutes the first time) …" >&2
    log=$(mktemp)
    if ! _build "$sources" "$log"; then
        echo "Could not build the image $SANDBOX_IMAGE: $(grep -v '^ *$' "$log" | tail -n 1)" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# _build SOURCES LOG: build the image; write all output to LOG and the progress to stderr.
_build() (
    set -o pipefail
    docker build --label "$_SOURCES_LABEL=$1" --label "$_NAME_LABEL=$SANDBOX_IMAGE" -t "$SANDBOX_IMAGE" \
        -f "$_IMAGE_ROOT/sandbox/Dockerfile" "$_IMAGE_ROOT" 2>&1 | tee "$2" | _progress >&2
)

# Print the steps of the build only. Their output matters when one of them fails.
_progress() {
    sed -nu -E 's/^(Step [0-9]+\/[0-9]+ : [^#]{1,100}).*/  \1/p; s/^#[0-9]+ (\[[^]]*[0-9]+\/[0-9]+\] .{1,100}).*/  \1/p'
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    ensure_image "$@"
fi
