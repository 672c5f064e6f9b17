# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a transformer of large patches where its tokens have few numbers.

A patch of 3 x 8 x 8 latents with 96 channels has 18,432 numbers, and the first and last layer that read and write them
cost more than the rest of a small transformer. Clean tokens lie near a subspace, though. There one trains: what a
network with patches of one does to the tokens' coordinates, a network with the large patches does to the latents, once
its first and last layer are multiplied by the subspace's bases (see [`TokenSubspace.expanded`]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from ...models.causal_wan_transformer import CausalWanTransformer
from ..files import written_whole


@dataclass(frozen=True)
class TokenSubspace:
    """A subspace of patches of latents, with coordinates in which unit normal noise on latents is unit normal noise.

    Args:
        patch_size (`tuple[int, int, int]`): latents of a patch over time, height and width.
        channels (`int`): of the latents.
        analysis (`torch.Tensor` of shape `[rank, size]`): from patches (channels first) to coordinates; its rows are
            orthonormal.
        synthesis (`torch.Tensor` of shape `[size, rank]`): from coordinates to patches.
        scale (`torch.Tensor` of shape `[rank]`): root mean square of each coordinate of clean patches.
        gain (`torch.Tensor` of shape `[rank]`): how far a unit step moves the patch, in the metric of [`fit`].
    """

    patch_size: tuple[int, int, int]
    channels: int
    analysis: torch.Tensor
    synthesis: torch.Tensor
    scale: torch.Tensor
    gain: torch.Tensor

    @classmethod
    def fit(
        cls,
        patches: torch.Tensor,
        patch_size: tuple[int, int, int],
        rank: int,
        channel_weights: torch.Tensor | None = None,
    ) -> TokenSubspace:
        """Finds the subspace that holds most of the patches' energy, in which channels count as their weights say.

        Args:
            patches (`torch.Tensor` of shape `[number, channels * t * h * w]`): clean, from [`cut_patches`].
            patch_size (`tuple[int, int, int]`): (t, h, w).
            rank (`int`): dimensions of the subspace.
            channel_weights (`torch.Tensor` of shape `[channels]`, *optional*): how far a unit of each channel moves
                the pixels; 1 by default.

        Raises:
            ValueError: fewer patches or smaller ones than `rank`.
        """
        if rank > min(patches.shape):
            raise ValueError(f"`rank` is {rank}, above what `patches` {tuple(patches.shape)} can span")
        channels = patches.shape[1] // math.prod(patch_size)
        weights = torch.ones(channels) if channel_weights is None else channel_weights.clamp_min(1e-4)
        weights = weights.repeat_interleave(math.prod(patch_size)).to(patches)
        weighted = patches * weights
        basis = _leading_directions(weighted, rank).double()
        # coordinates in that basis, turned and scaled so that noise is white and clean coordinates are uncorrelated
        factor = torch.linalg.cholesky(basis.T @ (weights.double()[:, None] ** 2 * basis))
        coordinates = torch.linalg.solve_triangular(factor, (weighted @ basis.float()).double().T, upper=False)
        energies, turn = torch.linalg.eigh(coordinates @ coordinates.T / len(patches))
        energies, turn = energies.flip(0), turn.flip(1)
        analysis = turn.T @ torch.linalg.solve_triangular(factor, basis.T * weights.double(), upper=False)
        mixing = factor @ turn
        return cls(
            patch_size,
            channels,
            analysis.float(),
            ((basis @ mixing) / weights.double()[:, None]).float(),
            energies.clamp_min(1e-12).sqrt().float(),
            mixing.norm(dim=0).float(),
        )

    @property
    def rank(self) -> int:
        return len(self.scale)

    @property
    def amplitude(self) -> torch.Tensor:
        """How much of the pixels each coordinate of clean patches makes up, `[rank]`."""
        return self.gain * self.scale

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns the coordinates `[batch, rank, f / t, height / h, width / w]` of latents."""
        batch, _, *size = latents.shape
        grid = [side // patch for side, patch in zip(size, self.patch_size, strict=True)]
        patches = cut_patches(latents, self.patch_size)
        return (patches @ self.analysis.T.to(patches)).view(batch, *grid, self.rank).permute(0, 4, 1, 2, 3)

    def lift(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Returns the latents of coordinates, the inverse of [`project`] inside the subspace."""
        patches = coordinates.permute(0, 2, 3, 4, 1) @ self.synthesis.T.to(coordinates)
        patches = patches.unflatten(-1, (self.channels, *self.patch_size)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def compact_config(self, config: dict) -> dict:
        """Returns the arguments of the network that is trained in the subspace for one of `config`.

        Raises:
            ValueError: a network that does not predict clean latents, or is not for these patches.
        """
        if config["prediction_type"] != "sample":
            raise ValueError(f"`prediction_type` must be 'sample' in a subspace, got {config['prediction_type']!r}")
        if (tuple(config["patch_size"]), config["in_channels"]) != (self.patch_size, self.channels):
            raise ValueError(
                f"the subspace is for `patch_size` {self.patch_size} and {self.channels} channels, the network has "
                f"{tuple(config['patch_size'])} and {config['in_channels']}"
            )
        return config | {"patch_size": (1, 1, 1), "in_channels": self.rank, "out_channels": self.rank}

    @torch.no_grad()
    def compacted(self, network: CausalWanTransformer) -> CausalWanTransformer:
        """Returns the network in the subspace of one that [`expanded`] has made, the same again."""
        compact = CausalWanTransformer(**self.compact_config(arguments_of(network)))
        own = dict(network.state_dict())
        first = own["patch_embedding.weight"].flatten(1) @ self.synthesis
        own["patch_embedding.weight"] = first[..., None, None, None]
        # the network writes channels last
        analysis = self.analysis.unflatten(1, (self.channels, -1)).transpose(1, 2).flatten(1)
        for name in ("proj_out.weight", "proj_out.bias"):
            own[name] = analysis @ own[name]
        compact.load_state_dict(own)
        return compact

    @torch.no_grad()
    def expanded(self, compact: CausalWanTransformer, config: dict) -> CausalWanTransformer:
        """Returns the network of `config` that does to latents what `compact` does to coordinates."""
        network = CausalWanTransformer(**config)
        own = plain_state_dict(compact)
        first, last, bias = (own.pop(name) for name in ("patch_embedding.weight", "proj_out.weight", "proj_out.bias"))
        # the network writes channels last
        synthesis = self.synthesis.unflatten(0, (self.channels, -1)).transpose(0, 1).flatten(0, 1)
        own["patch_embedding.weight"] = (first.flatten(1) @ self.analysis).view_as(network.patch_embedding.weight)
        own["proj_out.weight"], own["proj_out.bias"] = synthesis @ last, synthesis @ bias
        network.load_state_dict(own)
        return network

    def save(self, path: Path) -> None:
        """Writes it to a `.safetensors` file, whole or not at all."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        tensors["patch_size"] = torch.tensor(self.patch_size)
        with written_whole(path) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> TokenSubspace:
        """Reads what [`save`] has written."""
        tensors = load_file(path)
        t, h, w = tensors.pop("patch_size").tolist()
        return cls((t, h, w), tensors["analysis"].shape[1] // (t * h * w), **tensors)


class _Scaled(nn.Module):
    """Multiplies a parameter by constants, so that the optimiser sees it at the scale at which it is."""

    scale: torch.Tensor

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter * self.scale

    def right_inverse(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter / self.scale


def scale_ends(network: CausalWanTransformer, scale: torch.Tensor, new: bool) -> None:
    """Makes a network learn to read and write channels of very different scales as if all were one.

    Args:
        network (`CausalWanTransformer`): with patches of one; its first and last layer are parametrised.
        scale (`torch.Tensor` of shape `[channels]`): root mean square of each channel of clean latents.
        new (`bool`): whether the weights are random ones, which are brought to the channels' scales first.
    """
    noisy = (1 + scale.square()).rsqrt()
    ends = (
        (network.patch_embedding, "weight", noisy.view(1, -1, 1, 1, 1)),
        (network.proj_out, "weight", scale.view(-1, 1)),
        (network.proj_out, "bias", scale),
    )
    for module, name, factor in ends:
        if new:
            getattr(module, name).data.mul_(factor)
        parametrize.register_parametrization(module, name, _Scaled(factor))


def arguments_of(network: CausalWanTransformer) -> dict:
    """The arguments with which a network was made."""
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def plain_state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a network works with, with those of [`scale_ends`] multiplied out; on the CPU."""
    state = {name: value for name, value in network.state_dict().items() if ".parametrizations." not in name}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module):
            state |= {f"{name}.{each}": getattr(module, each) for each in module.parametrizations}
    return {name: value.detach().cpu() for name, value in state.items()}


def cut_patches(latents: torch.Tensor, patch_size: tuple[int, int, int]) -> torch.Tensor:
    """Returns the patches `[batch * patches, channels * t * h * w]` of latents, in raster order.

    Raises:
        ValueError: latents that are no whole number of patches.
    """
    size = latents.shape[2:]
    if any(side % patch for side, patch in zip(size, patch_size, strict=True)):
        raise ValueError(f"latents of {tuple(size)} frames, rows and columns are not whole patches of {patch_size}")
    t, h, w = patch_size
    split = latents.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(0, 3)


def _leading_directions(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """Orthonormal `[size, rank]` that span most of the rows, by subspace iteration with a fixed start."""
    start = torch.randn(rows.shape[1], min(rank + 16, len(rows)), generator=torch.Generator().manual_seed(0))
    directions = torch.linalg.qr(start.to(rows))[0]
    for _ in range(3):
        directions = torch.linalg.qr(rows.T @ (rows @ directions))[0]
    small = rows @ directions
    _, turn = torch.linalg.eigh(small.T @ small)
    return torch.linalg.qr(directions @ turn.flip(1)[:, :rank])[0]
