#!/bin/sh
# make sbom: what each image installs from the package index, hash by hash: CycloneDX 1.6, JSON.
#   sh scripts/sbom.sh [FOLDER]        one file for the router, one for the agent, into dist/
# They are the locks that the images are built from (requirements/), so the same on every machine. Who installs the
# wheel alone has the router's packages, with its extra `llama` the agent's.
set -eu
cd "$(dirname "$0")/.."
into=${1:-dist}
tools=build/sbom
program=$tools/bin/cyclonedx-py
[ -x "$program" ] || {
    python=$(sh scripts/pick_python.sh)
    "$python" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom~=7.5'
}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' shared/__init__.py)
# the tool reads what is described from pyproject.toml, where the version is not written
sed "s/^dynamic = .*/version = \"${version:?}\"/" pyproject.toml >"$tools/pyproject.toml"

mkdir -p "$into"
for name in router agent; do
    file=$into/intelligent_inference_router-$version-$name.cdx.json
    PYTHONWARNINGS=ignore "$program" requirements --output-reproducible --spec-version 1.6 --output-format JSON \
        --pyproject "$tools/pyproject.toml" --mc-type application --output-file "$file" "requirements/$name.txt"
    echo "$file"
done
