"""What each address of the API demands and answers, after the platform's views and serializers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .account import KINDS, SLUG, Job, Upload
from .call import Call, RefusalError


def _algorithms(call: Call) -> Any:
    algorithm = {
        "api_url": f"{call.api}algorithms/algorithm-1/",
        "url": f"{call.origin}/algorithms/{SLUG}/",
        "description": "",
        "pk": "algorithm-1",
        "title": "Lesions",
        "logo": "",
        "slug": SLUG,
        "average_duration": None,
        "interfaces": [
            {"inputs": [call.shown_socket(slug) for slug in slugs], "outputs": [call.shown_socket("covid-19-severity")]}
            for slugs in call.account.interfaces
        ],
    }
    return call.page([algorithm] if call.query.get("slug") == [SLUG] else [])


def _sockets(call: Call) -> Any:
    return call.page([call.shown_socket(slug) for slug in KINDS if call.query.get("slug") == [slug]])


def _archives(call: Call) -> Any:
    slug = call.query["slug"][0]
    fields = {"title": slug, "logo": "", "description": "", "api_url": "", "url": ""}
    return call.page([{"pk": slug, **fields}] if slug in call.account.archives else [])


def _archive_items(call: Call) -> Any:
    items = call.account.archives[call.query["archive"][0]]
    return call.page(
        [
            {
                "pk": f"item-{number}",
                "archive": "",
                "title": item["title"],
                "values": [call.shown_value(slug, k, image=pk) for k, (slug, pk) in enumerate(item["images"].items())],
                "hanging_protocol": None,
                "optional_hanging_protocols": [],
                "view_content": {},
            }
            for number, item in enumerate(items)
        ]
    )


def _create_upload(call: Call) -> Any:
    data = call.json()
    name = data.get("filename")
    if data.keys() != {"filename"} or not isinstance(name, str) or name != Path(name).name or len(name) > 128:
        call.account.breaches.append(f"upload of {data}")
        raise RefusalError(400, {"filename": [f"{name} is not a valid filename"]})
    if len(call.account.uploads) >= call.account.most_uploads:
        raise RefusalError(400, {"non_field_errors": ["You have created too many uploads. Please try again later."]})
    call.account.last_upload = number = call.account.last_upload + 1
    upload = Upload(pk=f"upload-{number}", filename=name, s3_upload_id=f"s3-{number}")
    call.account.uploads[upload.pk] = upload
    return call.shown_upload(upload)


def _presign(call: Call, pk: str, s3_upload_id: str) -> Any:
    upload, numbers = call.upload(pk, s3_upload_id), call.json().get("part_numbers")
    if upload.status != "Initialized":
        raise RefusalError(403, {"detail": "Upload limit reached"})
    if not isinstance(numbers, list) or not all(isinstance(n, int) and 1 <= n <= 10_000 for n in numbers):
        call.account.breaches.append(f"part_numbers {numbers}")
        raise RefusalError(400, {"part_numbers": ["not a list of 1 to 10000"]})
    urls = {str(n): f"{call.origin}/s3/{call.account.pk}/{pk}/{n}?X-Amz-Signature=signature-of-{n}" for n in numbers}
    return call.shown_upload(upload) | {"presigned_urls": urls}


def _put_part(call: Call, _: str, pk: str, number: str) -> Any:
    if "X-Amz-Signature" not in call.query or "Authorization" in call.headers:
        call.account.breaches.append("a part without its signature, or with the token")
    upload = call.upload(pk)
    upload.parts[int(number)] = call.body
    return {"status": 200, "headers": {"ETag": f'"{pk}-{number}-{len(call.body)}"'}}


def _complete_upload(call: Call, pk: str, s3_upload_id: str) -> Any:
    upload, parts = call.upload(pk, s3_upload_id), call.json().get("parts")
    expected = [{"ETag": f'"{pk}-{n}-{len(part)}"', "PartNumber": n} for n, part in sorted(upload.parts.items())]
    if upload.status != "Initialized" or parts != expected or not parts:
        raise RefusalError(400, {"parts": ["These parts cannot be put together."]})
    upload.status = "Completed"
    return call.shown_upload(upload)


def _abort_upload(call: Call, pk: str, s3_upload_id: str) -> Any:
    upload = call.upload(pk, s3_upload_id)
    upload.status = "Aborted"
    return call.shown_upload(upload)


def _create_job(call: Call) -> Any:
    data, account = call.json(), call.account
    if data.keys() != {"algorithm", "inputs"}:
        account.breaches.append(f"job with the fields {sorted(data)}")
    if data.get("algorithm") != f"{call.api}algorithms/algorithm-1/":
        raise RefusalError(400, {"algorithm": ["Invalid hyperlink - Object does not exist."]})
    uploads: dict[str, str] = {}
    images: dict[str, str] = {}
    for value in data["inputs"]:
        _validate_input(call, value, uploads, images)
    if account.active() >= account.most_active:
        text = "You have too many active jobs, please try again after they have completed"
        raise RefusalError(400, {"non_field_errors": [text]})
    if sorted(uploads.keys() | images.keys()) not in [sorted(slugs) for slugs in account.interfaces]:
        account.breaches.append(f"job with the inputs {sorted(uploads.keys() | images.keys())}")
        raise RefusalError(400, {"non_field_errors": ["The set of inputs provided does not match any interface."]})
    same = [job for job in account.jobs.values() if job.algorithm_image == account.algorithm_image]
    if images and any(job.images == images for job in same):  # whatever their status, and whoever's they are
        text = "A result for these inputs with the current image and model already exists."
        raise RefusalError(400, {"non_field_errors": [text]})
    names = {slug: account.uploads[pk].filename for slug, pk in uploads.items()}
    pk = f"job-{len(account.jobs) + 1}"
    job = Job(pk, uploads, images=dict(images), names=names, algorithm_image=account.algorithm_image)
    account.jobs[job.pk] = job
    account.peak = max(account.peak, account.active())
    shown = [
        {"interface": slug, "value": None, "file": None, "image": None, "pk": 1, "image_name": None}
        for slug in (*uploads, *images)
    ]
    return {"pk": job.pk, "inputs": shown, "status": job.status}


def _validate_input(call: Call, value: dict[str, Any], uploads: dict[str, str], images: dict[str, str]) -> None:
    slug = value.get("interface")
    fields = {"interface", "value", "file", "image", "upload_session", "user_upload", "user_uploads", "image_name"}
    if slug not in KINDS or value.keys() - fields:
        call.account.breaches.append(f"input {value}")
        raise RefusalError(400, {"inputs": [{"interface": [f"Object with slug={slug} does not exist."]}]})
    given = {key for key in value.keys() - {"interface"} if value[key] is not None}
    if given == {"image"}:
        pk = value["image"].removeprefix(f"{call.api}cases/images/").removesuffix("/")
        if pk not in call.account.images:
            raise RefusalError(400, {"inputs": [{"image": ["Invalid hyperlink - Object does not exist."]}]})
        images[slug] = pk
    elif given == {"user_uploads"} and len(value["user_uploads"]) == 1:
        pk = value["user_uploads"][0].removeprefix(f"{call.api}uploads/").removesuffix("/")
        if pk not in call.account.uploads or call.account.uploads[pk].status != "Completed":
            raise RefusalError(400, {"inputs": [{"user_uploads": ["Invalid hyperlink - Object does not exist."]}]})
        uploads[slug] = pk
    else:
        call.account.breaches.append(f"input with {sorted(given)}")
        raise RefusalError(400, {"inputs": [{"non_field_errors": ["You can only provide one of ..."]}]})


def _jobs(call: Call) -> Any:
    if call.query.get("algorithm_image__algorithm") != ["algorithm-1"]:
        call.account.breaches.append(f"jobs asked for with {call.query}")
    for job in call.account.jobs.values():
        call.account.advance(job)
    return call.page([call.shown_job(job) for job in call.account.jobs.values()])


def _job(call: Call, pk: str) -> Any:
    job = call.account.jobs.get(pk)
    if job is None:
        raise RefusalError(404, {"detail": "Not found."})
    call.account.advance(job)
    return call.shown_job(job)


def _image(call: Call, pk: str) -> Any:
    name, _ = call.account.images[pk]
    file = {"pk": f"{pk}-file", "image": None, "file": f"{call.origin}/media/{pk}/output.mha", "image_type": "MHD"}
    empty = "width height depth color_space modality eye_choice stereoscopic_choice field_of_view voxel_width_mm"
    empty += " voxel_height_mm voxel_depth_mm window_center window_width segments dicom_image_set"
    known = {"pk": pk, "name": name, "files": [file], "api_url": f"{call.api}cases/images/{pk}/"}
    return known | dict.fromkeys(empty.split()) | {"shape": [2, 2, 2], "shape_without_color": [2, 2, 2]}


def _redirect(call: Call, rest: str) -> Any:
    location = f"{call.origin}/signed/{call.account.pk}/{rest}?Signature=signature"
    return {"status": 302, "headers": {"Location": location}}


def _media(call: Call, _: str, pk: str) -> Any:
    return call.account.images[pk][1]


def _job_file(call: Call, _: str, pk: str, slug: str) -> Any:
    return call.account.jobs[pk].outputs[slug]


_API = "/api/v1"
_UPLOAD = rf"{_API}/uploads/([\w-]+)/([\w-]+)"
ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", f"{_API}/algorithms/", _algorithms),
    ("GET", f"{_API}/components/interfaces/", _sockets),
    ("GET", f"{_API}/archives/", _archives),
    ("GET", f"{_API}/archives/items/", _archive_items),
    ("GET", f"{_API}/uploads/", lambda call: call.page([call.shown_upload(u) for u in call.account.uploads.values()])),
    ("POST", f"{_API}/uploads/", _create_upload),
    ("GET", rf"{_API}/uploads/([\w-]+)/", lambda call, pk: call.shown_upload(call.upload(pk))),
    ("PATCH", f"{_UPLOAD}/generate-presigned-urls/", _presign),
    ("PATCH", f"{_UPLOAD}/complete-multipart-upload/", _complete_upload),
    ("PATCH", f"{_UPLOAD}/abort-multipart-upload/", _abort_upload),
    ("PUT", r"/s3/([^/]+)/([\w-]+)/(\d+)", _put_part),
    ("POST", f"{_API}/algorithms/jobs/", _create_job),
    ("GET", f"{_API}/algorithms/jobs/", _jobs),
    ("GET", rf"{_API}/algorithms/jobs/([\w-]+)/", _job),
    ("GET", rf"{_API}/cases/images/([\w-]+)/", _image),
    ("GET", r"/media/(.+)", _redirect),
    ("GET", r"/signed/([^/]+)/(image-\d+)/output.mha", _media),
    ("GET", r"/signed/([^/]+)/jobs/([\w-]+)/([\w-]+)/", _job_file),
)
