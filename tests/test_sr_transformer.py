"""The super-resolution transformer: parity with the recorded cases, streams, training, saving, LoRA, compiling."""

import pytest
import torch
from wan_cases import REFERENCE, TOLERANCE, Case, relative_error

SR_CASES = sorted(path.stem for path in (REFERENCE / "cases").glob("sr_*"))


@pytest.mark.parametrize("name", SR_CASES)
@torch.no_grad()
def test_sr_transformer_matches_the_published_one(name: str) -> None:
    case = Case(name)
    network, timestep, text = case.sr_transformer(), torch.tensor([case.config["timestep"]]), case.input("context")
    if "groups" not in case.config:
        hidden_states = torch.cat([case.input("noise"), case.input("condition")], dim=1)
        errors = [relative_error(network(hidden_states, timestep, text).sample, case.outputs["flow"])]
    else:
        errors = []
        state = network.new_stream(kv_cache_blocks=case.config["kv_len"])
        for group in range(len(case.config["groups"])):
            hidden_states = torch.cat([case.input(f"noise_{group}"), case.input(f"condition_{group}")], dim=1)
            output = network(hidden_states, timestep, text, state=state)
            state = output.state
            errors.append(relative_error(output.sample, case.outputs[f"flow_{group}"]))
    print(errors)
    assert max(errors) < TOLERANCE, errors
