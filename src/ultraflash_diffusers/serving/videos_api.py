# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`/v1/videos`: videos made in the background, in the form that OpenAI's clients and others speak."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.types import Message

from ..video_io import VideoReader
from .access import check_access
from .errors import ClientError, as_client_error
from .job_worker import JobWorker
from .jobs import COMPLETED, IN_PROGRESS, QUEUED, Job, JobStore
from .messages import LARGEST_TEXT, SamplingParams, describe
from .served_models import ServedModel, check_prompt, check_request, check_size, choose_model
from .server import Server


class JobRequest(SamplingParams):
    """What `POST /v1/videos` takes beside the sampling parameters.

    Args:
        size (`str`, *optional*): `"640x384"`, instead of `width` and `height`.
        seconds (`float`, *optional*): instead of `num_frames`.
    """

    size: Annotated[str, Field(pattern=r"^\d{1,5}x\d{1,5}$")] | None = None
    seconds: Annotated[float, Field(gt=0, le=1e6)] | None = None


def videos_router(server: Server, store: JobStore, worker: JobWorker) -> APIRouter:
    """Returns the routes.

    Args:
        server ([`Server`]): models and limits.
        store ([`JobStore`]): the jobs.
        worker ([`JobWorker`]): makes them.
    """
    router = APIRouter(prefix="/v1/videos")

    @router.post("")
    async def create(request: Request) -> dict[str, Any]:
        check_access(request, server)
        if store.count(QUEUED, IN_PROGRESS) > server.settings.max_queue:
            raise ClientError("server_busy", f"{server.settings.max_queue} jobs wait already: try again later", 503)
        fields, upload = await _read_body(request, server.settings.max_upload)
        job = await run_in_threadpool(_queue, fields, upload, server, store)
        worker.wake()
        return _told(job)

    @router.get("")
    async def listed(request: Request) -> dict[str, Any]:
        check_access(request, server)
        return {"object": "list", "data": [_told(job) for job in store.all()]}

    @router.get("/{name}")
    async def status(name: str, request: Request) -> dict[str, Any]:
        check_access(request, server)
        return _told(_found(name, store))

    @router.get("/{name}/content")
    async def content(name: str, request: Request) -> FileResponse:
        check_access(request, server)
        job = _found(name, store)
        if job.status != COMPLETED:
            raise ClientError("not_ready", f"video {name!r} is {job.status}, it has no content yet", 409)
        return FileResponse(job.video, media_type="video/mp4", filename=f"{name}.mp4")

    @router.delete("/{name}")
    async def delete(name: str, request: Request) -> dict[str, Any]:
        check_access(request, server)
        job = _found(name, store)
        if worker.cancel(name):
            store.forget(job)
        else:
            store.delete(job)
        return {"id": name, "object": "video.deleted", "deleted": True}

    return router


async def _read_body(request: Request, max_upload: int) -> tuple[dict[str, Any], UploadFile | None]:
    """Reads JSON or a form, no more than is allowed of either."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            fields = json.loads(await _limited(request, LARGEST_TEXT).body())
        except (ValueError, RecursionError) as error:
            raise ClientError("invalid_json", "the body is no JSON") from error
        if not isinstance(fields, dict):
            raise ClientError("invalid_json", "the body is no JSON object")
        return fields, None
    if kind != "multipart/form-data":
        raise ClientError("invalid_request", f"content type {kind!r}, expected JSON or multipart/form-data", 415)
    form = await _limited(request, max_upload + LARGEST_TEXT).form(max_files=1, max_fields=32)
    upload = form.get("video")
    fields = {name: value for name, value in form.multi_items() if name != "video"}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise ClientError("invalid_request", f"{name}: a file, only 'video' may be one")
    if "extra_params" in fields:
        fields["extra_params"] = _parsed("extra_params", fields["extra_params"])
    if upload is not None and not isinstance(upload, UploadFile):
        raise ClientError("invalid_request", f"video: {upload[:80]!r}, expected a file")
    return fields, upload


def _limited(request: Request, limit: int) -> Request:
    """The request, of whose body more than `limit` bytes are refused as they arrive."""
    left = limit

    async def receive() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise ClientError("limit_exceeded", f"the body has more than {limit} bytes", 413)
        return message

    return Request(request.scope, receive)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClientError("invalid_json", f"{name}: {text[:80]!r} is no JSON") from error


def _queue(fields: dict[str, Any], upload: UploadFile | None, server: Server, store: JobStore) -> Job:
    """Checks what is asked for and writes it down."""
    try:
        asked = _sampling(JobRequest.model_validate(fields, strict=False))
    except ValidationError as error:
        raise ClientError("invalid_request", describe(error)) from error
    model = choose_model(server.models, asked.model)
    source = "text" if upload is None else "video"
    request = _with_frames(asked, model, source)
    check_request(model, source, request, server.settings)
    if source == "text":
        check_prompt(request.prompt, server.settings)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    written = {"model": model.name, "seed": seed, "sampling": request.model_dump(exclude={"model", "seed"})}
    name, folder = store.new_folder()
    try:
        if upload is not None:
            written["upload"] = _kept(upload, folder, model, server)
        return store.add(name, written)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sampling(request: JobRequest) -> JobRequest:
    """Puts `size` into `width` and `height`."""
    if request.size is None:
        return request
    if request.width is not None:
        raise ClientError("invalid_request", f"size: {request.size!r} beside width and height, give one of them")
    width, height = map(int, request.size.split("x"))
    fields = request.model_dump(exclude_unset=True, exclude={"size"}) | {"width": width, "height": height}
    return JobRequest.model_validate(fields)


def _with_frames(request: JobRequest, model: ServedModel, source: str) -> SamplingParams:
    """Puts `seconds` into `num_frames`, of text by default the checkpoint's."""
    config, frames = model.pipe.config, request.num_frames
    if request.seconds is not None:
        if frames is not None:
            raise ClientError("invalid_request", f"seconds: {request.seconds} beside num_frames, give one of them")
        frames = max(1, round(request.seconds * (request.fps or config.default_fps)))
    if frames is None and source == "text":
        frames = config.default_num_frames
    fields = request.model_dump(exclude_unset=True, exclude={"size", "seconds"})
    return SamplingParams.model_validate(fields | {"num_frames": frames})


def _kept(upload: UploadFile, folder: Path, model: ServedModel, server: Server) -> str:
    """Keeps the client's file under a name of ours; it must be a video of an allowed size."""
    path = folder / f"upload{Path(upload.filename or '').suffix[:8]}"
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)
    try:
        info = VideoReader(path).info
    except (OSError, ValueError) as error:
        raise as_client_error(error, folder) from error
    check_size(info.width * model.scale, info.height * model.scale, server.settings)
    return path.name


def _found(name: str, store: JobStore) -> Job:
    job = store.get(name)
    if job is None:
        raise ClientError("not_found", f"there is no video {name[:80]!r}", 404)
    return job


def _told(job: Job) -> dict[str, Any]:
    """What clients see of a job."""
    sampling = job.request["sampling"]
    return {
        "id": job.id,
        "object": "video",
        "status": job.status,
        "progress": round(100 * job.progress),
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "model": job.request["model"],
        "seed": job.request["seed"],
        "prompt": sampling["prompt"],
        "num_frames": sampling["num_frames"],
        "error": job.error,
    }
