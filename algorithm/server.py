"""The platform's way to call a container that stays up: a health check, and one case at a time."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from algorithm.errors import InputError, one_line
from algorithm.job import INPUT_DIR, OUTPUT_DIR, Segmenter, run_case

SHUTDOWN_S = 2

log = logging.getLogger(__name__)


def create_app(segmenter: Segmenter, input_dir: Path = INPUT_DIR, output_dir: Path = OUTPUT_DIR) -> FastAPI:
    """The application for a loaded segmenter.

    `GET /health` answers 200. `POST /invoke` processes the case that lies in the input folder and answers 201, or 500
    with the reason, which is also the last line on stderr; the application is ready for the next case either way.
    """
    app = FastAPI(title="COVID-19 lesion segmentation", openapi_url=None)
    one_case = threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/invoke")
    def invoke() -> JSONResponse:
        try:
            with one_case:
                run_case(segmenter, input_dir, output_dir)
        except Exception as error:
            if not isinstance(error, InputError):
                log.exception("unexpected error")
            line = one_line(error)
            print(line, file=sys.stderr, flush=True)
            return JSONResponse({"detail": line}, status_code=500)
        return JSONResponse({"detail": "done"}, status_code=201)

    return app


def serve(app: FastAPI, *, host: str, port: int) -> None:
    """Serve until SIGTERM, which ends the process within 5 s even in the middle of a case.

    Logs go where the root logger's go.

    Raises:
        InputError: the port is taken.
    """
    config = uvicorn.Config(app, host=host, port=port, log_config=None, timeout_graceful_shutdown=SHUTDOWN_S)
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:
        raise InputError(f"cannot listen on {host}:{port}, expected a free port") from error
    logging.shutdown()
    os._exit(128 + signal.SIGTERM)  # an unfinished case runs in a thread, which an orderly exit would wait for
