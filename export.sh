#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
source .ci/common.sh

usage() {
  cat <<'END'
usage: ./export.sh [--api-method invoke|exec] [--model DIRECTORY]

Packs what grand-challenge.org takes into dist/: the algorithm image for one of the platform's ways to call a container
(invoke), a model directory as the tarball that the platform unpacks into /opt/ml/model (algorithm/model), and the
evaluation image where it was built. Then it tells how to upload them.

  CONTAINER_ENGINE   docker-compatible command (docker)
END
}

compress() { if command -v pigz >/dev/null; then pigz --stdout; else gzip --stdout; fi; }

# Write what a command prints to dist/, under its name only once it is complete.
store() { # FILE COMMAND...
  local file=$1
  shift
  "$@" | compress >"dist/.$file.partial"
  mv "dist/.$file.partial" "dist/$file"
  printf 'wrote dist/%s (%s)\n' "$file" "$(du -h "dist/$file" | cut -f1)"
}

export_model() { # DIRECTORY
  [ -f "$1/model.json" ] || die "$1 is no model directory: it holds no model.json"
  store "$model_file" tar --create --directory "$1" --owner=0 --group=0 .
}

export_image() { # IMAGE FILE
  "$engine" image inspect "$1" >/dev/null 2>&1 || die "there is no image $1: run ./build.sh first"
  store "$2" "$engine" save "$1"
}

upload_steps() {
  cat <<END

To run it on grand-challenge.org:
 1. Ask support@grand-challenge.org for the sockets it lacks, once. Inputs: ct-image (images/ct), pulmonary-lobes
    (images/pulmonary-lobes). Outputs: covid-19-lesion-segmentation (images/covid-19-lesion-segmentation, segments
    1 ground-glass, 2 consolidation, 3 mixed) and covid-19-severity (covid-19-severity.json, kind Anything), which is
    this algorithm's own and must be requested.
 2. Algorithms > Add a new algorithm, with two interfaces: {ct-image, pulmonary-lobes} and {ct-image}, both
    giving covid-19-lesion-segmentation and covid-19-severity; {ct-image} gives pulmonary-lobes too.
 3. The algorithm's Containers > Upload a container: dist/$image_file
 4. Its Models > Upload a model: dist/$model_file (only where it is not the model in the image).
END
}

api_method=invoke
model=algorithm/model
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage && exit ;;
    --api-method)
      known_api_method "${2:-}"
      api_method=$2
      shift 2
      ;;
    --model)
      model=${2:?--model needs a directory}
      shift 2
      ;;
    *) usage >&2 && exit 2 ;;
  esac
done

image_file=${name}_${version}_$api_method.tar.gz
model_file=${name}_model_$version.tar.gz
mkdir -p dist
export_model "$model"
"$engine" version >/dev/null 2>&1 || die "no image was packed: the container engine '$engine' does not answer"
export_image "$(algorithm_image "$api_method")" "$image_file"
if "$engine" image inspect "$evaluation_image" >/dev/null 2>&1; then
  export_image "$evaluation_image" "${evaluation_image%%:*}_$version.tar.gz"
fi
upload_steps
