# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which network a LoRA is for, and whether it fits it. Nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...weight_files import without_wrappers
from .layers import Layers, LoraLayer

_LISTED = 5


def choose_components(
    layers: Mapping[str | None, Layers], networks: Mapping[str, torch.nn.Module], component: str | None
) -> dict[str, Layers]:
    """Says which layers go into which network.

    Args:
        layers (`Mapping`): layers by the component that the file says, see [`lora_layers`].
        networks (`Mapping[str, torch.nn.Module]`): the pipeline's, by component.
        component (`str`, *optional*): the caller's choice. Of a file that says several components, its own part; what
            a file says of one other component does not count against it, since in other pipelines the generator's
            network is called `transformer`.

    Raises:
        ValueError: the layers do not fit, or fit several networks, and neither file nor caller says for which they
            are.
    """
    if component is not None:
        if component not in networks:
            raise ValueError(f"`component` is {component!r}, but a LoRA can go into {_listed(networks)}")
        return {component: _fitting(layers.get(component) or _only(layers, component), networks, component)}
    chosen: dict[str, Layers] = {}
    for said, part in layers.items():
        target = said or _the_one_that_fits(part, networks)
        if target not in networks:
            raise ValueError(f"the LoRA is for the {target}, which this pipeline does not have")
        chosen[target] = {**chosen.get(target, {}), **_fitting(part, networks, target)}
    return chosen


def _only(layers: Mapping[str | None, Layers], component: str) -> Layers:
    if len(layers) > 1:
        said = ", ".join(str(name) for name in layers)
        raise ValueError(f"`component` is {component!r}, but the LoRA holds layers of {said}")
    return next(iter(layers.values()))


def _fitting(layers: Layers, networks: Mapping[str, torch.nn.Module], component: str) -> Layers:
    problems = misfits(layers, networks[component])
    if problems:
        others = [name for name, network in networks.items() if not misfits(layers, network)]
        hint = f"; it fits the {others[0]}: pass `component={others[0]!r}`" if others else ""
        raise ValueError(f"the LoRA does not fit the {component}: {_shortened(problems)}{hint}")
    return layers


def _the_one_that_fits(layers: Layers, networks: Mapping[str, torch.nn.Module]) -> str:
    problems = {name: misfits(layers, network) for name, network in networks.items()}
    fitting = [name for name in networks if not problems[name]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(
            f"the LoRA fits {_listed(fitting)} alike, and does not say for which it is: pass `component=...`"
        )
    reasons = "; ".join(f"{name}: {_shortened(reasons)}" for name, reasons in problems.items())
    raise ValueError(f"the LoRA fits no network of the pipeline ({reasons})")


def misfits(layers: Layers, network: torch.nn.Module) -> list[str]:
    """What of a LoRA does not fit a network: layers that it does not have or that have other widths."""
    weights = adaptable_weights(network)
    problems = []
    for name, layer in layers.items():
        if name not in weights:
            problems.append(f"there is no layer `{name}`")
        elif _shape(layer) != weights[name]:
            problems.append(f"`{name}` changes a weight of shape {_shape(layer)}, that is {weights[name]}")
    return problems


def adaptable_weights(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA can change, by the layer's name, adapted ones included."""
    shapes = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d) and ".lora_" not in name:
            shapes[without_wrappers(name.removesuffix(".base_layer"))] = tuple(module.weight.shape)
    return shapes


def _shape(layer: LoraLayer) -> tuple[int, ...]:
    return (layer.up.shape[0], *layer.down.shape[1:])


def _listed(names: Mapping[str, object] | list[str]) -> str:
    return " and ".join(repr(name) for name in names) or "no network of this pipeline"


def _shortened(problems: list[str]) -> str:
    more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return ", ".join(problems[:_LISTED]) + more
