"""The recorded cases of the two Wan-shaped transformers: what was put in, what the published implementation gave."""

import json
from pathlib import Path
from typing import Any

import torch
from reference.deterministic import fill_input, fill_layout
from safetensors import safe_open

from ultraflash_diffusers.models.causal_wan_transformer import CausalWanTransformer
from ultraflash_diffusers.models.ultraflash_sr_transformer import UltraFlashSRTransformer

REFERENCE = Path(__file__).parent / "reference"
TOLERANCE = 1e-5
_RENAMED = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    ".modulation": ".scale_shift_table",
    ".self_attn.": ".attn1.",
    ".cross_attn.": ".attn2.",
    ".q.": ".to_q.",
    ".k.": ".to_k.",
    ".v.": ".to_v.",
    ".o.": ".to_out.0.",
    ".norm3.": ".norm2.",
    ".ffn.0.": ".ffn.net.0.proj.",
    ".ffn.2.": ".ffn.net.2.",
}


class Case:
    """One recorded case: its settings, its inputs by name, its outputs by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        with safe_open(REFERENCE / "cases" / f"{name}.safetensors", framework="pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            self.outputs = {key: file.get_tensor(key) for key in file.keys()}

    def input(self, name: str) -> torch.Tensor:
        return fill_input(self.name, name, tuple(self.config["inputs"][name]))

    def state_dict(self) -> dict[str, torch.Tensor]:
        renamed = {}
        for key, tensor in fill_layout(REFERENCE / "layouts" / f"{self.name}.json").items():
            for published, ours in _RENAMED.items():
                key = key.replace(published, ours)
            renamed[key] = tensor
        return renamed

    def _common(self) -> dict[str, Any]:
        config = self.config
        return {
            "patch_size": tuple(config["patch_size"]),
            "num_attention_heads": config["num_heads"],
            "attention_head_dim": config["dim"] // config["num_heads"],
            "in_channels": config["in_dim"],
            "out_channels": config["out_dim"],
            "text_dim": config["text_dim"],
            "text_length": config["text_len"],
            "freq_dim": config["freq_dim"],
            "ffn_dim": config["ffn_dim"],
            "num_layers": config["num_layers"],
        }

    def generator(self) -> CausalWanTransformer:
        window = self.config["local_attn_size"]
        network = CausalWanTransformer(
            **self._common(),
            frames_per_chunk=self.config["frames_per_chunk"],
            window_frames=None if window < 0 else window,
            sink_frames=self.config["sink_size"],
        )
        network.load_state_dict(self.state_dict())
        return network.eval()

    def sr_transformer(self) -> UltraFlashSRTransformer:
        config = self.config
        network = UltraFlashSRTransformer(
            **self._common(),
            use_sparse_attention=config["use_sparse_attn"],
            block_size=tuple(config["sparse_block_size"]),
            top_k_ratio=config["sparse_top_k_ratio"],
            local_range=config["sparse_local_range"],
            chunk_size=config["stream_chunk_size"],
            reference_tokens=config["sparse_ref_spatial_tokens"],
        )
        network.load_state_dict(self.state_dict())
        return network.eval()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
