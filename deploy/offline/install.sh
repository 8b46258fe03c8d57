#!/usr/bin/env bash
# Install hipscore from this folder; no network is asked.
# usage: ./install.sh [FOLDER]      FOLDER is made, default: ./hipscore
#                                   PYTHON=… chooses the interpreter
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-hipscore}

say() { printf '%s\n' "$*" >&2; }

[[ ! -e $target ]] || { say "$target exists: name another folder, or move it away"; exit 1; }
if [[ -e $here/SHA256SUMS ]]; then
    (cd "$here" && sha256sum --check --quiet SHA256SUMS) ||
        { say "this folder is damaged: copy it again"; exit 1; }
fi

# The wheels are of one Python: prefer it where there are several.
wanted=$(<"$here/python")
minor=${wanted#cp3}
if [[ -z ${PYTHON:-} ]] && command -v "python3.$minor" >/dev/null; then
    export PYTHON=python3.$minor
fi
"$here/scripts/venv.sh" "$target"
if ! "$target/bin/python" -c "import sys; sys.exit(sys.version_info[:2] != (3, $minor))"; then
    say "these wheels are of Python 3.$minor, and this is $("$target/bin/python" --version):" \
        "install python3.$minor, or make an archive with that Python (make offline)"
    rm -rf "$target"
    exit 1
fi

export PIP_NO_INDEX=1 PIP_FIND_LINKS=$here/wheels PIP_CONFIG_FILE=/dev/null
unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL
"$here/scripts/install.sh" "$target" "$here/requirements/run.lock" "$here/requirements/hipscore.lock"
"$target/bin/hipscore" --version
say "installed into $target; try: $target/bin/hipscore demo"
