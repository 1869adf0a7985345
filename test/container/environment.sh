# shellcheck shell=bash disable=SC2034,SC2154 # shares the variables of test.sh
# Sourced by test.sh where there is no container engine: the same cases in the virtual environment .venv.

python=$PWD/.venv/bin/python
server_pid=

prepare() {
  [ -x "$python" ] || die 'there is no .venv: run ./build.sh first'
  printf 'no container engine: the case runs in .venv; the images and their isolation are not tested\n'
}

exec_case() {
  "$python" -m algorithm exec --input-dir "$work/input" --output-dir "$work/output" >"$work/stdout" 2>"$work/stderr"
}

test_mounted_model() { :; } # there is nothing to mount it in

start_server() {
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  "$python" -m algorithm serve --host 127.0.0.1 --port "$port" --input-dir "$work/input" --output-dir "$work/output" \
    >"$work/server.log" 2>&1 &
  server_pid=$!
}

call_server() { # [--health-only]
  "$python" test/container/call_server.py "$port" "$@"
}

show_server_log() { [ -z "$server_pid" ] || cat "$work/server.log"; }

stop_server() { [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null || true; }

run_algorithm() { "$python" -m algorithm "$@"; }

run_script() { "$python" "$@"; }

run_evaluation() {
  "$python" -m evaluation challenge --input-dir "$work/evaluation/input" --output-dir "$work/output" \
    --ground-truth-dir "$work/evaluation/ground_truth"
}
