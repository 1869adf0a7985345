# shellcheck shell=bash disable=SC2034 # what is not used here is used where this is sourced
# Sourced by build.sh, test.sh and export.sh at the top of the repository: names, the container engine, environments.

name=covid-lesion-dram
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' algorithm/__init__.py)
engine=${CONTAINER_ENGINE:-docker}
api_methods=(invoke exec)
evaluation_image=$name-evaluation:$version

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

[ -n "$version" ] || die 'no version: algorithm/__init__.py holds no line __version__ = "..."'

algorithm_image() { # API_METHOD
  printf '%s:%s-%s\n' "$name" "$version" "$1"
}

known_api_method() { # API_METHOD
  [[ " ${api_methods[*]} " == *" $1 "* ]] || die "API method is '$1', expected one of: ${api_methods[*]}"
}

# Whether containers can be used here. An engine that was asked for by name must answer.
engine_answers() {
  "$engine" version >/dev/null 2>&1 && return
  [ -z "${CONTAINER_ENGINE:-}" ] || die "the container engine CONTAINER_ENGINE=$engine does not answer '$engine version'"
  return 1
}

# Make or refresh a virtual environment; nothing happens when it is up to date.
make_environment() { # DIRECTORY REQUIREMENTS_FILE...
  local python=${PYTHON:-python3} stamp file requirements=()
  for file in "${@:2}"; do requirements+=(-r "$file"); done
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$python" --version 2>&1 || true) is not enough: set PYTHON to Python 3.10 or newer"
  stamp=$({ "$python" -c 'import sys; print(sys.version, sys.base_prefix)'; cat ./*requirements*.txt ./*/requirements*.txt constraints.txt; } |
    cksum)
  [ "$stamp" != "$(cat "$1/stamp" 2>/dev/null || true)" ] || return 0
  printf 'installing %s into %s\n' "${*:2}" "$1"
  "$python" -m venv --clear "$1"
  "$1/bin/python" -m pip install -qq --disable-pip-version-check "${requirements[@]}" -c constraints.txt
  printf '%s\n' "$stamp" >"$1/stamp"
}
