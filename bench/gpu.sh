#!/usr/bin/env bash
# Build, check and timing on one GPU in one call of under 9 minutes; prints one table (docs/gpu.md).
#
#     bash bench/gpu.sh                 # with what .gpu holds: .gpu/whl (wheels), .gpu/nanoGPT, .gpu/litgpt
#     bash bench/gpu.sh --dry           # the whole plan on a CPU with tiny shapes, under 2 minutes
#     bash bench/gpu.sh --pack 3.12     # on a machine with a network: fill .gpu/whl for a GPU machine with that Python
#
# Everything else is handed to bench/gpu.py (--help lists it). PYTHON chooses the interpreter, OUT a folder for
# gpu.md (what is printed) and gpu.log (the end of every process's log).
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
WHEELS=.gpu/whl

if [ "${1:-}" = --pack ]; then
    # What the engine imports and a machine with torch alone may lack, in the versions installed here; and torchao.
    # Nothing here may bring a torch of its own: --no-deps.
    mkdir -p $WHEELS && rm -f $WHEELS/*.whl && echo '*' >.gpu/.gitignore
    names=$("$PYTHON" - <<'END'
from importlib.metadata import version
for name in ("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions", "rich",
             "markdown-it-py", "mdurl", "Pygments", "PyYAML"):
    print(f"{name}=={version(name)}")
END
    ) || exit 1
    platforms=""
    for tag in manylinux_2_28 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
        platforms="$platforms --platform ${tag}_x86_64"
    done
    # shellcheck disable=SC2086
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "${2:-3.12}" \
        $platforms -d $WHEELS $names "torchao==0.18.0" || exit 1
    du -sh $WHEELS
    exit
fi

START=$(date +%s)
if compgen -G "$WHEELS/*.whl" >/dev/null && [ "${1:-}" != --dry ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" $WHEELS/*.whl ||
        echo "some wheels did not install: see above" >&2
    PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD/src:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}
# On a CPU six processes of two threads each would wait for one another.
[ "${1:-}" = --dry ] && export OMP_NUM_THREADS=1
for peer in nanoGPT litgpt; do
    name=$(echo $peer | tr '[:upper:]' '[:lower:]')
    [ -d .gpu/$peer ] && set -- "$@" "--$name" ".gpu/$peer$([ -f .gpu/$peer.commit ] && echo "@$(cat .gpu/$peer.commit)")"
done
logs=$(mktemp -d)
OUT=${OUT:-$logs}
mkdir -p "$OUT"
timeout -k 3 535 "$PYTHON" bench/gpu.py --begun "$START" --logs "$logs" "$@" | tee "$OUT/gpu.md"
status=${PIPESTATUS[0]}
tail -n 80 "$logs"/*.log >"$OUT/gpu.log" # of every contestant what it printed last, in one file
exit "$status"
