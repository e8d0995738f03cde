#!/bin/sh
# Print the path of the newest usable CPython from 3.10 to 3.14, or say what is missing.
#   sh scripts/pick_python.sh          the newest on PATH; PYTHON=… is taken instead if it is usable
#   sh scripts/pick_python.sh --all    every usable one, "VERSION PATH" a line, newest first,
#                                      pyenv's versions among them
# A name on PATH proves nothing (pyenv's shims fail, Debian's python3 may lack venv): each is run.
set -u
names="python3.14 python3.13 python3.12 python3.11 python3.10"

# Prints "ok VERSION PATH", or what is wrong with this interpreter.
probe() {
    "$1" - 2>/dev/null <<'EOF' || echo "does not run"
import sys

def judge():
    version = "%d.%d" % sys.version_info[:2]
    if sys.version_info < (3, 10):
        return "is Python %s, older than 3.10" % version
    if sys.version_info >= (3, 15):
        return "is Python %s, newer than 3.14, for which there are wheels" % version
    if sys.implementation.name != "cpython":
        return "is %s; CPython is needed" % sys.implementation.name
    import sysconfig
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "is a free-threaded build; an ordinary one is needed"
    try:
        import ensurepip, ssl, sqlite3, venv
    except ImportError as missing:
        hint = " (on Debian and Ubuntu: apt install python%s-venv)" % version
        return "lacks the module %s%s" % (missing.name, hint if missing.name == "ensurepip" else "")
    return "ok %s %s" % (version, getattr(sys, "_base_executable", "") or sys.executable)

sys.stdout.write(judge() + "\n")
EOF
}

pyenv_pythons() {
    for found in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[0-4]*/bin/python; do
        [ -x "$found" ] && echo "$found"
    done
}

if [ "${1:-}" = "--all" ]; then
    for name in $names python3 $(pyenv_pythons); do
        case $(probe "$name") in
            ok\ *) probe "$name" | cut -d' ' -f2- ;;
        esac
    done | sort -t. -k2,2nr | awk '!seen[$1]++'
    exit 0
fi

if [ -n "${PYTHON:-}" ]; then
    answer=$(probe "$PYTHON")
    case $answer in
        ok\ *) echo "${answer#ok * }"; exit 0 ;;
    esac
    echo "PYTHON=$PYTHON $answer." >&2
    exit 1
fi

reasons=""
for name in $names python3; do
    command -v "$name" >/dev/null 2>&1 || continue
    answer=$(probe "$name")
    case $answer in
        ok\ *) echo "${answer#ok * }"; exit 0 ;;
        *) reasons="$reasons  $name $answer
" ;;
    esac
done
{
    echo "A CPython from 3.10 to 3.14 is needed, and none was found on PATH."
    printf '%s' "$reasons"
    echo "Install one (macOS: brew install python@3.13; Debian, Ubuntu: apt install python3 python3-venv),"
    echo "or name one: PYTHON=/path/to/python3 make dev"
} >&2
exit 1
