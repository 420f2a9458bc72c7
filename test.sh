#!/usr/bin/env bash
# Makes .venv if need be, installs, runs the tests: style, types, rooms, then pytest.
#   bash test.sh            the default set, under 10 minutes on two cores
#   bash test.sh full       with the slow ones
#   bash test.sh -k shard   arguments for pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/venv.sh dev

# One thread a process: two 2-thread processes at once slow each other down fifty-fold.
export OMP_NUM_THREADS=1
if [ "${1:-}" = full ]; then
    shift
    selection=()
else
    selection=(-m "not full")
fi
ruff check src tests bench
ruff format --check src tests bench
mypy src
lint-imports
exec pytest -n "${GROUNDUP_TEST_JOBS:-2}" --dist loadfile ${selection[@]+"${selection[@]}"} "$@"
