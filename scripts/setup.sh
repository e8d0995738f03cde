#!/bin/sh
# make setup: find a Python and let scripts/setup_venv.py bring $VENV up to date.
#   sh scripts/setup.sh run|dev      reads VENV and PYTHON
set -eu
here=$(dirname "$0")
venv=${VENV:-.venv}

# The environment's own interpreter, if it works, answers at once when there is nothing to do.
if [ -z "${PYTHON:-}" ] && [ -x "$venv/bin/python" ] &&
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    python=$venv/bin/python
else
    python=$(sh "$here/pick_python.sh") || exit 1
fi
exec "$python" "$here/setup_venv.py" --venv "$venv" "${1:-run}"
