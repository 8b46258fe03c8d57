#!/usr/bin/env bash
# Lint and all tests, in parts that run side by side: half of them wait for servers while the others compute.
# usage: scripts/test.sh VENV
#
# What a part prints comes when it has ended. Exits 1 if one of them failed.
set -uo pipefail
cd "$(dirname "$0")/.."
venv=$1
bin=$venv/bin
logs=$venv/logs
mkdir -p "$logs"
rm -f "$logs"/* .coverage .coverage.*

# Coverage doubles the time: what analyses whole studies only to see that it goes well is left out.
bare=(tests/contract/test_damaged_headers.py tests/unit/test_boxes.py)
covered() {
    "$bin/pytest" tests/unit tests/contract "${bare[@]/#/--deselect=}" --cov --cov-report=
}
computed() { "$bin/pytest" tests/models "${bare[@]}"; }
served() { "$bin/pytest" tests/integration/test_[a-o]*.py tests/pages; }
waited() { "$bin/pytest" tests/integration/test_[p-z]*.py tests/fuzz; }
linted() { make VENV="$venv" lint; }
whole() { "$bin/pytest" tests/e2e; }
faults() { "$bin/python" -m tests.faults --fast; }

declare -A part=()
run() { # FUNCTION...: one after the other, in the background
    local name=$1
    {
        failed=0
        for each in "$@"; do "$each" || failed=1; done
        exit $failed
    } >"$logs/$name.log" 2>&1 </dev/null &
    part[$!]=$name
}
trap 'kill "${!part[@]}" 2>/dev/null' INT TERM
run served
run waited faults
run linted
run covered
run whole computed

failed=()
while ((${#part[@]})); do
    wait -n -p ended "${!part[@]}" || failed+=("${part[$ended]}")
    cat "$logs/${part[$ended]}.log"
    unset "part[$ended]"
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]} (above, and in $logs)" >&2
    exit 1
fi
