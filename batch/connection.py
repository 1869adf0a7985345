"""The connection to the platform: the only place that knows gcapi."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gcapi
import httpx
from gcapi.check_version import UnsupportedVersionError
from gcapi.exceptions import GCAPIError, ObjectNotFound
from gcapi.models import ComponentInterfaceValuePostRequest
from gcapi.retries import SelectiveBackoffStrategy

from batch.cases import Case, require_usable_name
from batch.errors import InputError, PlatformError, TokenRefusedError, without_queries
from batch.manifest import ENDED

TOKEN_VARIABLE = "GRAND_CHALLENGE_AUTHORIZATION"  # noqa: S105 (the variable's name, not a token)
FIRST_DELAY_S = 0.1
MOST_REPEATS = 8

_FAILURES = (httpx.HTTPError, GCAPIError, KeyError, TypeError, ValueError, RuntimeError)
"""What the client raises when the platform refuses, does not answer, or answers with something else."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm on the platform; the slugs of the inputs of each of its interfaces."""

    pk: str
    api_url: str
    interfaces: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Lookup:
    """Whether a job was started.

    Attributes:
        job: the job, if there is one.
        is_certain: whether there is none if there is no `job`; the inputs of a new job take a while to be named.
    """

    job: Any | None
    is_certain: bool


class Connection:
    """What is asked of the platform. Every call may raise `PlatformError` or `TokenRefusedError`."""

    def __init__(self, url: str) -> None:
        """Connect with the token in the environment; asks the platform whether this gcapi is recent enough.

        Args:
            url: of the platform's API.

        Raises:
            InputError: the token is missing, or the platform refuses or does not answer.
        """
        _require_token()
        self._repeated_codes: type[SelectiveBackoffStrategy] = SelectiveBackoffStrategy
        try:
            self._client = self._open(url)
        except UnsupportedVersionError as error:
            reason = str(error).partition(" Upgrade via")[0]  # what follows is a template that gcapi does not fill in
            raise InputError(f"{url}: gcapi is too old for the platform: {reason} Update this program") from error
        except _FAILURES as error:
            raise InputError(f"{url}: no connection: {describe(error)}") from error

    def __enter__(self) -> Connection:
        """The connection itself, closed at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self._client.close()

    def algorithm(self, slug: str) -> Algorithm:
        """The algorithm of a slug."""
        with _explained():
            found = self._client.algorithms.detail(slug=slug)
            interfaces = (frozenset(socket.slug for socket in interface.inputs) for interface in found.interfaces)
            return Algorithm(pk=found.pk, api_url=found.api_url, interfaces=tuple(interfaces))

    def upload(self, path: Path, name: str) -> str:
        """Upload a file under a name; the upload's address."""
        with _explained(), path.open("rb") as file:
            return str(self._client.uploads.upload_fileobj(fileobj=file, filename=name).api_url)

    def find_upload(self, name: str) -> str | None:
        """The address of a complete upload of that name; incomplete ones are given up, which frees their room."""
        with _explained():
            for upload in self._client.uploads.iterate_all():
                if upload.filename == name and upload.status == "Completed":
                    return str(upload.api_url)
                if upload.filename == name and upload.status == "Initialized":
                    self._client.uploads.abort_multipart_upload(pk=upload.pk, s3_upload_id=upload.s3_upload_id)
        return None

    def has_upload(self, url: str) -> bool:
        """Whether an upload can still be used; the platform removes those that no job took."""
        try:
            with _explained():
                return bool(self._client.uploads.detail(api_url=url).status == "Completed")
        except PlatformError as error:
            if error.status_code == 404:
                return False
            raise

    def start(self, algorithm: Algorithm, *, uploads: Mapping[str, str], images: Mapping[str, str]) -> Any:
        """Ask once for a job; an answer that is lost on the way does not make the client ask again.

        Args:
            algorithm: which runs.
            uploads: addresses of uploaded files, by slug.
            images: addresses of images that the platform has, by slug.

        Returns:
            The job, with its pk and status.
        """
        inputs = [_socket_value(slug, user_uploads=[url]) for slug, url in uploads.items()]
        inputs += [_socket_value(slug, image=url) for slug, url in images.items()]
        self._repeated_codes = _OnlyTooManyRequests
        try:
            with _explained():
                return self._client.algorithm_jobs.create(algorithm=algorithm.api_url, inputs=inputs)
        finally:
            self._repeated_codes = SelectiveBackoffStrategy

    def jobs_by_images(self, algorithm: Algorithm) -> dict[str, set[str]]:
        """The addresses of the input images of every job that you can see, by the job's pk."""
        with _explained():
            jobs = list(self._client.algorithm_jobs.iterate_all(params=_of(algorithm)))
            return {job.pk: {value.image for value in job.inputs if value.image is not None} for job in jobs}

    def find_job(
        self, algorithm: Algorithm, *, attempt: str, images: Mapping[str, str], known: AbstractSet[str]
    ) -> Lookup:
        """Look for a job that may have been started, the latest first.

        Args:
            algorithm: which it runs.
            attempt: is part of the names of its uploaded inputs.
            images: its other inputs, by slug.
            known: the pk of jobs that are others.
        """
        is_certain = True
        with _explained():
            every = self._client.algorithm_jobs.iterate_all(params=_of(algorithm))
            jobs = [job for job in every if job.pk not in known]
            for job in reversed(jobs):
                inputs = {value.interface.slug: value.image for value in job.inputs}
                if images and images.items() <= inputs.items():
                    return Lookup(job, is_certain=True)
                named = [url for url in inputs.values() if url is not None]
                if any(attempt in self._client.images.detail(api_url=url).name for url in named):
                    return Lookup(job, is_certain=True)
                is_certain = is_certain and (bool(named) or job.status in ENDED)
        return Lookup(None, is_certain)

    def job(self, pk: str) -> Any:
        """A job with its status, inputs and outputs."""
        with _explained():
            return self._client.algorithm_jobs.detail(pk=pk)

    def download(self, value: Any, folder: Path) -> None:
        """Download an output of a job under the path that the platform gives it."""
        with _explained():
            self._client.download_socket_value(value, output_directory=folder)

    def archive(self, slug: str) -> list[Case]:
        """The items of an archive as cases, named by their titles or, where they have none, their pk."""
        with _explained():
            archive = self._client.archives.detail(slug=slug)
            items = list(self._client.archive_items.iterate_all(params={"archive": archive.pk}))
        cases: dict[str, Case] = {}
        for item in items:
            name = item.title.strip() or item.pk
            require_usable_name(name)
            if name in cases:
                raise InputError(f"archive {slug}: got two items with the title {name!r}, expected each once")
            images = {value.interface.slug: str(value.image) for value in item.values if value.image is not None}
            cases[name] = Case(name, {}, images)
        if not cases:
            raise InputError(f"archive {slug}: got no items that you can see, expected at least one")
        return sorted(cases.values(), key=lambda case: case.name)

    def _open(self, url: str) -> gcapi.Client:
        """A client; the question for the version, which gcapi asks once, is repeated as all others are."""
        waits = self._retry_strategy()
        while True:
            try:
                return gcapi.Client(base_url=url, retry_strategy=self._retry_strategy)
            except httpx.HTTPStatusError as error:
                delay_s = waits.get_delay(error.response)
                if delay_s is None:
                    raise
                time.sleep(delay_s)

    def _retry_strategy(self) -> SelectiveBackoffStrategy:
        return self._repeated_codes(backoff_factor=FIRST_DELAY_S, maximum_number_of_retries=MOST_REPEATS)


class _OnlyTooManyRequests(SelectiveBackoffStrategy):  # type: ignore[misc]  # gcapi is untyped
    """Repeats what the platform has not begun; behind a gateway's error the job may have been started."""

    def get_delay(self, latest_response: httpx.Response) -> float | None:
        is_untouched = latest_response.status_code == httpx.codes.TOO_MANY_REQUESTS
        return super().get_delay(latest_response) if is_untouched else None


def _of(algorithm: Algorithm) -> dict[str, str]:
    return {"algorithm_image__algorithm": algorithm.pk}


def describe(error: Exception) -> str:
    """An error on one line; of a refused request the platform's answer, never the request."""
    response = getattr(error, "response", None)
    text = f"{type(error).__name__}: {error}" if response is None else f"HTTP {response.status_code}: {response.text}"
    return without_queries(" ".join(text.split()))[:300]


def _require_token() -> None:
    """Check the token's form, for a library's complaint about a header would show the token."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise InputError(f"{TOKEN_VARIABLE}: not set; export a token from your profile on the platform")
    if not re.fullmatch(r"\s*([!-~]+ +)?[!-~]+\s*", token):  # a word may stand before it
        raise InputError(
            f"{TOKEN_VARIABLE}: got what is no token (it is not shown here), expected one word without line breaks or "
            "special characters; copy it again from your profile on the platform"
        )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        is_missing = isinstance(error, ObjectNotFound)
        status_code = 404 if is_missing else getattr(getattr(error, "response", None), "status_code", None)
        if status_code == httpx.codes.UNAUTHORIZED:
            raise TokenRefusedError(
                f"{TOKEN_VARIABLE}: the platform refuses this token; make a new one in your profile there"
            ) from error
        raise PlatformError("not found, or not open to you" if is_missing else describe(error), status_code) from error


def _socket_value(
    slug: str, *, user_uploads: list[str] | None = None, image: str | None = None
) -> ComponentInterfaceValuePostRequest:
    return ComponentInterfaceValuePostRequest(
        interface=slug,
        value=None,
        file=None,
        image=image,
        upload_session=None,
        user_upload=None,
        user_uploads=user_uploads,
        image_name=None,
    )
