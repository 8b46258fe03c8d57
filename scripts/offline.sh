#!/usr/bin/env bash
# Write an archive that installs hipscore on a machine without any network: all wheels of the
# runtime lock for one Python, hipscore with its networks, the locks, an installer, checksums, a
# bill of materials (CycloneDX) and the list of licences.
# usage: scripts/offline.sh VENV          (with hipscore's development tools)
#
# The Python of VENV is the one the archive is for: make VENV=… PYTHON=… offline for another.
# Prints the name of the archive.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1/bin/python
pip=("$python" -m pip --disable-pip-version-check --no-input --quiet)

# shellcheck disable=SC2016
read -r version tag < <("$python" -c '
import sys, sysconfig
from importlib.metadata import version
python = "cp{}{}".format(*sys.version_info)
print(version("hipscore"), python + "-" + sysconfig.get_platform().replace("-", "_"))')
name=hipscore-$version-offline-$tag
root=build/offline/$name
rm -rf build/offline
mkdir -p "$root/scripts" "$root/requirements" dist

"${pip[@]}" download --no-deps --require-hashes --only-binary :all: --dest "$root/wheels" \
    --requirement requirements/run.lock
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$root/wheels" .
wheel=("$root"/wheels/hipscore-*.whl)
printf 'hipscore==%s --hash=sha256:%s\n' "$version" "$(sha256sum "${wheel[0]}" | cut -d' ' -f1)" \
    >"$root/requirements/hipscore.lock"

cp LICENSE "$root"
cp deploy/offline/install.sh deploy/offline/README.md "$root"
cp scripts/install.sh scripts/venv.sh "$root/scripts"
cp requirements/run.lock requirements/unmet.txt "$root/requirements"
printf '%s\n' "${tag%%-*}" >"$root/python"

# Installed as it will be there: what the bill names is what this archive brings.
(cd "$root" && PYTHON=$(readlink -f "$OLDPWD/$python") ./install.sh ../venv >/dev/null)
"$python" scripts/bill.py --python build/offline/venv/bin/python --wheels "$root/wheels" \
    --out "$root" >&2
(cd "$root" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)

archive=dist/$name.tar
tar --create --file "$archive" --directory build/offline --sort=name --owner=0 --group=0 \
    --numeric-owner "$name"
(cd dist && sha256sum "$name.tar" >"$name.tar.sha256")
rm -rf build/offline
echo "$archive"
