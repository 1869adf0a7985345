#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
source .ci/common.sh

usage() {
  cat <<'END'
usage: ./test.sh                     run the sample case as the platform does and check what comes out
       ./test.sh --update-expected   make what comes out the expected outputs of the sample case
       ./test.sh --unit [ARGS...]    lint, type check and unit tests; ARGS go to pytest

The sample case lies in test/sample/: ct.mha, lobes.mha, expected/. It runs in the images that ./build.sh made, or in
.venv where no container engine answers, through every interface and both ways of the platform to call a container.

  CONTAINER_ENGINE   docker-compatible command (docker)
  GPUS               what the containers may see of them, for instance: all (none)
  PYTHON             Python 3.10 or newer (python3)
END
}

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

lay_out() { # KEY SOCKETS...
  "${PYTHON:-python3}" test/container/make_input.py "$work/sample" "$work/input" --key "$1" "${@:2}"
  chmod -R a+rX "$work/input"
}

clear_output() { find "$work/output" -mindepth 1 -delete; }

check() { # LAYOUT [--expected DIRECTORY]
  run_script "$work/scripts/check_output.py" "$work/output" --layout "$1" --ct "$work/sample/ct.mha" "${@:2}"
}

check_found_lobes() { check platform --lobes "$work/sample/lobes.mha"; }

check_expected() { check "$1" --expected "$work/sample/expected"; }

# A case is refused with one line, which the platform shows to the user, and without outputs.
check_refusal() { # STDERR_OR_ANSWER
  [ "$(grep -c . "$1")" = 1 ] || die "the case was refused with something else than one line: $(cat "$1")"
  [ -z "$(find "$work/output" -mindepth 1 -print -quit)" ] || die 'the refused case left outputs'
  printf 'refused: %s\n' "$(cat "$1")"
}

test_exec() {
  step 'exec: CT and lobes'
  clear_output
  lay_out socket ct-image pulmonary-lobes
  exec_case || die "exec failed with code $?: $(tail -1 "$work/stderr")"
  check_expected platform
  step 'exec: a CT without lobes'
  clear_output
  lay_out interface ct-image
  exec_case || die "exec failed with code $?: $(tail -1 "$work/stderr")"
  check_found_lobes
  step 'exec: lobes without a CT are refused'
  clear_output
  lay_out interface pulmonary-lobes
  ! exec_case || die 'exec accepted lobes without a CT'
  check_refusal "$work/stderr"
}

invoke_case() { # EXPECTED_STATUS KEY SOCKETS...
  clear_output
  lay_out "${@:2}"
  call_server >"$work/answer"
  grep -q "^$1 " "$work/answer" || die "POST /invoke answered '$(cat "$work/answer")', expected $1"
}

test_invoke() {
  step 'invoke: the server is healthy before there is any input'
  clear_output
  find "$work/input" -mindepth 1 -delete
  start_server
  call_server --health-only
  step 'invoke: CT and lobes'
  invoke_case 201 interface ct-image pulmonary-lobes
  check_expected platform
  step 'invoke: lobes without a CT are refused'
  invoke_case 500 socket pulmonary-lobes
  check_refusal "$work/answer"
  step 'invoke: a CT without lobes'
  invoke_case 201 socket ct-image
  check_found_lobes
  step 'invoke: the same server takes the next case'
  invoke_case 201 socket ct-image pulmonary-lobes
  check_expected platform
  stop_server
}

segment_sample() {
  step 'segment: the command for people'
  clear_output
  run_algorithm segment "$work/sample/ct.mha" --lobes "$work/sample/lobes.mha" --output "$work/output"
}

keep_segmentation() {
  check_expected segment
  mkdir -p test/output
  cp "$work"/output/* test/output/
  printf 'overview picture: %s/test/output/overview.png\n' "$PWD"
}

update_expected() {
  segment_sample
  check segment
  mkdir -p test/sample/expected
  cp "$work/output/lesions.mha" "$work/output/severity.json" test/sample/expected/
}

test_evaluation() {
  step "evaluation: the algorithm's output as a submission"
  clear_output
  "${PYTHON:-python3}" test/container/evaluation_case.py lay-out \
    "$work/sample" test/output/lesions.mha "$work/evaluation/input" "$work/evaluation/ground_truth"
  chmod -R a+rX "$work/evaluation"
  run_evaluation
  "${PYTHON:-python3}" test/container/evaluation_case.py check "$work/output/metrics.json"
  step 'evaluation: a damaged submission is refused'
  clear_output
  "${PYTHON:-python3}" test/container/evaluation_case.py spoil "$work/evaluation/input"
  ! run_evaluation 2>"$work/stderr" || die 'evaluation: a truncated mask was accepted'
  [ ! -e "$work/output/metrics.json" ] || die 'evaluation: metrics were written for a truncated mask'
  "${PYTHON:-python3}" test/container/evaluation_case.py check-refusal "$work/stderr"
}

clean_up() {
  local status=$?
  [ "$status" -eq 0 ] || show_server_log | tail -20 >&2
  stop_server
  rm -rf "$work"
}

open_work() {
  work=$(mktemp -d)
  mkdir "$work/input" "$work/output"
  cp -R test/sample "$work/sample"
  cp -R test/container "$work/scripts"
  chmod -R a+rX "$work"
  # shellcheck source=/dev/null
  if engine_answers; then source test/container/engine.sh; else source test/container/environment.sh; fi
  trap clean_up EXIT
  prepare
}

test_sample() {
  open_work
  test_exec
  test_mounted_model
  test_invoke
  segment_sample
  keep_segmentation
  test_evaluation
  step 'passed'
}

test_units() { # PYTEST_ARGUMENTS...
  make_environment .venv-test test/requirements.txt
  export PATH=$PWD/.venv-test/bin:$PATH
  ruff check .
  ruff format --check .
  mypy
  pytest "$@"
}

case "${1:-}" in
  '') test_sample ;;
  --unit) test_units "${@:2}" ;;
  --update-expected) open_work && update_expected ;;
  -h | --help) usage ;;
  *) usage >&2 && exit 2 ;;
esac
