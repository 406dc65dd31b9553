#!/bin/sh
# Entrypoint of the service's container: changes to the user `anker`, with the group of the engine's socket if it is
# needed, and executes the service. With `docker run --user` it keeps that user.
set -eu

# The first process of a container gets only the signals that it handles.
trap 'exit 0' INT TERM

# Status 143 (ended by SIGTERM, as by `docker stop`) counts as success.
set -- tini -s -e 143 -- "$@"

# Succeed if this container has its own network: then the peer of every interface but loopback is another interface.
# With `--network host` there are physical interfaces.
has_own_network() {
    local interface
    for interface in /sys/class/net/*; do
        [ "${interface##*/}" = lo ] && continue
        [ "$(cat "$interface/iflink")" != "$(cat "$interface/ifindex")" ] || return 1
    done
}

# A `.env` for a service outside a container may set HOST to loopback, where clients could not reach this container.
case ${HOST:-} in
'' | localhost | 127.* | ::1)
    if has_own_network; then
        export HOST=0.0.0.0
    fi
    ;;
esac

if [ "$(id -u)" != 0 ]; then
    exec "$@"
fi

# If a mounted folder of the host does not exist, Docker creates it for root.
data=${DATA_DIR:-/data}
mkdir -p "$data"
if [ "$(stat -c %u "$data")" = 0 ]; then
    chown anker "$data"
fi

groups=--clear-groups
socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
socket=${socket#unix://}
case ${SANDBOX_PROVIDER:-} in
local | remote) ;; # local sandboxes run as this user and must not use the engine; remote ones do not need it
*)
    if [ -S "$socket" ]; then
        groups=--groups=$(stat -c %g "$socket")
    fi
    ;;
esac

exec setpriv --reuid=anker --regid=anker "$groups" --no-new-privs --inh-caps=-all -- "$@"
