#!/usr/bin/env bash
# Write requirements/*.lock: exact versions with hashes, for every supported Python, and
# nothing about where they were downloaded from. Pass --upgrade to move to newest versions.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=build/lock
[[ -x $tools/bin/uv ]] || { scripts/venv.sh $tools && $tools/bin/pip install --quiet uv; }

compile() {
    local output=requirements/$1.lock
    shift
    echo "resolving $output"
    $tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate \
        --output-file "$output" "$@"
}
compile build "$@" requirements/build.in
compile run "$@" pyproject.toml --extra cpu
compile gpu "$@" pyproject.toml --extra gpu --constraint requirements/run.lock
compile dev "$@" pyproject.toml --extra cpu --extra dev --constraint requirements/run.lock

if grep -nE '://|^-|^ *--(index|find|extra)|@ ' requirements/*.lock; then
    echo "a lock names a place (above): it must hold names, versions and hashes only" >&2
    exit 1
fi
