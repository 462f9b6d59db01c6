#!/usr/bin/env bash
# Train a LoRA that teaches FLUX-Fill try-on trousers, skirts and dresses; --help says how.
#
# Finds Python and hands everything to launch.py beside this file. It installs nothing and changes no directory, so
# relative paths stay the user's.
# The next line is for any shell: `sh` may be one that does not know what follows.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

die() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" # also through symbolic links
root="$(dirname -- "$here")"
if [[ -n ${PYTHON:-} ]]; then
  command -v -- "$PYTHON" >/dev/null 2>&1 ||
    die "PYTHON names '$PYTHON', which cannot be run; unset it or name a Python 3.10 to 3.13"
  python=$PYTHON
elif [[ -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
else
  python=python3
  command -v python3 >/dev/null 2>&1 ||
    die "no Python was found; install Python 3.10 to 3.13 and run \`make setup\` in $root"
fi
exec "$python" "$here/launch.py" "$@"
