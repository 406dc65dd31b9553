#!/bin/sh
# The first process of the service's container: makes it the user `anker`, in the group that may use the engine's
# socket, and then the service. Started with `--user`, it changes nothing about users.
set -eu

# The first process of a container hears only what it asks for.
trap 'exit 0' INT TERM

# What it becomes; ended by SIGTERM, as it is by `docker stop`, the service has done nothing wrong.
set -- tini -s -e 143 -- "$@"

# Whether this container has a network of its own: every interface but loopback then ends in another one's. With the
# host's network (`--network host`) there are real ones.
own_network() {
    local interface
    for interface in /sys/class/net/*; do
        [ "${interface##*/}" = lo ] && continue
        [ "$(cat "$interface/iflink")" != "$(cat "$interface/ifindex")" ] || return 1
    done
}

# A `.env` that was written for a service outside a container says loopback, where nobody could reach one inside.
case ${HOST:-} in
'' | localhost | 127.* | ::1)
    if own_network; then
        export HOST=0.0.0.0
    fi
    ;;
esac

if [ "$(id -u)" != 0 ]; then
    exec "$@"
fi

# Docker makes a folder of the host that is not there yet, and makes it root's.
data=${DATA_DIR:-/data}
mkdir -p "$data"
if [ "$(stat -c %u "$data")" = 0 ]; then
    chown anker "$data"
fi

groups=--clear-groups
socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
socket=${socket#unix://}
case ${SANDBOX_PROVIDER:-} in
local | remote) ;; # what runs as this user must not be able to use the engine, or has no need to
*)
    if [ -S "$socket" ]; then
        groups=--groups=$(stat -c %g "$socket")
    fi
    ;;
esac

exec setpriv --reuid=anker --regid=anker "$groups" --no-new-privs --inh-caps=-all -- "$@"
