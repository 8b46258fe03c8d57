#!/usr/bin/env bash
# Install locks into a virtual environment: exactly what they name, nothing resolved anew.
# usage: scripts/install.sh VENV LOCK...      (arguments for pip follow in PIP_* variables)
#
# A resolver looks at every release of the day, and some of them take one that the lock does not
# name. Here pip downloads the named wheels, compares their hashes, and unpacks them; that nothing
# is missing is checked afterwards. No source is built, so no compiler is needed.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
pip=("$1/bin/python" -m pip --disable-pip-version-check --no-input)
shift

"${pip[@]}" install --quiet --no-deps --require-hashes --only-binary :all: "${@/#/--requirement=}"

# "highdicom 0.27.0 requires …": the version is nobody's business here
complaints=$("${pip[@]}" check | grep -v '^No broken requirements found' |
    sed -E 's/^([^ ]+) [^ ]+ (requires|has)/\1 \2/' |
    grep -vxF -f <(grep -v '^#' "$here/requirements/unmet.txt") || true)
if [[ -n $complaints ]]; then
    printf 'the locks are not complete for %s:\n%s\n' "$("${pip[@]}" --version)" "$complaints" >&2
    exit 1
fi
