#!/bin/sh
# make lock: write requirements/*.txt, what the images install: exact versions, each with its hashes.
#   sh scripts/lock.sh        keeps the versions that still fit; UPGRADE=1 takes the newest
# They are for Linux and the images' Python, whatever this machine is, and name no package index.
set -eu
cd "$(dirname "$0")/.."
python=$(sh scripts/pick_python.sh)
tools=build/lock
[ -x "$tools/bin/uv" ] || {
    "$python" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'uv~=0.13.9'
}
header="# Written by \`make lock\`: do not edit."

compile() { # compile NAME ARGUMENT…
    name=$1
    shift
    target=requirements/$name.txt
    draft=build/lock/$name.txt
    rm -f "$draft"
    [ -n "${UPGRADE:-}" ] || [ ! -f "$target" ] || cp "$target" "$draft"
    "$tools/bin/uv" pip compile --quiet --generate-hashes --no-header --no-annotate \
        --python-version 3.12 --python-platform linux --output-file "$draft" "$@"
    { echo "$header"; grep -v '^#' "$draft"; } >"$target"
    echo "$target: $(grep -c '==' "$target") packages"
}

mkdir -p requirements
compile agent pyproject.toml --extra llama
compile router pyproject.toml --constraints requirements/agent.txt
sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml >build/lock/build.in
compile build build/lock/build.in
