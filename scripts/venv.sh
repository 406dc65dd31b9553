# Sourced by run.sh, dev.sh and test.sh: makes .venv and keeps it in step with the requirements.

# The first Python that is new enough; PYTHON overrides the choice.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Anker needs Python 3.11 or newer; none was found. Set PYTHON to one." >&2
    return 1
}

# prepare_venv REQUIREMENTS [FILES IT INCLUDES…]: install REQUIREMENTS into .venv, unless that was done already
# with exactly these files. The mark is written last, so that an install that was cut short is done again.
prepare_venv() {
    local requirements=$1 mark wanted python
    mark=".venv/.installed-$(basename "$requirements" .txt)"
    wanted=$(cat "$@" | cksum)
    if [ -x .venv/bin/python ] && [ "$(cat "$mark" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    python=$(find_python)
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        echo "Making .venv with $("$python" --version) …" >&2
        "$python" -m venv --clear .venv
    fi
    echo "Installing $requirements; this happens once …" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    echo "$wanted" >"$mark"
}
