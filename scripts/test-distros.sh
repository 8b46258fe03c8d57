#!/usr/bin/env bash
# Run the first command of the README on bare systems, as somebody new would: no compiler, no
# Python but the system's, no root. Needs root itself, and debootstrap.
# usage: scripts/test-distros.sh [--do "make TARGET …"] [SUITE...]
#
# A SUITE is a release that debootstrap knows (default: bookworm trixie forky noble). What is
# tried is the last commit. Each system is made once and kept in build/distros; every run begins
# with a fresh copy. pip's settings of this machine (PIP_*, certificates) hold in there, too.
# Prints a table in Markdown; exits 1 if anything failed. A release that cannot be fetched is
# named as not run.
set -euo pipefail
cd "$(dirname "$0")/.."

do="make demo"
if [[ ${1:-} == --do ]]; then
    do=$2
    shift 2
fi
suites=("$@")
((${#suites[@]})) || suites=(bookworm trixie forky noble)

say() { printf '%s\n' "$*" >&2; }

((EUID == 0)) || { say "making bare systems needs root: sudo make test-distros"; exit 1; }
command -v debootstrap >/dev/null || { say "missing: apt-get install debootstrap"; exit 1; }

# In a mount namespace of its own, nothing stays mounted, however this ends.
if [[ -z ${HIPSCORE_DISTROS_INSIDE:-} ]]; then
    HIPSCORE_DISTROS_INSIDE=1 exec unshare --mount "$0" --do "$do" "${suites[@]}"
fi

folder=$PWD/build/distros
mkdir -p "$folder"
packages=python3,python3-venv,make,ca-certificates

base() { # SUITE: make the system once
    local root=$folder/$1.base
    [[ -e $root/etc/os-release ]] && return
    rm -rf "$root" "$root.new"
    say "fetching $1 (once)"
    local -a more=()
    # Ubuntu keeps python3-venv and others outside its smallest component
    case $1 in noble | resolute) more=(--components=main,universe) ;; esac
    # a debootstrap that is older than the release: the way of the newest it knows
    local known=/usr/share/debootstrap/scripts
    local -a way=()
    [[ $1 == forky && ! -e $known/$1 ]] && way=("" "$known/sid")
    if ! debootstrap --variant=minbase --include="$packages" "${more[@]}" "$1" "$root.new" \
        "${way[@]}" \
        >"$folder/$1.fetch.log" 2>&1; then
        tail -n 3 "$folder/$1.fetch.log" >&2
        return 1
    fi
    mv "$root.new" "$root"
}

enter() { # ROOT COMMAND: as a user without rights, with the network and pip settings of this machine
    local root=$1 command=$2
    # shellcheck disable=SC2016 # expanded in there
    /usr/sbin/chroot --userspec=1000:1000 "$root" \
        env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/ann USER=ann LANG=C.UTF-8 \
        "${pip_settings[@]}" \
        bash -c 'cd ~/hipscore && '"$command"
}

# Of this machine: a proxy's certificates and the like. Folders of this machine are not in there.
mapfile -t pip_settings < <(env | grep -E '^PIP_(CERT|INDEX_URL|DEFAULT_TIMEOUT|PROXY|TRUSTED_HOST)=|^(https?|no)_proxy=' || true)

printf '| system | Python | pip | compiler | seconds | result |\n|---|---|---|---|--:|---|\n'
failed=0
for suite in "${suites[@]}"; do
    if ! base "$suite"; then
        printf '| %s | | | | | not run: cannot be fetched here |\n' "$suite"
        continue
    fi
    root=$folder/$suite
    # mounts of an earlier run went with its namespace
    rm -rf "$root"
    cp -a "$folder/$suite.base" "$root"
    mkdir -p "$root/home/ann/hipscore"
    git archive HEAD | tar -x -C "$root/home/ann/hipscore"
    echo 'ann:x:1000:1000::/home/ann:/bin/bash' >>"$root/etc/passwd"
    chown -R 1000:1000 "$root/home/ann"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/tmp" -o mode=1777

    # shellcheck source=/dev/null
    name=$(. "$root/etc/os-release" && printf '%s' "$PRETTY_NAME")
    python=$(enter "$root" 'python3 --version' | cut -d' ' -f2)
    compiler=$(enter "$root" 'command -v gcc cc clang' || echo none)
    began=$(date +%s.%N)
    result=passed
    enter "$root" "$do" >"$folder/$suite.log" 2>&1 || result="**failed**"
    seconds=$(awk "BEGIN { printf \"%.0f\", $(date +%s.%N) - $began }")
    pip=$(enter "$root" '.venv/bin/pip --version' 2>/dev/null | cut -d' ' -f2 || true)
    printf '| %s | %s | %s | %s | %s | %s |\n' \
        "$name" "$python" "$pip" "$compiler" "$seconds" "$result"
    if [[ $result != passed ]]; then
        failed=1
        tail -n 20 "$folder/$suite.log" >&2
    fi
    umount --recursive --lazy "$root/dev" "$root/proc" "$root/tmp" || true
done
exit $failed
