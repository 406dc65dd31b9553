# Sourced by run.sh and dev.sh: builds the sandbox image if the service will use Docker.

# setting NAME DEFAULT: print a setting as the service will read it, from the environment or from .env.
setting() {
    local value=${!1:-}
    if [ -z "$value" ] && [ -f .env ]; then
        value=$(sed -n "s/^$1=//p" .env | tail -n 1 | tr -d "\"'\r")
    fi
    echo "${value:-$2}"
}

# Build the image if necessary. If that fails, the service starts nevertheless, and /ready reports the missing image.
prepare_sandbox_image() {
    case $(setting SANDBOX_PROVIDER auto) in
    auto | docker) ;;
    *) return ;;
    esac
    if docker version >/dev/null 2>&1; then
        SANDBOX_IMAGE=$(setting SANDBOX_IMAGE simpleyyt/anker-sandbox) _build_sandbox_image ||
            echo "Could not build the sandbox image: no sandbox can start until it exists." >&2
    fi
}

_build_sandbox_image() {
    scripts/image.sh --check || { . scripts/engine.sh && ensure_base_image && scripts/image.sh; }
}
