# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The server on many machines, by Ray Serve: replicas of one application, and sessions that outlive theirs.

Needs the extras `ray` and `serve`. Each replica has the checkpoint on a share of a GPU, or on cores, and its own
places for streams. A session stays where its connection leads. Its state goes to a folder that all machines share,
from which another replica goes on with it.

    serve run ultraflash_diffusers.serving.ray_app:build sessions=/shared/sessions max_replicas=4 num_gpus=1
"""

from __future__ import annotations

from pathlib import Path

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig

from .. import UltraFlashStreamingPipeline, default_checkpoint
from .app import create_app
from .served_models import ServedModel
from .server import Server
from .session_store import SessionStore
from .settings import ServerSettings

_LOOK_BACK_SECONDS = 30.0  # over which running streams are averaged
_LEAVING_SECONDS = 30.0  # that streams have to come to their end where a replica is taken away


class RayArguments(BaseModel):
    """What is deployed; on the command line `name=value`, in a configuration file `args`.

    Args:
        sessions (`Path`): folder for the states of running sessions, under the same name on all machines.
        checkpoint (`str`, *optional*): folder or Hub name; by default the one in the package.
        name (`str`, *optional*, defaults to `"ultraflash"`): of the model, as clients see it.
        dtype (`str`, *optional*): of the weights, such as `"bfloat16"`; by default that on a GPU, else `"float32"`.
        num_gpus (`float`, *optional*, defaults to 0): of a replica; 0.5 puts two on one GPU, 0 computes on the CPU.
        num_cpus (`float`, *optional*, defaults to 1): cores that a replica reserves.
        min_replicas, max_replicas (`int`, *optional*, default to 1): as many as running streams need.
        add_after (`float`, *optional*, defaults to 30.0): seconds for which streams must need one more.
        remove_after (`float`, *optional*, defaults to 600.0): seconds for which one less must do.
        max_streams (`int`, *optional*, defaults to 2): that run at once on a replica, a chunk of each in turn.
        max_queue (`int`, *optional*, defaults to 32): clients that may wait at a replica.
        save_every (`float`, *optional*, defaults to 5.0): least seconds between two states of a session.
        api_key (`str`, *optional*): that clients must show.
    """

    model_config = ConfigDict(extra="forbid")

    sessions: Path
    checkpoint: str | None = None
    name: str = "ultraflash"
    dtype: str | None = None
    num_gpus: float = Field(0.0, ge=0)
    num_cpus: float = Field(1.0, ge=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    add_after: float = Field(30.0, gt=0)
    remove_after: float = Field(600.0, gt=0)
    max_streams: int = Field(2, ge=1)
    max_queue: int = Field(32, ge=0)
    save_every: float = Field(5.0, ge=0)
    api_key: str | None = None


def build(arguments: RayArguments) -> serve.Application:
    """Returns the application for `serve run`, `serve deploy` or `ray.serve.run`.

    Args:
        arguments ([`RayArguments`]): what is deployed.

    Raises:
        ValueError: `max_replicas` is less than `min_replicas`.
    """
    if arguments.max_replicas < arguments.min_replicas:
        raise ValueError(
            f"`max_replicas` is {arguments.max_replicas}, less than `min_replicas` {arguments.min_replicas}"
        )

    def replica() -> FastAPI:
        return _replica(arguments)

    deployment = serve.deployment(
        serve.ingress(replica)(),
        name="ultraflash",
        # a session is one request as long as it lives: those beyond these places are refused by name
        max_ongoing_requests=arguments.max_streams + arguments.max_queue + 16,
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            initial_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=arguments.max_streams,
            upscale_delay_s=arguments.add_after,
            downscale_delay_s=arguments.remove_after,
            # what is looked at must not reach further back than what is waited for
            look_back_period_s=min(_LOOK_BACK_SECONDS, arguments.add_after, arguments.remove_after),
            metrics_interval_s=min(_LOOK_BACK_SECONDS, arguments.add_after, arguments.remove_after) / 3,
        ),
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        graceful_shutdown_timeout_s=_LEAVING_SECONDS,
    )
    return deployment.bind()


def _replica(arguments: RayArguments) -> FastAPI:
    """Makes the application where it runs: weights are read there, not sent."""
    on_gpu = arguments.num_gpus > 0
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if on_gpu else "float32"))
    pipe = UltraFlashStreamingPipeline.from_pretrained(arguments.checkpoint or default_checkpoint(), dtype=dtype)
    pipe.to("cuda" if on_gpu else "cpu")
    pipe.set_progress_bar_config(disable=True)
    settings = ServerSettings(
        max_streams=arguments.max_streams,
        max_queue=arguments.max_queue,
        save_every=arguments.save_every,
        api_key=arguments.api_key,
    )
    sessions = SessionStore(arguments.sessions)
    return create_app(Server([ServedModel(arguments.name, pipe)], settings, sessions))
