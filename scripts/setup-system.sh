#!/usr/bin/env bash
# Install the real parts the tests run against. Does nothing when all of them are there;
# fails, with the command to run, where it may not install.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

declare -A package_of=(
    [Orthanc]=orthanc
    [storescp]=dcmtk
    [dsrdump]=dcmtk
    [dciodvfy]=dicom3tools
    [postgres]=postgresql
)

# Found by a file where they bring no program of their own.
declare -A file_of=(
    [orthanc-dicomweb]=/usr/share/orthanc/plugins/libOrthancDicomWeb.so
    [chromium]=/usr/bin/chromium
)

installed() {
    command -v "$1" >/dev/null && return
    compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null # Debian keeps these off PATH
}

missing() {
    local program
    for program in "${!package_of[@]}"; do
        installed "$program" || printf '%s\n' "${package_of[$program]}"
    done | sort -u
    local package
    for package in "${!file_of[@]}"; do
        [[ -e ${file_of[$package]} ]] || printf '%s\n' "$package"
    done | sort
}

mapfile -t packages < <(missing)
((${#packages[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing: ${packages[*]} (Debian's names). There is no apt-get here: install them by" \
        "your system's own means and run this again." >&2
    exit 1
fi
as_root=()
if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
        echo "missing: ${packages[*]}. Run: sudo apt-get install -y ${packages[*]}" >&2
        exit 1
    fi
    as_root=(sudo -n)
fi

# The packages would start servers on ports 4242, 8042 and 5432; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

echo "installing ${packages[*]}"
log=$(mktemp)
apt() {
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "apt-get $* failed; the end of its output is above" >&2
        exit 1
    fi
}
apt update
apt install --no-install-recommends "${packages[@]}"
rm -f "$log"

mapfile -t packages < <(missing)
if ((${#packages[@]})); then
    echo "still missing after the installation: ${packages[*]}" >&2
    exit 1
fi
