# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What clients say, checked: the JSON messages of the realtime protocol.

`session.start`, `session.interaction`, `session.stop` and `session.ping` are the common protocol's; the others, and
the fields `source`, `video`, `frame_format`, `state_byte_length`, `resume_token` and `next_frame` of `session.start`,
are this server's own.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from .errors import ClientError

LARGEST_TEXT = 64 * 1024  # characters of a JSON message

_Name = Annotated[str, Field(max_length=256)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ExtraParams(_Message):
    """Further arguments of [`UltraFlashStreamingPipeline.stream`]."""

    negative_prompt: str | None = None
    condition_noise: Annotated[float, Field(ge=0, le=1)] | None = None
    color_correction: Literal["wavelet", "none"] | None = None
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0


class VideoUpload(_Message):
    """A video file whose bytes follow in binary messages, or one that the server has already.

    Args:
        byte_length (`int`, *optional*): of the whole file, where it follows.
        name (`str`, *optional*): what the user calls it; only its ending is looked at.
        token (`str`, *optional*): of [`Server.offer`], where a page of the same server has taken the file in.
    """

    byte_length: Annotated[int, Field(ge=1)] | None = None
    name: _Name = "video.mp4"
    token: _Name | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> VideoUpload:
        if (self.byte_length is None) == (self.token is None):
            raise ValueError("give byte_length or token, and not both")
        return self


class SamplingParams(_Message):
    """What decides the frames, in messages and in jobs alike.

    Args:
        num_frames (`int`, *optional*): frames of the video; `None` goes on without end or, with a video or frames of
            the client, to theirs; left out, the checkpoint's default.
        num_inference_steps, guidance_scale: of the super-resolution transformer, as in the pipeline's call.
    """

    model: _Name | None = None
    prompt: str | None = None
    width: Annotated[int, Field(ge=2, le=16384)] | None = None
    height: Annotated[int, Field(ge=2, le=16384)] | None = None
    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] = 1
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    extra_params: ExtraParams = ExtraParams()

    @model_validator(mode="after")
    def _size_is_whole(self) -> SamplingParams:
        if (self.width is None) != (self.height is None):
            raise ValueError(f"width is {self.width} and height is {self.height}: give both or none")
        return self

    @property
    def without_end(self) -> bool:
        """Whether `num_frames` was given as `None`."""
        return self.num_frames is None and "num_frames" in self.model_fields_set


class SessionStart(SamplingParams):
    """Starts a stream.

    Args:
        source (`str`, *optional*, defaults to `"text"`): `"text"` for the checkpoint's generator, `"pipeline"` for the
            server's source pipeline, `"video"` for a file and `"frames"` for pictures that the client sends.
        video ([`VideoUpload`], *optional*): the file, for that source.
        frame_format (`str`, *optional*, defaults to `"picture"`): of frames that the client sends: a JPEG, WebP or PNG
            picture, or with `"raw"` the RGB bytes, each in a binary message. `width` and `height` are the frames' own.
        state_byte_length (`int`, *optional*): goes on from a state, which follows in binary messages.
        resume_token (`str`, *optional*): goes on with a session whose connection was lost, under the secret that its
            `video.start` told.
        next_frame (`int`, *optional*): with that, the first frame that the client does not have.
        size (`str`, *optional*): `"640x384"`, which counts before `width` and `height`.
        seconds (`float`, *optional*): counts where `num_frames` is not given.
        negative_prompt (`str`, *optional*): another place for the one of `extra_params`.
    """

    type: Literal["session.start"]
    format: Literal["m4s"] = "m4s"
    source: Literal["text", "pipeline", "video", "frames"] = "text"
    video: VideoUpload | None = None
    frame_format: Literal["picture", "raw"] = "picture"
    state_byte_length: Annotated[int, Field(ge=1)] | None = None
    resume_token: _Name | None = None
    next_frame: Annotated[int, Field(ge=0)] = 0
    # clients of the common protocol say these here, the length also as a text
    size: Annotated[str, Field(pattern=r"^\d{1,5}x\d{1,5}$")] | None = None
    seconds: Annotated[float, Field(gt=0, le=1e6, strict=False)] | None = None
    negative_prompt: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_other_spellings(cls, content: Any) -> Any:
        """Puts `size` and `negative_prompt` where the rest of the server looks for them."""
        content = dict(content)
        if isinstance(content.get("size"), str) and content["size"].count("x") == 1:
            width, height = content["size"].split("x")
            if width.isdecimal() and height.isdecimal():
                content |= {"width": int(width), "height": int(height)}
        extra = content.get("extra_params", {})
        if content.get("negative_prompt") is not None and isinstance(extra, dict):
            content["extra_params"] = extra | {"negative_prompt": content["negative_prompt"]}
        return content

    @model_validator(mode="after")
    def _resumes_with_token(self) -> SessionStart:
        if self.resume_token is None and "next_frame" in self.model_fields_set:
            raise ValueError("next_frame is given without the resume_token of a session")
        return self


class Event(_Message):
    """What an interaction changes."""

    prompt: str


class Interaction(_Message):
    """A change of the running stream, with the name under which it is reported.

    Args:
        event_id, interaction_id (`str`, *optional*): two spellings of that name.
        transition_chunks (`int`, *optional*, defaults to 1): for how many chunks it is reported as active.
    """

    event: Event
    event_id: _Name | None = None
    interaction_id: _Name | None = None
    transition_chunks: Annotated[int, Field(ge=0, le=10_000)] = 1


class SessionInteraction(_Message):
    """Changes the prompt from the next group on."""

    type: Literal["session.interaction"]
    interaction: Interaction


class Control(_Message):
    """Messages whose type says all; `session.frames_end` tells that no more frames will be sent."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal[
        "session.stop", "session.ping", "session.pause", "session.resume", "session.export", "session.frames_end"
    ]


ClientMessage = SessionStart | SessionInteraction | Control
_MESSAGES: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])


def parse_message(text: str) -> ClientMessage:
    """Reads a text message.

    Raises:
        ClientError: it is no JSON object, of an unknown type, or has fields that are unknown or out of range.
    """
    if len(text) > LARGEST_TEXT:
        raise ClientError("message_too_large", f"a message of {len(text)} characters, at most {LARGEST_TEXT} are read")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClientError("invalid_json", "a text message is no JSON") from error
    if not isinstance(content, dict):
        raise ClientError("invalid_json", f"a text message is a JSON {type(content).__name__}, expected an object")
    try:
        return _MESSAGES.validate_python(content)
    except ValidationError as error:
        raise ClientError("invalid_request", describe(error)) from error


def describe(error: ValidationError) -> str:
    """One line that names each field, what was wrong with it, and its value."""
    return "; ".join(_describe_one(problem) for problem in error.errors(include_url=False)[:5])


def _describe_one(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"] if part not in ("session.start", "session.interaction"))
    if problem["type"] == "extra_forbidden":
        return f"{place} is no known field"
    value = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r:.80}"
    return f"{place or 'message'}: {problem['msg']}{value}"
