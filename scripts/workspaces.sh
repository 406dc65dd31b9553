#!/usr/bin/env bash
# Copies the workspaces of Docker sandboxes, which `./run.sh backup` does not contain: one file per session.
#   scripts/workspaces.sh save INSTALLATION FOLDER     copy the workspaces of an installation into a folder
#   scripts/workspaces.sh restore INSTALLATION FOLDER  create the volumes of an installation from that folder
# `./run.sh backup` and `./run.sh restore` print the id of their installation. SANDBOX_IMAGE and SANDBOX_NAME_PREFIX are
# the settings of the service. A volume that exists is left alone.
set -euo pipefail

IMAGE=${SANDBOX_IMAGE:-simpleyyt/anker-sandbox}
PREFIX=${SANDBOX_NAME_PREFIX:-sandbox}

# run_tar VOLUME MODE ARGUMENTS…: run tar in a container without network that has nothing but the volume.
run_tar() {
    local volume=$1 mode=$2
    shift 2
    docker run --rm --interactive --network none --read-only --user 0 --cap-drop ALL --cap-add CHOWN \
        --cap-add DAC_OVERRIDE --cap-add FOWNER --security-opt no-new-privileges \
        --volume "$volume:/workspace:$mode" --entrypoint tar "$IMAGE" --directory /workspace --numeric-owner "$@"
}

label() {
    docker volume inspect --format "{{index .Labels \"anker.$2\"}}" "$1"
}

save() {
    local installation=$1 folder=$2 volume session workspace
    umask 077
    mkdir -p "$folder"
    for volume in $(docker volume ls --quiet --filter "label=anker.installation=$installation" \
        --filter label=anker.role=sandbox); do
        session=$(label "$volume" session)
        # The volume of a session that took its sandbox from the pool only names its workspace.
        workspace=$(label "$volume" volume)
        run_tar "${workspace:-$volume}" ro --create . >"$folder/$session.tar.partial"
        mv "$folder/$session.tar.partial" "$folder/$session.tar"
        echo "saved $session"
    done
}

restore() {
    local installation=$1 folder=$2 file session volume
    for file in "$folder"/*.tar; do
        [ -e "$file" ] || continue
        session=$(basename "$file" .tar)
        volume=$PREFIX-$session
        if docker volume inspect "$volume" >/dev/null 2>&1; then
            echo "kept $session: the volume $volume exists"
            continue
        fi
        docker volume create --label "anker.installation=$installation" --label anker.role=sandbox \
            --label "anker.session=$session" "$volume" >/dev/null
        run_tar "$volume" rw --extract --preserve-permissions <"$file" || {
            docker volume rm "$volume" >/dev/null
            echo "not restored: $session" >&2
            return 1
        }
        echo "restored $session"
    done
}

case "${1:-} $#" in
"save 3") save "$2" "$3" ;;
"restore 3") restore "$2" "$3" ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
