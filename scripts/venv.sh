# Sourced by run.sh, dev.sh and test.sh: creates .venv and updates it when the requirements change.

# Print the path of the first Python that is new enough. PYTHON takes precedence.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Anker needs Python 3.11 or newer, and none was found. Set PYTHON to its path." >&2
    return 1
}

# prepare_venv REQUIREMENTS [INCLUDED FILE…]: install REQUIREMENTS into .venv, unless it has them from exactly these
# files. The marker is written last, so that an interrupted installation is repeated.
prepare_venv() {
    local requirements=$1 marker checksum python
    marker=".venv/.installed-$(basename "$requirements" .txt)"
    checksum=$(cat "$@" | cksum)
    if [ -x .venv/bin/python ] && [ "$(cat "$marker" 2>/dev/null)" = "$checksum" ]; then
        return
    fi
    python=$(find_python)
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        echo "Creating .venv with $("$python" --version) …" >&2
        "$python" -m venv --clear .venv
    fi
    echo "Installing $requirements (only after a change) …" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    echo "$checksum" >"$marker"
}
