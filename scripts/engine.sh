#!/usr/bin/env bash
# Gives the tests a Docker engine and the base image of ours, on a machine that may have neither. Run it, or source it
# and call `ensure_engine` and `ensure_base_image`; each does nothing when it is done already.
# Where an engine answers and images can be pulled, all of it comes down to one `docker pull`.

BASE_IMAGE=debian:bookworm-slim
ENGINE_LOG=${ENGINE_LOG:-/var/log/anker-dockerd.log}
_ENGINE_SECONDS=60
_PULL_SECONDS=120
_BUNDLE=/etc/ssl/certs/ca-certificates.crt

_engine_fails() {
    echo "$1" >&2
    return 1
}

_answers() {
    docker version >/dev/null 2>&1
}

# install_missing COMMAND=PACKAGE…: installs, in one go, the Debian packages whose command is not there.
install_missing() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    if [ ${#packages[@]} -eq 0 ]; then
        return
    fi
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        _engine_fails "Missing: ${packages[*]}. Install them, or run this as root where there is apt."
        return
    fi
    echo "Installing ${packages[*]} …" >&2
    # Services are not to be started by the installation: there may be no init to do it, and we start our own.
    if ! { apt-get -qq update && _install "${packages[@]}"; } >/dev/null; then
        _engine_fails "Could not install ${packages[*]}."
    fi
}

_install() {
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

# A Docker engine that answers: the one that is there, or one that is started here, once.
ensure_engine() {
    local lock
    if command -v docker >/dev/null && _answers; then
        return
    fi
    install_missing docker=docker.io dockerd=docker.io iptables=iptables || return
    exec {lock}>"${TMPDIR:-/tmp}/.anker-engine.lock"
    flock "$lock" # two test runs at once start one engine
    _start_engine "$lock"
    local status=$?
    exec {lock}>&-
    return $status
}

# Engines that ended badly leave a stale pid file or a dying child: the next try succeeds, so there are a few.
_start_engine() {
    local lock=$1 deadline=$((SECONDS + _ENGINE_SECONDS)) engine=
    while ! _answers; do
        if [ $SECONDS -ge $deadline ]; then
            _engine_fails "The Docker engine does not answer; its last words are in $ENGINE_LOG."
            return
        fi
        if [ -z "$engine" ] || ! kill -0 "$engine" 2>/dev/null; then
            [ -n "$engine" ] && sleep 1
            [ -n "$engine" ] || echo "Starting the Docker engine …" >&2
            setsid dockerd </dev/null >>"$ENGINE_LOG" 2>&1 {lock}>&- &
            engine=$!
        fi
        sleep 0.2
    done
}

# The image that ours begin with: there already, pulled, or made here from this machine's own package sources.
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
    docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 || _make_base_image
    status=$?
    exec {lock}>&-
    return $status
}

_make_base_image() (
    set -o pipefail
    sources=$(_debian_sources) || exit
    folder=$(mktemp -d) || exit
    trap 'rm -rf "$folder"' EXIT
    _certificates "$folder/tree" || exit
    echo "$BASE_IMAGE cannot be pulled: making it with mmdebstrap (about a minute) …" >&2
    # `docker import` keeps no environment: what the machine needs to be trusted is told to node and Python here.
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
        _engine_fails "$BASE_IMAGE could not be made: $(grep -v '^$' "$folder/log" | tail -n 1)"
    }
)

# This machine's own package sources, so that no server has to be named.
_debian_sources() {
    local file
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if [ -s "$file" ]; then
            echo "$file"
            return
        fi
    done
    _engine_fails "$BASE_IMAGE cannot be pulled, and this machine has no Debian package sources to make it from."
}

# _certificates TREE: what the image needs to trust the servers that this machine trusts, below TREE.
_certificates() {
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
