from __future__ import annotations

import httpx
import pytest

from batch.connection import TOKEN_VARIABLE, Connection, describe
from batch.errors import InputError, PlatformError, TokenRefusedError


def test_needs_a_token(monkeypatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(InputError, match="GRAND_CHALLENGE_AUTHORIZATION: not set"):
        Connection("https://127.0.0.1:1/api/v1/")


@pytest.mark.parametrize("token", ["sec\nret", "sec\tret", "s\u00e9cret", "sec ret more", " ", "\n"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(platform, account, monkeypatch, caplog, token) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(InputError, match="GRAND_CHALLENGE_AUTHORIZATION: got what is no token") as caught:
        Connection(platform.url)
    assert "cret" not in str(caught.value) + caplog.text and "ret more" not in str(caught.value)
    assert account.requests == []


@pytest.mark.parametrize("token", ["token-of-the-tests\n", "Bearer token-of-the-tests", "  token-of-the-tests "])
def test_takes_a_token_as_it_is_copied(platform, account, monkeypatch, token) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with Connection(platform.url) as connection:
        assert connection.algorithm("covid-lesions").pk == "algorithm-1"


def test_asks_again_for_the_version_as_the_platform_wishes(platform, monkeypatch) -> None:
    waits: list[float] = []
    answers = [httpx.Response(429, headers={"Retry-After": "3"}), httpx.Response(502), None]

    def answer(**_: object) -> None:
        if response := answers.pop(0):
            raise httpx.HTTPStatusError("", request=httpx.Request("GET", platform.url), response=response)

    monkeypatch.setattr("gcapi.client.check_version", answer)
    monkeypatch.setattr("batch.connection.time.sleep", waits.append)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    Connection(platform.url).__exit__()
    assert answers == [] and waits == [3.0, 0.001]


def test_refuses_a_platform_that_does_not_answer(monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    with pytest.raises(InputError, match="no connection: ConnectError") as caught:
        Connection("https://127.0.0.1:1/api/v1/")
    assert "secret" not in str(caught.value)


def test_refuses_a_certificate_that_nobody_vouches_for(platform, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(InputError, match="no connection: .*certificate verify failed"):
        Connection(platform.url)


def test_refuses_a_platform_that_is_too_new(platform, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    platform.lowest_version = "99.0"
    with pytest.raises(InputError, match=r"gcapi is too old .* only supports 99\.0 or newer\. Update this program$"):
        Connection(platform.url)


def test_refuses_an_address_that_is_not_secure(platform, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    with pytest.raises(InputError, match="no connection"):
        Connection(platform.url.replace("https", "http"))


def test_a_refused_token_is_told(platform, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "of-nobody")
    with Connection(platform.url) as connection, pytest.raises(TokenRefusedError, match="refuses this token") as caught:
        connection.algorithm("covid-lesions")
    assert "of-nobody" not in str(caught.value)


def test_knows_the_algorithm(connection) -> None:
    algorithm = connection.algorithm("covid-lesions")
    assert algorithm.pk == "algorithm-1"
    assert algorithm.interfaces == (frozenset({"ct-image", "pulmonary-lobes"}), frozenset({"ct-image"}))


def test_finds_what_a_killed_run_left(connection, account, tmp_path) -> None:
    (tmp_path / "x").write_text("content")
    done = connection.upload(tmp_path / "x", "a.mha")
    connection._client.uploads.create(filename="b.mha")
    assert connection.find_upload("a.mha") == done
    assert connection.find_upload("b.mha") is None
    assert connection.find_upload("c.mha") is None
    assert [upload.status for upload in account.uploads.values()] == ["Completed", "Aborted"]
    assert connection.has_upload(done)
    assert not connection.has_upload(done.replace("upload-1", "upload-2"))
    assert not connection.has_upload(done.replace("upload-1", "upload-9"))


def start(connection, account, tmp_path, name: str):
    (tmp_path / "x").write_text("ElementDataFile = LOCAL\n")
    upload = connection.upload(tmp_path / "x", name)
    return connection.start(connection.algorithm("covid-lesions"), uploads={"ct-image": upload}, images={})


def test_finds_a_job_by_the_name_of_its_input(connection, account, tmp_path) -> None:
    algorithm = connection.algorithm("covid-lesions")
    ours = start(connection, account, tmp_path, "a_0123456789ab_ct-image.mha")
    others = start(connection, account, tmp_path, "b_ffffffffffff_ct-image.mha")
    found = connection.find_job(algorithm, attempt="0123456789ab", images={}, known=set())
    assert found.job.pk == ours.pk
    assert connection.find_job(algorithm, attempt="0123456789ab", images={}, known={ours.pk}).job is None
    assert connection.find_job(algorithm, attempt="0123456789ab", images={}, known={others.pk}).job.pk == ours.pk


def test_is_not_certain_while_a_job_has_no_inputs_yet(connection, account, tmp_path) -> None:
    algorithm = connection.algorithm("covid-lesions")
    job = account.jobs[start(connection, account, tmp_path, "a.mha").pk]
    account.import_after = 4  # each look asks for two pages
    assert not connection.find_job(algorithm, attempt="0123", images={}, known=set()).is_certain
    job.status = "Failed"
    assert connection.find_job(algorithm, attempt="0123", images={}, known=set()).is_certain
    job.status = "Validating inputs"
    assert not connection.find_job(algorithm, attempt="0123", images={}, known=set()).is_certain
    assert connection.find_job(algorithm, attempt="0123", images={}, known=set()).is_certain


def test_a_lost_answer_is_not_asked_for_again(connection, account, standin, tmp_path) -> None:
    account.faults = [standin.Fault("POST", "/api/v1/algorithms/jobs/", "lose")]
    with pytest.raises(PlatformError, match="HTTP 502: Bad Gateway") as caught:
        start(connection, account, tmp_path, "a.mha")
    assert not caught.value.is_refusal
    assert len(account.jobs) == 1


def test_reads_an_archive(connection, account) -> None:
    images = [account.add_image(f"{name}.mha", b"") for name in "ab"]
    account.archives = {
        "cohort": [
            {"title": "p2", "images": {"ct-image": images[0], "pulmonary-lobes": images[1]}},
            {"title": " ", "images": {"ct-image": images[1]}},
        ],
        "empty": [],
        "double": [{"title": "p", "images": {}}] * 2,
    }
    first, second = connection.archive("cohort")
    assert (first.name, second.name) == ("item-1", "p2")
    assert {slug: url.rsplit("/", 2)[1] for slug, url in second.images.items()} == {
        "ct-image": "image-1",
        "pulmonary-lobes": "image-2",
    }
    with pytest.raises(InputError, match="got no items that you can see"):
        connection.archive("empty")
    with pytest.raises(InputError, match="got two items with the title 'p'"):
        connection.archive("double")
    with pytest.raises(PlatformError, match="not found, or not open to you"):
        connection.archive("none")


@pytest.mark.parametrize(
    ("status_code", "refusal"), [(None, False), (400, True), (404, True), (408, False), (429, False), (502, False)]
)
def test_refusals(status_code, refusal) -> None:
    assert PlatformError("", status_code).is_refusal == refusal


def test_describes_the_answer_and_not_the_request() -> None:
    request = httpx.Request("PUT", "https://s3.example.org/part?X-Amz-Signature=secret")
    response = httpx.Response(400, text="x" * 500, request=request)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    assert "secret" in str(caught.value)
    assert describe(caught.value) == "HTTP 400: " + "x" * 290
    assert describe(OSError("disk\nfull")) == "OSError: disk full"
    assert describe(RuntimeError("bad https://a.b/c?Signature=secret here")) == "RuntimeError: bad https://a.b/c here"
