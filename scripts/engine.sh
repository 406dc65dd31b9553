#!/usr/bin/env bash
# Starts a Docker engine and provides the base image of our images, on a machine that may have neither.
# Run it, or source it and call `ensure_engine` and `ensure_base_image`. Both are idempotent.
# With a running engine and access to a registry, it only runs `docker pull`.

BASE_IMAGE=debian:bookworm-slim
ENGINE_LOG=${ENGINE_LOG:-/var/log/anker-dockerd.log}
_ENGINE_SECONDS=60
_PULL_SECONDS=120
_BUNDLE=/etc/ssl/certs/ca-certificates.crt

_fail() {
    echo "$1" >&2
    return 1
}

_engine_responds() {
    docker version >/dev/null 2>&1
}

# install_missing COMMAND=PACKAGE…: install the Debian packages whose command is missing.
install_missing() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    if [ ${#packages[@]} -eq 0 ]; then
        return
    fi
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        _fail "Missing: ${packages[*]}. Install them, or run this as root on a system with apt."
        return
    fi
    echo "Installing ${packages[*]} …" >&2
    # The installation must not start services: there may be no init system, and we start the engine ourselves.
    if ! { apt-get -qq update && _install "${packages[@]}"; } >/dev/null; then
        _fail "Could not install ${packages[*]}."
    fi
}

_install() {
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

# Return when an engine responds; start one if none does.
ensure_engine() {
    local lock
    if command -v docker >/dev/null && _engine_responds; then
        return
    fi
    install_missing docker=docker.io dockerd=docker.io iptables=iptables || return
    exec {lock}>"${TMPDIR:-/tmp}/.anker-engine.lock"
    flock "$lock" # concurrent test runs start one engine
    _start_engine "$lock"
    local status=$?
    exec {lock}>&-
    return $status
}

# Retry: an engine that crashed leaves a stale pid file or a dying child, and only a later attempt succeeds.
_start_engine() {
    local lock=$1 deadline=$((SECONDS + _ENGINE_SECONDS)) engine=
    while ! _engine_responds; do
        if [ $SECONDS -ge $deadline ]; then
            _fail "The Docker engine does not respond. See its log: $ENGINE_LOG"
            return
        fi
        if [ -z "$engine" ] || ! kill -0 "$engine" 2>/dev/null; then
            [ -n "$engine" ] && sleep 1
            [ -n "$engine" ] || echo "Starting the Docker engine …" >&2
            setsid dockerd </dev/null >>"$ENGINE_LOG" 2>&1 {lock}>&- &
            engine=$!
            disown "$engine" # a `wait` of the caller must not wait for the engine
        fi
        sleep 0.2
    done
}

# Provide the base image: use the existing one, pull it, or build it from this machine's package sources.
ensure_base_image() {
    local lock status
    if docker image inspect "$BASE_IMAGE" >/dev/null 2>&1; then
        return
    fi
    if timeout "$_PULL_SECONDS" docker pull --quiet "$BASE_IMAGE" >/dev/null 2>&1; then
        return
    fi
    install_missing mmdebstrap=mmdebstrap || return
    exec {lock}>"${TMPDIR:-/tmp}/.anker-base-image.lock"
    flock "$lock"
    docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 || _build_base_image
    status=$?
    exec {lock}>&-
    return $status
}

_build_base_image() (
    set -o pipefail
    sources=$(_debian_sources) || exit
    folder=$(mktemp -d) || exit
    trap 'rm -rf "$folder"' EXIT
    _copy_certificates "$folder/tree" || exit
    echo "Could not pull $BASE_IMAGE. Building it with mmdebstrap (about a minute) …" >&2
    # `docker import` keeps no environment, so set the variables by which Node and Python trust the CA certificates.
    mmdebstrap --quiet --variant=minbase --include=ca-certificates \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="copy-in $folder/tree/usr $folder/tree/etc /" \
        --customize-hook='chroot "$1" update-ca-certificates' \
        bookworm - "$sources" 2>"$folder/log" |
        docker import --change 'CMD ["bash"]' --change "ENV NODE_EXTRA_CA_CERTS=$_BUNDLE REQUESTS_CA_BUNDLE=$_BUNDLE" \
            - "$BASE_IMAGE" >/dev/null || {
        _fail "Could not build $BASE_IMAGE: $(grep -v '^$' "$folder/log" | tail -n 1)"
    }
)

# Print the file with this machine's package sources, so that this script need not name a server.
_debian_sources() {
    local file
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if [ -s "$file" ]; then
            echo "$file"
            return
        fi
    done
    _fail "Could not pull $BASE_IMAGE, and this machine has no Debian package sources to build it from."
}

# _copy_certificates TREE: copy the CA certificates of this machine to TREE, so that the image trusts the same servers.
_copy_certificates() {
    local tree=$1
    mkdir -p "$tree/usr/local/share/ca-certificates" "$tree/etc"
    cp /usr/local/share/ca-certificates/*.crt "$tree/usr/local/share/ca-certificates/" 2>/dev/null
    printf '[global]\ncert = %s\n' "$_BUNDLE" >"$tree/etc/pip.conf"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    ensure_engine
    ensure_base_image
fi
