"""The streaming generator's network: parity with the recorded cases, streams, training, saving, compiling."""

import pytest
import torch
from wan_cases import TOLERANCE, Case, relative_error


def rollout(case: Case) -> list[float]:
    """Generates as the published code does; returns the error of each recorded output."""
    network, config, outputs = case.generator(), case.config, case.outputs
    sigmas = [step / 1000 for step in config["denoising_steps"]]
    shift = config["timestep_shift"]
    sigmas = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas]
    errors = [relative_error(torch.tensor(sigmas) * 1000, outputs["timesteps"])]
    text, state = case.input("context"), network.new_stream(cache_frames=config["cache_frames"])
    for chunk in range(config["chunks"]):
        latents = case.input(f"noise_{chunk}")
        for step, sigma in enumerate(sigmas):
            flow = network(latents, torch.full((1, latents.shape[2]), 1000 * sigma), text, state=state).sample
            if chunk == step == 0:
                errors.append(relative_error(flow, outputs["first_flow"]))
            clean = latents - sigma * flow
            if step + 1 < len(sigmas):
                noise = case.input(f"renoise_{chunk}_{step}")
                latents = (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * noise
        errors.append(relative_error(clean, outputs[f"denoised_{chunk}"]))
        state = network(clean, torch.zeros(1), text, state=state, commit=True).state
    return errors


@pytest.mark.parametrize("name", ["generator_global", "generator_rolling_sink", "generator_rolling_long"])
@torch.no_grad()
def test_generator_matches_the_published_one(name: str) -> None:
    errors = rollout(Case(name))
    assert max(errors) < TOLERANCE, errors
