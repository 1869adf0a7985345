"""One request to an account, and how things are shown in the answer: as gcapi's models expect them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from email.message import Message
from typing import Any

from .account import KINDS, SLUG, Account, Job, Upload


class RefusalError(Exception):
    def __init__(self, status: int, body: Any) -> None:
        self.status, self.body = status, body


@dataclass
class Call:
    """One request to an account."""

    account: Account
    origin: str
    headers: Message
    query: dict[str, list[str]]
    body: bytes

    @property
    def api(self) -> str:
        return f"{self.origin}/api/v1/"

    def json(self) -> dict[str, Any]:
        if self.headers.get("Content-Type") != "application/json":
            raise RefusalError(415, {"detail": "Unsupported media type"})
        return json.loads(self.body)

    def page(self, results: list[Any]) -> dict[str, Any]:
        offset, limit = int(self.query["offset"][0]), int(self.query["limit"][0])
        return {"count": len(results), "next": None, "previous": None, "results": results[offset : offset + limit]}

    def upload(self, pk: str, s3_upload_id: str | None = None) -> Upload:
        upload = self.account.uploads.get(pk)
        if upload is None or s3_upload_id not in (None, upload.s3_upload_id):
            raise RefusalError(404, {"detail": "Not found."})
        return upload

    def shown_upload(self, upload: Upload) -> dict[str, str]:
        return {
            "pk": upload.pk,
            "created": "2026-01-01T00:00:00Z",
            "filename": upload.filename,
            "key": f"uploads/1/{upload.pk}",
            "s3_upload_id": upload.s3_upload_id,
            "status": upload.status,
            "api_url": f"{self.api}uploads/{upload.pk}/",
        }

    def shown_socket(self, slug: str) -> dict[str, Any]:
        kind, super_kind, relative_path = KINDS[slug]
        return {
            "title": slug,
            "description": "",
            "slug": slug,
            "kind": kind,
            "pk": list(KINDS).index(slug) + 1,
            "default_value": None,
            "super_kind": super_kind,
            "relative_path": relative_path,
            "overlay_segments": None,
            "look_up_table": None,
        }

    def shown_value(self, slug: str, pk: int, *, image: str | None = None, job: Job | None = None) -> dict[str, Any]:
        is_value, is_file = (job is not None and KINDS[slug][1] == kind for kind in ("Value", "File"))
        return {
            "socket": self.shown_socket(slug),
            "interface": self.shown_socket(slug),
            "value": job.outputs[slug] if job and is_value else None,
            "file": f"{self.origin}/media/jobs/{job.pk}/{slug}/" if job and is_file else None,
            "image": f"{self.api}cases/images/{image}/" if image else None,
            "pk": pk,
        }

    def shown_job(self, job: Job) -> dict[str, Any]:
        outputs = [
            self.shown_value(slug, number, image=output if KINDS[slug][1] == "Image" else None, job=job)
            for number, (slug, output) in enumerate(job.outputs.items(), start=100)
        ]
        return {
            "pk": job.pk,
            "url": f"{self.origin}/algorithms/{SLUG}/jobs/{job.pk}/",
            "api_url": f"{self.api}algorithms/jobs/{job.pk}/",
            "algorithm_image": f"{self.api}algorithms/images/{self.account.algorithm_image}/",
            "algorithm": f"{self.api}algorithms/algorithm-1/",
            "inputs": [
                self.shown_value(slug, number, image=pk) for number, (slug, pk) in enumerate(job.images.items())
            ],
            "outputs": outputs,
            "status": job.status,
            "hanging_protocol": None,
            "optional_hanging_protocols": [],
            "view_content": {},
            "exec_duration": None,
            "invoke_duration": None,
        }
