#!/usr/bin/env bash
# Install an offline archive and run the demo in a network namespace that has nothing but its own
# loopback. Needs root, and iproute2.
# usage: scripts/test-offline.sh ARCHIVE
set -euo pipefail
((EUID == 0)) || { echo "a network namespace needs root: sudo make test-offline" >&2; exit 1; }
archive=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-}

unshare --net env -i PATH="$PATH" HOME="$work" LANG=C.UTF-8 PIP_NO_CACHE_DIR=1 \
    ${python:+PYTHON="$python"} bash -euo pipefail -c '
    cd "$HOME"
    ip link set lo up
    if python3 -c "import socket; socket.create_connection((\"192.0.2.1\", 80), 2)" 2>/dev/null; then
        echo "there is a network in here" >&2; exit 1
    fi
    tar -xf "$1"
    began=$(date +%s%N)
    ./hipscore-*/install.sh hipscore
    installed=$(date +%s%N)
    hipscore/bin/hipscore demo
    ended=$(date +%s%N)
    printf "%s: %d MB, installed in %d s, demo in %d s, without a network\n" "${1##*/}" \
        $(($(stat -c %s "$1") / 1000000)) $(((installed - began) / 1000000000)) \
        $(((ended - installed) / 1000000000))
' - "$archive"
