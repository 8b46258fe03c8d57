#!/usr/bin/env bash
# Write requirements/*.lock: every package that is installed, for every supported Python, with
# exact versions and hashes, and nothing about where they were downloaded from. Only versions
# with wheels are taken, so that no machine needs a compiler. Pass --upgrade to move to newest
# versions. What is written is installed by scripts/install.sh, without resolving anything anew.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=build/lock
[[ -x $tools/bin/uv ]] || { scripts/venv.sh $tools && $tools/bin/pip install --quiet uv; }

compile() {
    local output=requirements/$1.lock
    shift
    echo "resolving $output"
    $tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --only-binary :all: --overrides requirements/overrides.in --no-header --no-annotate \
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
