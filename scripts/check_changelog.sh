#!/bin/sh
# Fail unless the change since BASE adds a line to CHANGELOG.md: CI runs it on pull requests.
#   sh scripts/check_changelog.sh BASE
set -eu
base=${1:?usage: check_changelog.sh BASE}
added=$(git diff --numstat "$base"...HEAD -- CHANGELOG.md | cut -f1)
if [ "${added:-0}" -gt 0 ]; then
    echo "CHANGELOG.md: $added lines added"
    exit 0
fi
echo "CHANGELOG.md has no new entry: add one under [Unreleased] that says what users notice." >&2
exit 1
