#!/usr/bin/env bash
# Create a virtual environment with pip, also where Debian's python3-venv is missing.
# usage: scripts/venv.sh DIRECTORY        (PYTHON=... chooses the interpreter)
set -euo pipefail
target=$1

say() { printf '%s\n' "$*" >&2; }

suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=${PYTHON:-}
if [[ -z $python ]]; then
    for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
        if command -v "$candidate" >/dev/null && suits "$candidate"; then
            python=$candidate
            break
        fi
    done
fi
if [[ -z $python ]] || ! suits "$python"; then
    say "hipscore needs Python 3.11 or newer; found ${python:-none}." \
        "Install one (Debian 12 or 13, Ubuntu 24.04: apt-get install python3 python3-venv)" \
        "or name it: make PYTHON=/path/to/python3.11 …"
    exit 1
fi

rm -rf "$target"
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$target"
    exit 0
fi

# Debian splits ensurepip off into python3-venv. An installed pip can fill the gap.
if "$python" -m venv --without-pip "$target" 2>/dev/null &&
    "$python" -m pip --python "$target/bin/python" install --quiet --no-input \
        --disable-pip-version-check pip; then
    exit 0
fi
rm -rf "$target"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
say "Cannot create a virtual environment: $python has neither ensurepip nor a pip that helps." \
    "Install one of them: apt-get install python$version-venv   (or python3-pip)"
exit 1
