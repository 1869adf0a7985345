#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
source .ci/common.sh

usage() {
  cat <<'END'
usage: ./build.sh [--api-method invoke|exec]

Builds the algorithm image for both of the platform's ways to call a container (or for the one named), and the
evaluation image. Where no container engine answers it makes the virtual environment .venv instead, in which
`.venv/bin/python -m algorithm` and `-m evaluation` run.

  CONTAINER_ENGINE   docker-compatible command (docker)
  PYTHON             Python 3.10 or newer, for the virtual environment (python3)
END
}

build_algorithm() { # API_METHOD
  "$engine" build --platform linux/amd64 --target "$1" --build-arg VERSION="$version" --tag "$(algorithm_image "$1")" .
  printf 'built %s\n' "$(algorithm_image "$1")"
}

build_evaluation() {
  "$engine" build --platform linux/amd64 --build-arg VERSION="$version" --tag "$evaluation_image" evaluation
  printf 'built %s\n' "$evaluation_image"
}

while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage && exit ;;
    --api-method)
      known_api_method "${2:-}"
      api_methods=("$2")
      shift 2
      ;;
    *) usage >&2 && exit 2 ;;
  esac
done

if engine_answers; then
  for method in "${api_methods[@]}"; do build_algorithm "$method"; done
  build_evaluation
else
  make_environment .venv requirements.txt evaluation/requirements.txt
  printf 'no container engine: no image was built, .venv is ready\n'
fi
