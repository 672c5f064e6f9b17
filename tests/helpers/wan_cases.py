"""The recorded cases of the two Wan-shaped transformers: what was put in, what the published implementation gave."""

import json
from typing import Any

import torch
from reference.deterministic import fill_input, fill_layout
from safetensors import safe_open

from helpers.paths import TESTS
from ultraflash_diffusers.conversion import from_original

REFERENCE = TESTS / "reference"
TOLERANCE = 1e-5
# what a recorded run was driven with; the rest of its config are settings of the network
_DRIVING = {"inputs", "timestep", "groups", "kv_len", "chunks", "chunk_frames", "cache_frames", "first_latent_frames"}
_DRIVING |= {"switch_chunks", "lora_rank", "lora_alpha", "lora_layout"}


class Case:
    """One recorded case: its settings, its inputs by name, its outputs by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        with safe_open(REFERENCE / "cases" / f"{name}.safetensors", framework="pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            self.outputs = {key: file.get_tensor(key) for key in file.keys()}

    def input(self, name: str) -> torch.Tensor:
        return fill_input(self.name, name, tuple(self.config["inputs"][name]))

    def network(self) -> Any:
        """The network with the case's weights, as the converter makes it from published keys."""
        weights = fill_layout(REFERENCE / "layouts" / f"{self.name}.json")
        settings = {name: value for name, value in self.config.items() if name not in _DRIVING}
        return from_original(weights, **settings)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((actual - expected).norm() / expected.norm()).detach())
