# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the errors of latents are measured in, and the benchmark of super-resolution transformers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_autoencoder, make_tiny_pipeline, make_tiny_transformer, make_tiny_upsampler

from benchmarks import super_resolution
from ultraflash_diffusers import HRAutoencoder
from ultraflash_diffusers.training.data.crops import Batch
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.losses.flow_matching import weighted_mse
from ultraflash_diffusers.training.losses.linear_decoding import decode_linearly, pixel_weights
from ultraflash_diffusers.training.stages.sr import FlowMatching, FlowMatchingTraining


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autoencoder_with_faint_channels() -> HRAutoencoder:
    """Its linear shortcut makes ten times less of each channel than of the one before."""
    autoencoder = make_tiny_autoencoder(linear_shortcut=True)
    channels = autoencoder.config.latent_channels
    with torch.no_grad():
        autoencoder.decoder_shortcut.weight.mul_((0.1 ** torch.arange(channels)).view(1, -1, 1, 1))
    return autoencoder


def test_pixel_weights_are_what_errors_of_latents_do_to_pixels() -> None:
    autoencoder = autoencoder_with_faint_channels()
    weights = pixel_weights(autoencoder).flatten()
    assert weights.mean().item() == pytest.approx(1, abs=1e-5) and weights[0] > 50 * weights[1]
    latents = torch.randn(1, len(weights), 2, 4, 4, generator=seeded())
    clean = decode_linearly(autoencoder, latents)
    energy = []
    for channel in range(len(weights)):
        wrong = latents.clone()
        wrong[:, channel] += 1
        # the first latent stands for one frame: the other one alone shows everything
        energy.append((decode_linearly(autoencoder, wrong) - clean)[:, :, 1:].square().sum())
    torch.testing.assert_close(torch.stack(energy) / torch.stack(energy).mean(), weights, rtol=1e-3, atol=1e-5)


def test_a_weighted_error_is_the_plain_one_with_equal_weights() -> None:
    one, other = torch.randn(2, 3, 4, generator=seeded()).unbind()
    plain = torch.nn.functional.mse_loss(one, other)
    assert torch.equal(weighted_mse(one, other), plain)
    torch.testing.assert_close(weighted_mse(one, other, torch.ones(3, 1)), plain)
    first = torch.tensor([3.0, 0.0, 0.0])[:, None]
    torch.testing.assert_close(weighted_mse(one, other, first), torch.nn.functional.mse_loss(one[0], other[0]))


@pytest.mark.parametrize("weigh_channels", [False, True])
@pytest.mark.parametrize("prediction_type", ["flow", "detail"])
def test_flow_matching_compares_what_the_network_predicts(prediction_type: str, weigh_channels: bool) -> None:
    autoencoder = autoencoder_with_faint_channels()
    transformer = make_tiny_transformer(prediction_type=prediction_type)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    objective = FlowMatching((0.0, 0.0), 0.0, 0.0, weigh_channels=weigh_channels)
    stage = FlowMatchingTraining(transformer, make_tiny_upsampler(), autoencoder, Prompts({}, 6, 8), objective)
    low = torch.rand(2, 3, 5, 16, 16, generator=seeded(7)) * 2 - 1
    batch = Batch(torch.nn.functional.interpolate(low, scale_factor=(1, 2, 2)), low, None, ["", ""])
    loss, _ = stage(batch, seeded(1))
    with torch.no_grad():
        clean, condition = batch.encode_high(autoencoder), stage.condition(batch)
    noise, _, _ = stage._inputs(condition, batch.texts, seeded(1))
    # an output of zeros is no flow, or the condition, at any noise level
    error = noise - clean if prediction_type == "flow" else condition - clean
    weights = pixel_weights(autoencoder) if weigh_channels else torch.ones(())
    torch.testing.assert_close(loss, (weights * error.square()).mean(), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip, a pipeline, and two transformers for it."""
    folder = tmp_path_factory.mktemp("material")
    rows, columns = np.mgrid[:384, :640]
    with av.open(str(folder / "one.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 384, 640, "yuv420p"
        for frame in range(9):
            waves = [128 + 100 * np.sin((rows + speed * columns) / 5 + frame / 5) for speed in (1, 2, 3)]
            pixels = np.stack(waves, axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    make_tiny_pipeline(group_frames=2).save_pretrained(folder / "pipeline")
    make_tiny_transformer(prediction_type="detail").save_pretrained(folder / "sr" / "transformer")
    make_tiny_transformer(prediction_type="detail", use_sparse_attention=False).save_pretrained(folder / "dense")
    return folder


@pytest.mark.parametrize("degradation", [None, "classic"])
def test_the_command_compares_transformers(material: Path, degradation: str | None, capsys) -> None:
    flags = ["--clips", str(material), "--names", "one", "--checkpoint", str(material / "pipeline"), "--frames", "9"]
    flags += ["--height", "32", "--width", "48", "--json", str(material / "rows.json"), "--flow_shift", "0.5"]
    flags += ["--transformer", f"dense={material / 'dense'}:3", f"sparse={material / 'sr'}", "--reference", "dense"]
    rows = super_resolution.main(flags + ([] if degradation is None else ["--degradation", degradation]))
    assert list(rows) == ["upsampler alone", "dense", "sparse", "truth"]
    assert "distance" not in rows["dense"] and np.isfinite(rows["sparse"]["distance"])
    assert rows["truth"]["detail"] == rows["truth"]["sharpness"] == 1 and rows["truth"]["warping"] > 0
    for name in ("dense", "sparse"):
        assert rows[name]["milliseconds"] > rows["upsampler alone"]["milliseconds"]
    assert len({row["psnr"] for row in rows.values()}) == 4
    printed = capsys.readouterr().out
    assert "| sparse |" in printed and "| truth | - | - | 1.000 | 1.00 |" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--transformer", "sr"), "NAME=FOLDER"),
        (("--transformer", "sr=tests:0"), "NAME=FOLDER"),
        (("--transformer", "sr=tests", "--frames", "8"), "--frames 8: must be 4 n \\+ 1"),
        (("--transformer", "sr=tests", "--reference", "teacher"), "--reference teacher: must be one of"),
    ],
)
def test_what_cannot_be_is_refused(capsys, material: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit):
        super_resolution.parse(["--clips", str(material), *flags])
    assert message.replace("\\", "") in capsys.readouterr().err
