from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from algorithm.errors import InputError
from algorithm.server import create_app, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def client(fake_segmenter, input_dir, output_dir) -> TestClient:
    return TestClient(create_app(fake_segmenter, input_dir, output_dir))


def test_health(client):
    assert client.get("/health").status_code == 200


def test_invoke(client, output_dir):
    assert client.post("/invoke").status_code == 201
    assert (output_dir / "covid-19-severity.json").is_file()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("the scan is empty"), "the scan is empty"),
        (RuntimeError("CUDA\nout of memory"), "Error: RuntimeError: CUDA out of memory"),
        (MemoryError(), "Error: MemoryError"),
    ],
)
def test_failure_is_told_and_survived(client, fake_segmenter, output_dir, capsys, error, line):
    fake_segmenter.error = error
    response = client.post("/invoke")
    assert response.status_code == 500
    assert response.json() == {"detail": line}
    assert capsys.readouterr().err == line + "\n"
    assert not (output_dir / "covid-19-severity.json").exists()
    fake_segmenter.error = None
    assert client.post("/invoke").status_code == 201


def test_one_case_at_a_time_and_healthy_meanwhile(client, fake_segmenter):
    running, peak, healthy = [], [], []

    def work():
        running.append(1)
        peak.append(len(running))
        healthy.append(client.get("/health").status_code)
        time.sleep(0.1)
        running.pop()

    fake_segmenter.before = work
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(client.post("/invoke").status_code)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [201, 201, 201]
    assert max(peak) == 1
    assert healthy == [200, 200, 200]


def test_taken_port(fake_segmenter):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}, expected a free port"):
            serve(create_app(fake_segmenter), host="127.0.0.1", port=port)


def test_sigterm_ends_the_process_in_the_middle_of_a_case(input_dir, tmp_path):
    script = textwrap.dedent("""
        import logging, sys, time
        from pathlib import Path
        from algorithm.server import create_app, serve

        class Slow:
            def segment(self, ct, lobes, *, progress=None):
                print("segmenting", flush=True)
                time.sleep(60)

        logging.basicConfig(stream=sys.stdout, level=logging.INFO)
        serve(create_app(Slow(), Path(sys.argv[1]), Path(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[3]))
    """)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(input_dir), str(tmp_path / "output"), str(port)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    caller = threading.Thread(target=lambda: _post(f"http://127.0.0.1:{port}/invoke"))
    try:
        lines = iter(process.stdout.readline, "")
        assert any("Uvicorn running" in line for line in lines)
        caller.start()
        assert any("segmenting" in line for line in lines)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=5)
        assert time.monotonic() - started < 5
        assert process.returncode != 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
    caller.join()


def _post(url: str) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30).close()
    except (urllib.error.URLError, ConnectionError):
        pass
