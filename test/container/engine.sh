# shellcheck shell=bash disable=SC2034,SC2054,SC2154 # shares the variables of test.sh
# Sourced by test.sh: run cases in containers, isolated as on the platform and more.

exec_image=$(algorithm_image exec)
invoke_image=$(algorithm_image invoke)
server=
isolation=(--network none --read-only --cap-drop=ALL --security-opt=no-new-privileges --pids-limit=256
  --memory=8g --memory-swap=8g --shm-size=128m --tmpfs /tmp:rw,mode=1777,size=2g)
[ -z "${GPUS:-}" ] || isolation+=(--gpus "$GPUS")
case_mounts=(--volume "$work/input:/input:ro" --volume "$work/output:/output")

# Run a command in an image, with the case's files where they are here.
in_image() { # IMAGE COMMAND ARGUMENTS...
  "$engine" run --rm "${isolation[@]}" --volume "$work:$work" --entrypoint "$2" "$1" "${@:3}"
}

check_image() { # IMAGE
  local user
  user=$("$engine" image inspect --format '{{.Config.User}}' "$1" 2>/dev/null) ||
    die "there is no image $1: run ./build.sh first"
  [[ ! "$user" =~ ^(|root|0)(:.*)?$ ]] || die "$1: its user is '$user', the platform refuses root"
}

prepare() {
  local method image label
  for method in "${api_methods[@]}"; do
    image=$(algorithm_image "$method")
    check_image "$image"
    label=$("$engine" image inspect --format '{{index .Config.Labels "org.grand-challenge.api-method"}}' "$image")
    [ "$label" = "$method" ] || die "$image: its label org.grand-challenge.api-method is '$label', expected '$method'"
  done
  check_image "$evaluation_image"
  chmod 755 "$work"
  chmod 777 "$work/output" # the image's user is not this one
}

# Let this user read and remove what the image's user wrote.
share_output() { # IMAGE
  in_image "$1" find "$work/output" -mindepth 1 -exec chmod a+rwX {} +
}

exec_case() {
  local status=0
  "$engine" run --rm "${isolation[@]}" "${case_mounts[@]}" "$exec_image" >"$work/stdout" 2>"$work/stderr" || status=$?
  share_output "$exec_image"
  return "$status"
}

test_mounted_model() {
  step 'exec: the model that the platform mounts is taken'
  cp -R algorithm/model "$work/model"
  sed -i.bak 's/"version": "[^"]*"/"version": "mounted"/' "$work/model/model.json"
  chmod -R a+rX "$work/model"
  clear_output
  lay_out socket ct-image pulmonary-lobes
  local case_mounts=("${case_mounts[@]}" --volume "$work/model:/opt/ml/model:ro")
  exec_case || die "exec failed with code $?: $(tail -1 "$work/stderr")"
  check platform
  grep -q '"version": "mounted"' "$work/output/covid-19-severity.json" || die 'exec took another model than the mounted one'
}

start_server() {
  server=$name-test-$$
  "$engine" run --detach --name "$server" "${isolation[@]}" "${case_mounts[@]}" "$invoke_image" >/dev/null
}

call_server() { # [--health-only]
  "$engine" exec --interactive "$server" python3 - 4743 "$@" <test/container/call_server.py
  share_output "$invoke_image"
}

show_server_log() { [ -z "$server" ] || "$engine" logs "$server" 2>&1; }

stop_server() { [ -z "$server" ] || "$engine" rm --force "$server" >/dev/null; }

run_algorithm() { in_image "$exec_image" python3 -m algorithm "$@" && share_output "$exec_image"; }

run_script() { in_image "$exec_image" python3 "$@"; }

run_evaluation() {
  "$engine" run --rm "${isolation[@]}" --volume "$work/evaluation/input:/input:ro" --volume "$work/output:/output" \
    --volume "$work/evaluation/ground_truth:/opt/ml/input/data/ground_truth:ro" "$evaluation_image" || return
  share_output "$evaluation_image"
}
