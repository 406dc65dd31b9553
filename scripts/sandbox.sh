# Sourced by run.sh and dev.sh: has the sandbox's image ready where the service is going to use Docker.

# setting NAME DEFAULT: a setting's value as the service will see it: the environment's, else the one in .env.
setting() {
    local value=${!1:-}
    if [ -z "$value" ] && [ -f .env ]; then
        value=$(sed -n "s/^$1=//p" .env | tail -n 1 | tr -d "\"'\r")
    fi
    echo "${value:-$2}"
}

# Builds the image once. Where that fails the service starts all the same, and says what it lacks.
prepare_sandbox_image() {
    case $(setting SANDBOX_PROVIDER auto) in
    auto | docker) ;;
    *) return ;;
    esac
    if docker version >/dev/null 2>&1; then
        SANDBOX_IMAGE=$(setting SANDBOX_IMAGE simpleyyt/anker-sandbox) _build_sandbox_image ||
            echo "The sandbox's image could not be built: no sandbox can be started until it is there." >&2
    fi
}

_build_sandbox_image() {
    scripts/image.sh --check || { . scripts/engine.sh && ensure_base_image && scripts/image.sh; }
}
