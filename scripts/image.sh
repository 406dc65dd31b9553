#!/usr/bin/env bash
# Builds the sandbox's image, SANDBOX_IMAGE, when it is missing or was made of other files than those that are here.
#   scripts/image.sh          build it if need be
#   scripts/image.sh --check  only say, by the exit status, whether it is up to date
# Run it, or source it and call `ensure_image`. Needs a Docker engine that answers (scripts/engine.sh can start one).

_OUR_IMAGE=simpleyyt/anker-sandbox
SANDBOX_IMAGE=${SANDBOX_IMAGE:-$_OUR_IMAGE}
_SOURCES_LABEL=anker.sources
_NAME_LABEL=anker.built-as
_IMAGE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What the image is made of, as one word. Everything that the Dockerfile copies must be named here.
_image_sources() (
    cd "$_IMAGE_ROOT" || exit
    find sandbox constraints.txt .dockerignore -type f \
        ! -path '*/tests/*' ! -path '*/__pycache__/*' ! -path '*/.*_cache/*' -print0 |
        sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-16
)

# An image of another name that was not built under it here is the operator's own, maybe made from ours and with our
# labels: it is left as it is.
_image_is_current() {
    local labels
    labels=$(docker image inspect "$SANDBOX_IMAGE" 2>/dev/null --format \
        "{{index .Config.Labels \"$_NAME_LABEL\"}} {{index .Config.Labels \"$_SOURCES_LABEL\"}}") || return 1
    [ "${labels#* }" = "$1" ] || {
        [ "${labels%% *}" != "$SANDBOX_IMAGE" ] && [ "$SANDBOX_IMAGE" != "$_OUR_IMAGE" ]
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
    echo "Building the sandbox's image $SANDBOX_IMAGE (the first time takes some minutes) …" >&2
    log=$(mktemp)
    if ! _build "$sources" "$log"; then
        echo "The image $SANDBOX_IMAGE could not be built: $(grep -v '^ *$' "$log" | tail -n 1)" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# _build SOURCES LOG: the build itself, its whole output in LOG.
_build() (
    set -o pipefail
    docker build --label "$_SOURCES_LABEL=$1" --label "$_NAME_LABEL=$SANDBOX_IMAGE" -t "$SANDBOX_IMAGE" \
        -f "$_IMAGE_ROOT/sandbox/Dockerfile" "$_IMAGE_ROOT" 2>&1 | tee "$2" | _progress >&2
)

# The steps only: what they print is for when one of them fails.
_progress() {
    sed -nu -E 's/^(Step [0-9]+\/[0-9]+ : [^#]{1,100}).*/  \1/p; s/^#[0-9]+ (\[[^]]*[0-9]+\/[0-9]+\] .{1,100}).*/  \1/p'
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    ensure_image "$@"
fi
