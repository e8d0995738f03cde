#!/bin/sh
# make lock: write requirements/*.txt, what the images install: exact versions, each with its hashes; and
# local_agent/constraints/*.txt, what the environments of engines are held to.
#   sh scripts/lock.sh        keeps the versions that still fit; UPGRADE=1 takes the newest
# The first are for Linux and the images' Python, whatever this machine is. None names a package index.
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

# what the environments of engines are held to: one file for all systems and Pythons, by markers. No hashes, as
# PyTorch's own index and other builds of the same version have to do as well.
engines() { "${VENV:-.venv}/bin/python" -m scripts.engine_requirements "$@"; }
lock_engine() { # lock_engine NAME
    engines "$1" >"$tools/$1.in"
    target=local_agent/constraints/$1.txt
    [ -n "${UPGRADE:-}" ] || [ ! -f "$target" ] || cp "$target" "$tools/$1.txt"
    MACOSX_DEPLOYMENT_TARGET=15.0 "$tools/bin/uv" pip compile --quiet --universal --no-build --no-header --no-annotate \
        --python-version "$(engines "$1" pythons | head -n 1)" --output-file "$tools/$1.txt" "$tools/$1.in"
    { echo "$header"; grep -v -e '^#' -e "'win32'\$" -e "== 'emscripten'\$" "$tools/$1.txt"; } >"$target"
    echo "$target: $(grep -c '==' "$target") packages"
    # the markers promise more than there are packages for: each system is resolved once more, held to them
    for platform in aarch64-apple-darwin x86_64-manylinux_2_40 aarch64-manylinux_2_40; do
        grep -q -v "; sys_platform == 'darwin'\$" "$tools/$1.in" || [ $platform = aarch64-apple-darwin ] || continue
        for version in $(engines "$1" pythons); do
            MACOSX_DEPLOYMENT_TARGET=15.0 "$tools/bin/uv" pip compile --quiet --no-build --no-header --no-annotate \
                --python-platform $platform --python-version "$version" --constraints "$target" "$tools/$1.in" >/dev/null ||
                { echo "$1 has no packages for Python $version on $platform" >&2; exit 1; }
        done
    done
}
mkdir -p local_agent/constraints
for name in $(engines); do
    lock_engine "$name"
done
