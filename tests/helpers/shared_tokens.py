"""Networks whose tokens several processes share, against the same networks in one process.

python -m helpers.shared_tokens FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import ContextParallelConfig
from torch import distributed

from helpers.distributed_runs import launch
from helpers.tiny import make_tiny_pipeline
from helpers.wan_cases import relative_error
from helpers.wan_networks import CHANNELS, latents, make_generator, make_sr, prompt

# by name: how the network is made, and which (ring, ulysses) degrees share it
NETWORKS: dict[str, tuple[Any, list[tuple[int, int]]]] = {
    "dense": (lambda: make_sr("dense"), [(1, 2), (2, 1), (2, 2)]),
    "sparse": (make_sr, [(1, 2)]),
    "global": (make_generator, [(1, 2), (2, 1), (2, 2)]),
    "rolling": (lambda: make_generator(window_frames=5, sink_frames=1, absolute_positions=True), [(1, 2), (2, 1)]),
}


def clip(network: Any, frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents, and timesteps that differ from frame to frame where they may."""
    hidden_states = latents(frames, network.config.in_channels, seed=seed)
    if network.config.in_channels > CHANNELS:
        return hidden_states, torch.tensor([700.0])
    return hidden_states, torch.linspace(100, 900, frames)[None]


def gradients(network: Any) -> dict[str, torch.Tensor]:
    """Of the squares of what a whole clip gives, as DDP averages them."""
    network.zero_grad()
    hidden_states, timestep = clip(network, frames=6)
    network(hidden_states, timestep, prompt()).sample.square().sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    for gradient in found.values():
        distributed.all_reduce(gradient, distributed.ReduceOp.AVG)
    return found


@torch.no_grad()
def stream(network: Any, **options: Any) -> Iterator[torch.Tensor]:
    """What chunks give, each after one that is not kept."""
    commit = {"commit": True} if network.config.in_channels == CHANNELS else {}
    state = network.new_stream(**options)
    for seed in range(5):
        hidden_states, timestep = clip(network, frames=2, seed=seed)
        if commit:
            yield network(hidden_states, timestep, prompt(), state=state).sample
        output = network(hidden_states, timestep, network.encode_text(prompt()), state=state, **commit)
        state = output.state
        yield output.sample


def largest(ours: Any, expected: Any) -> float:
    return max(relative_error(one, other) for one, other in zip(ours, expected, strict=True))


def compare(name: str, ring: int, ulysses: int, file: Path) -> None:
    """The relative errors of processes that share the tokens."""
    distributed.init_process_group("gloo")
    make, _ = NETWORKS[name]
    alone, shared = make(), make()
    shared.enable_parallelism(config=ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses))
    inputs = (*clip(alone, frames=6), prompt())
    errors = {"forward": largest([shared(*inputs).sample], [alone(*inputs).sample])}
    expected = gradients(alone)
    errors["gradients"] = largest(gradients(shared).values(), expected.values())
    shared.enable_gradient_checkpointing()
    errors["checkpointed"] = largest(gradients(shared).values(), expected.values())
    kinds: dict[str, Any] = {"stream": {}}
    if name in ("sparse", "rolling"):
        kinds["single_use"] = {"single_use": True}
    for kind, options in kinds.items():
        errors[kind] = largest(stream(shared, **options), stream(alone, **options))
    if distributed.get_rank() == 0:
        file.write_text(json.dumps(errors))


def compare_videos(file: Path) -> None:
    """A whole pipeline, from text to frames, and what is said of frames that cannot be shared."""
    distributed.init_process_group("gloo")
    alone, shared = make_tiny_pipeline(), make_tiny_pipeline()
    for network in (shared.transformer, shared.generator_transformer):
        network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    ours, expected = (
        pipe("a red ball rolls", generator=torch.Generator().manual_seed(3), output_type="pt", return_dict=False)[0]
        for pipe in (shared, alone)
    )
    try:
        shared.generator_transformer(torch.zeros(1, 4, 3, 2, 2), torch.zeros(1), torch.zeros(1, 6, 8))
    except ValueError as error:
        refusal = str(error)
    if distributed.get_rank() == 0:
        file.write_text(json.dumps({"frames": largest([ours], [expected]), "refusal": refusal}))


def main(folder: Path) -> None:
    for name, (_, degrees) in NETWORKS.items():
        for ring, ulysses in degrees:
            launch(ring * ulysses, compare, name, ring, ulysses, folder / f"{name}_{ring}x{ulysses}.json")
    launch(2, compare_videos, folder / "pipeline.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
