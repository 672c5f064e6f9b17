# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Rewards and perceptual losses: the contract that they share, the scorer that ships, and how it is trained."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny import make_tiny_autoencoder, make_tiny_generator
from PIL import Image

from ultraflash_diffusers.pipelines.cache_management import SCORED_SIZE, DynamicCacheManagement
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.pipelines.sources import TextGeneratorSource
from ultraflash_diffusers.rewards import (
    HybridReward,
    PyIQAReward,
    QualityScorer,
    Reward,
    check_frames,
    load_reward,
    packaged_quality_scorer,
)
from ultraflash_diffusers.training.data.crops import Batch
from ultraflash_diffusers.training.losses import perceptual
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss
from ultraflash_diffusers.training.stages.quality import DEGRADATIONS, QualityObjective, QualityTraining
from ultraflash_diffusers.video_io import VideoReader

REPOSITORY = ROOT
SCRIPT = REPOSITORY / "training" / "train_quality_scorer.py"
CLIP = REPOSITORY / "examples" / "big_buck_bunny_192x336.mp4"


def make_scorer(seed: int = 0) -> QualityScorer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return QualityScorer(channels=(8, 8), head_channels=8)


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Sharp shapes on a fine texture, uint8 `[height, width, 3]`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 40 * np.sin((rows + columns * tilt) / rng.uniform(1, 2) + seed) for tilt in (1, 0.5, -1)]
    canvas = np.stack(waves, axis=-1)
    for _ in range(12):
        top, left = rng.integers(height), rng.integers(width)
        canvas[top : top + rng.integers(6, 30), left : left + rng.integers(6, 30)] = rng.integers(0, 255, 3)
    return canvas.clip(0, 255).astype(np.uint8)


def frames_of(*seeds: int) -> torch.Tensor:
    """Pictures `[n, 3, 96, 128]` in [0, 1]."""
    return torch.from_numpy(np.stack([picture(seed) for seed in seeds])).permute(0, 3, 1, 2) / 255


def batch_of(*seeds: int) -> Batch:
    """A batch of pictures in [-1, 1], 160x160."""
    pixels = torch.from_numpy(np.stack([picture(seed, 160, 160) for seed in seeds])).permute(0, 3, 1, 2)
    return Batch(pixels[:, :, None] / 127.5 - 1, None, None, [""] * len(seeds))


def brightness(frames: torch.Tensor) -> torch.Tensor:
    return frames.mean((1, 2, 3))


class TestProtocol:
    def test_hybrid_is_the_weighted_mean(self) -> None:
        frames = frames_of(1, 2)
        rewards: dict[str, Reward] = {"bright": brightness, "dark": lambda frames: 1 - brightness(frames)}
        reward = HybridReward(rewards, {"bright": 3, "dark": 1})
        mean = brightness(frames)
        torch.testing.assert_close(reward(frames), (3 * mean + (1 - mean)) / 4)
        torch.testing.assert_close(HybridReward(rewards)(frames), torch.full((2,), 0.5))

    def test_hybrid_moves_its_networks_and_passes_gradients_on(self) -> None:
        reward = HybridReward({"network": make_scorer(), "bright": brightness})
        assert next(reward.double().parameters()).dtype == torch.float64
        frames = frames_of(1).requires_grad_(True)
        reward.float()(frames).sum().backward()
        assert frames.grad is not None and (frames.grad - 0.5 / frames[0].numel()).abs().max() > 0

    def test_hybrids_that_make_no_sense_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`rewards` is empty"):
            HybridReward({})
        with pytest.raises(ValueError, match=r"`weights` must be for \['bright'\], they are for \['dark'\]"):
            HybridReward({"bright": brightness}, {"dark": 1})
        for weight in (-1, 0):
            with pytest.raises(ValueError, match="`weights` must be 0 or above and not all 0"):
                HybridReward({"bright": brightness}, {"bright": weight})
        with pytest.raises(ValueError, match="'mean' must return one score for each of the 2 frames"):
            HybridReward({"mean": lambda frames: frames.mean()})(frames_of(1, 2))

    @pytest.mark.parametrize("reward", [make_scorer(), HybridReward({"bright": brightness})])
    def test_frames_that_are_none_are_refused(self, reward: Reward) -> None:
        good = torch.rand(2, 3, 32, 32)
        reward(good)
        with pytest.raises(TypeError, match="`frames` must be a torch.Tensor, got ndarray"):
            reward(good.numpy())  # type: ignore[arg-type]
        for wrong in (good[0], good[:, :1], good[:0], good[None]):
            with pytest.raises(ValueError, match=r"`frames` must have shape \[n, 3, height, width\], got"):
                reward(wrong)
        with pytest.raises(ValueError, match="floating-point numbers in .0, 1., got torch.uint8"):
            reward((good * 255).byte())
        for wrong in (good * 2 - 1, good * 255, good / 0):
            with pytest.raises(ValueError, match=r"`frames` must be in \[0, 1\], got values from"):
                reward(wrong)

    def test_rounding_is_no_error(self) -> None:
        check_frames(torch.tensor([-0.0005, 1.0005]).half().expand(1, 3, 1, 2))


class TestScorer:
    @pytest.mark.parametrize("size", [(32, 32), (37, 55), (SCORED_SIZE, SCORED_SIZE)])
    def test_any_size(self, size: tuple[int, int]) -> None:
        scores = make_scorer()(torch.rand(3, 3, *size))
        assert scores.shape == (3,) and ((scores > 0) & (scores < 1)).all()

    def test_every_pixel_counts(self) -> None:
        frames = torch.rand(1, 3, 33, 35, requires_grad=True)
        make_scorer().logits(frames).sum().backward()
        assert frames.grad is not None and (frames.grad != 0).all()

    def test_a_batch_is_scored_one_by_one(self) -> None:
        scorer, frames = make_scorer(), frames_of(1, 2, 3)
        torch.testing.assert_close(scorer(frames), torch.cat([scorer(frame[None]) for frame in frames]))

    def test_too_small_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 4 pixels high and wide"):
            make_scorer()(torch.rand(1, 3, 3, 32))

    def test_no_stages_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`channels` must be one or more positive widths"):
            QualityScorer(channels=())

    def test_saved_in_half_precision_and_loaded(self, tmp_path: Path) -> None:
        scorer, frames = make_scorer(), frames_of(1, 2)
        QualityTraining(scorer, QualityObjective()).save_pretrained(tmp_path)
        assert scorer.dtype == torch.float32
        loaded = load_reward(str(tmp_path))
        assert isinstance(loaded, QualityScorer) and not any(p.requires_grad for p in loaded.parameters())
        torch.testing.assert_close(loaded(frames), scorer(frames), atol=1e-3, rtol=0)
        assert loaded.to(torch.bfloat16)(frames).dtype == torch.float32


class TestTraining:
    def test_a_few_steps_improve_the_ranking(self) -> None:
        """On pictures that it was not trained on."""
        stage = QualityTraining(make_scorer(), QualityObjective(size=32, mixed_share=0.0))
        optimizer = torch.optim.Adam(stage.trained_parameters(), lr=1e-2)
        train, held_out = batch_of(*range(8)), batch_of(*range(100, 108))

        def accuracy() -> float:
            measured = [stage(held_out, torch.Generator().manual_seed(1000 + seed))[1] for seed in range(4)]
            return sum(each["accuracy"].item() for each in measured) / 4

        before = accuracy()
        for step in range(60):
            loss, _ = stage(train, torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert accuracy() > max(0.75, before + 0.15)

    def test_a_batch_depends_on_its_generator_alone(self) -> None:
        stage = QualityTraining(make_scorer(), QualityObjective(size=32))
        batch = batch_of(1, 2)
        losses = [stage(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
        assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])

    @pytest.mark.parametrize("name", DEGRADATIONS)
    def test_stronger_is_farther_from_the_picture(self, name: str) -> None:
        clean = picture(3)[None]
        errors = []
        for strength in (0.05, 0.35, 0.65, 1.0):
            degraded = DEGRADATIONS[name](strength)(clean, np.random.default_rng(0))
            errors.append(float(((degraded.astype(float) - clean) ** 2).mean()))
        assert errors == sorted(errors) and errors[-1] > 4 * errors[0]

    def test_the_script(self, tmp_path: Path) -> None:
        for folder, seeds in {"train": range(4), "held_out": (9,)}.items():
            (tmp_path / folder).mkdir()
            for seed in seeds:
                Image.fromarray(picture(seed, 128, 160)).save(tmp_path / folder / f"{seed}.png")
        (tmp_path / "scorer.json").write_text(json.dumps({"channels": [8, 8], "head_channels": 8}))
        specification = importlib.util.spec_from_file_location("train_quality_scorer", SCRIPT)
        assert specification is not None and specification.loader is not None
        script = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(script)
        arguments = [
            f"--network_config={tmp_path / 'scorer.json'}", f"--train_data_dir={tmp_path / 'train'}",
            f"--validation_data_dir={tmp_path / 'held_out'}", f"--output_dir={tmp_path / 'out'}", "--crops=1x64x64",
            "--size=32", "--train_batch_size=2", "--max_train_steps=3", "--clip_frames=2", "--validation_frames=1",
        ]  # fmt: skip
        measures = script.main(script.parse_arguments(arguments))
        assert {f"validation/accuracy_{name}" for name in DEGRADATIONS} < measures.keys()
        assert load_reward(str(tmp_path / "out"))(frames_of(1)).shape == (1,)
        with pytest.raises(ValueError, match="--size must be at least 4 for this network, got 3"):
            script.main(script.parse_arguments([*arguments, "--size=3"]))


@pytest.fixture(scope="module")
def scorer() -> QualityScorer:
    return packaged_quality_scorer()


class TestPackaged:
    def test_size(self, scorer: QualityScorer) -> None:
        assert scorer.num_parameters() * 2 < 700_000 and scorer.dtype == torch.float32

    @pytest.mark.parametrize("name", DEGRADATIONS)
    def test_ranks_degraded_pictures_below_a_clean_one(self, scorer: QualityScorer, name: str) -> None:
        clean = next(iter(VideoReader(CLIP))).pixels[None]
        ladder = [clean, *(DEGRADATIONS[name](s)(clean, np.random.default_rng(0)) for s in (0.4, 0.8))]
        pictures = torch.from_numpy(np.concatenate(ladder)).permute(0, 3, 1, 2) / 255
        best, middle, worst = scorer(pictures).tolist()
        assert best > middle > worst
        assert best > DynamicCacheManagement.quality_threshold > worst

    def test_the_cache_threshold_lies_between_a_clean_frame_and_noise(self, scorer: QualityScorer) -> None:
        policy = DynamicCacheManagement(quality_scorer=scorer)
        clean = torch.from_numpy(next(iter(VideoReader(CLIP))).pixels).permute(2, 0, 1)[None] / 127.5 - 1
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        assert policy.skips_context_pass(policy.quality(clean))
        assert not policy.skips_context_pass(policy.quality(noise))

    @pytest.mark.parametrize(("threshold", "skipped"), [(0.0, [1, 1]), (1.0, [0, 0])])
    def test_decides_in_a_stream(self, scorer: QualityScorer, threshold: float, skipped: list[int]) -> None:
        policy = DynamicCacheManagement(quality_scorer=scorer, quality_threshold=threshold)
        source = TextGeneratorSource(
            make_tiny_generator(), make_tiny_autoencoder(), torch.randn(1, 6, 8), SeededFrameNoise([1], 1),
            height=32, width=32, multiple_of=16, num_frames=21, cache_management=policy,
        )  # fmt: skip
        assert [chunk.statistics["skipped_context_passes"] for chunk in source.chunks()] == skipped


def random_pyiqa_reward(name: str, monkeypatch: pytest.MonkeyPatch) -> PyIQAReward:
    """A reward of the real package, with random weights."""
    pyiqa = pytest.importorskip("pyiqa")
    monkeypatch.setattr(pyiqa, "create_metric", partial(pyiqa.create_metric, pretrained=False))
    sizes = {"embed_dim": 32, "image_resolution": 224, "context_length": 77, "vocab_size": 49408}
    sizes |= {"transformer_width": 64, "transformer_heads": 2, "transformer_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "clip_iqa_plus":
            clip = importlib.import_module("pyiqa.archs.clip_model").CLIP(
                vision_layers=(1, 1, 1, 1), vision_width=16, vision_patch_size=None, **sizes
            )
            monkeypatch.setattr("pyiqa.archs.clipiqa_arch.load", lambda *_: clip.eval())
        if name == "laion_aesthetic":
            clip = importlib.import_module("clip.model").CLIP(
                vision_layers=2, vision_width=64, vision_patch_size=14, **sizes
            )
            monkeypatch.setattr("clip.load", lambda *_: (clip.eval(), None))
        return PyIQAReward(name)


class TestPyIQA:
    def test_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyiqa", None)
        with pytest.raises(ImportError, match=r"'musiq' needs `pyiqa`.*pip install .*ultraflash_diffusers\[rewards\]"):
            load_reward(["packaged", "musiq"])

    def test_scores_are_brought_to_the_unit_range(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in for the package, whose weights are a download: networks of `[n, 1]` scores in their own range."""
        bounds = {"clipiqa+": (0, 1), "musiq": (0, 100), "laion_aes": (1, 10)}

        class Metric(torch.nn.Module):
            def __init__(self, name: str) -> None:
                super().__init__()
                self.low, self.high = bounds[name]

            def forward(self, frames: torch.Tensor) -> torch.Tensor:
                assert not self.training
                return self.low + (self.high - self.low) * brightness(frames)[:, None]

        def create_metric(name: str, as_loss: bool, loss_reduction: str, device: torch.device) -> Metric:
            assert as_loss and loss_reduction == "none"
            return Metric(name)

        package = ModuleType("pyiqa")
        package.create_metric = create_metric  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyiqa", package)
        frames = frames_of(1, 2)
        for name in ("clip_iqa_plus", "musiq", "laion_aesthetic"):
            torch.testing.assert_close(PyIQAReward(name).train()(frames), brightness(frames))
        reward = load_reward(["clip_iqa_plus", "musiq"], [1, 2])
        torch.testing.assert_close(reward(frames), brightness(frames))
        monkeypatch.delitem(bounds, "musiq")
        with pytest.raises(RuntimeError, match="could not load the weights of 'musiq'"):
            PyIQAReward("musiq")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["clip_iqa_plus", "musiq", "laion_aesthetic"])
    def test_the_package_scores_each_frame_with_gradients(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its real networks, with random weights and a smaller CLIP: the published ones are downloads."""
        reward = random_pyiqa_reward(name, monkeypatch).train()  # as a stage that holds it does
        frames = frames_of(1, 2).requires_grad_(True)
        scores = reward(frames)
        assert scores.shape == (2,) and scores.dtype == torch.float32 and scores[0] != scores[1]
        torch.testing.assert_close(torch.cat([reward(frame[None]) for frame in frames]), scores)
        scores.sum().backward()
        assert frames.grad is not None and frames.grad.isfinite().all() and frames.grad.flatten(1).any(1).all()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(reward(frames), scores)
        assert not reward(frames.detach()).requires_grad  # CLIP is frozen too, which is no submodule

    def test_a_package_that_it_imports_is_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create_metric(*_: object, **__: object) -> None:
            raise ModuleNotFoundError("No module named 'pkg_resources'")

        package = ModuleType("pyiqa")
        package.create_metric = create_metric  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyiqa", package)
        with pytest.raises(ImportError, match="'musiq' needs `pyiqa`.*No module named 'pkg_resources'"):
            PyIQAReward("musiq")

    def test_names(self) -> None:
        with pytest.raises(ValueError, match="`name` must be one of .*'musiq'.*got 'niqe'"):
            PyIQAReward("niqe")
        with pytest.raises(ValueError, match="`names` has a name twice"):
            load_reward(["packaged", "packaged"])
        with pytest.raises(ValueError, match="`weights` must be 1 numbers, one a name"):
            load_reward("packaged", [1, 2])
        with pytest.raises(OSError):
            load_reward("no/such-scorer")


class TestPerceptualLoss:
    VIDEO = torch.stack([frames_of(1, 2), frames_of(3, 4)]).transpose(1, 2)[..., :64, :64] * 2 - 1

    def test_zero_at_the_target_and_more_the_farther(self) -> None:
        loss = PerceptualLoss(scorer=make_scorer())
        noise = torch.randn(self.VIDEO.shape, generator=torch.Generator().manual_seed(0))
        distances = [loss(self.VIDEO + std * noise, self.VIDEO).item() for std in (0.0, 0.02, 0.1, 0.5)]
        assert distances[0] == 0 and distances == sorted(distances) and len(set(distances)) == 4

    def test_its_gradient_reaches_the_prediction_only(self) -> None:
        loss = PerceptualLoss(scorer=make_scorer())
        prediction = (self.VIDEO * 0.9).requires_grad_(True)
        loss(prediction, self.VIDEO).backward()
        assert prediction.grad is not None and prediction.grad.abs().sum() > 0
        assert not any(parameter.requires_grad for parameter in loss.parameters())

    def test_the_packaged_features_see_blur(self) -> None:
        loss = PerceptualLoss()
        blurred = torch.nn.functional.avg_pool3d(self.VIDEO, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
        shifted = self.VIDEO + (blurred - self.VIDEO).square().mean().sqrt()
        assert loss(blurred, self.VIDEO) > 2 * loss(shifted, self.VIDEO)

    @pytest.mark.parametrize(
        ("trunk", "widths"),
        [
            ("alex", {"slice1.0": (3, 64, 11), "slice2.5": (64, 192, 5), "slice3.9": (192, 384, 3)}
             | {"slice4.11": (384, 256, 3), "slice5.13": (256, 256, 3)}),
            ("vgg", {"slice1.0": (3, 64, 3), "slice1.2": (64, 64, 3), "slice2.6": (64, 128, 3)}
             | {"slice2.8": (128, 128, 3), "slice3.12": (128, 256, 3), "slice3.14": (256, 256, 3)}
             | {"slice3.16": (256, 256, 3), "slice4.20": (256, 512, 3), "slice4.22": (512, 512, 3)}
             | {"slice4.24": (512, 512, 3), "slice5.28": (512, 512, 3), "slice5.30": (512, 512, 3)}
             | {"slice5.32": (512, 512, 3)}),
        ],
    )  # fmt: skip
    def test_shift_tolerant_lpips_with_weights_of_the_packages_layout(
        self, trunk: str, widths: dict[str, tuple[int, int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
        for name, (ins, outs, side) in widths.items():
            scale = (2 / (ins * side**2)) ** 0.5
            weights[f"net.{name}.weight"] = scale * torch.randn(outs, ins, side, side, generator=generator)
            weights[f"net.{name}.bias"] = torch.zeros(outs)
        last = {name.split(".")[0]: outs for name, (_, outs, _) in widths.items()}
        for index, channels in enumerate(last.values()):
            weights[f"lin{index}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
        file = tmp_path / "weights" / "vST0.0" / f"{trunk}_shift_tolerant.pth"
        file.parent.mkdir(parents=True)
        torch.save(weights, file)
        found = ModuleSpec("stlpips_pytorch", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: found)
        loss = PerceptualLoss(f"st_lpips_{trunk}")
        noise = torch.randn(self.VIDEO.shape, generator=generator)
        prediction = (self.VIDEO + 0.1 * noise).requires_grad_(True)
        near, far = loss(prediction, self.VIDEO), loss(self.VIDEO + 0.4 * noise, self.VIDEO)
        assert loss(self.VIDEO, self.VIDEO) == 0 and 0 < near < far
        near.backward()
        assert prediction.grad is not None and prediction.grad.isfinite().all() and prediction.grad.any()
        # all convolutions are used, and compared at five depths
        assert len(list(loss.parameters())) == 2 * len(widths)
        assert len(loss.distance._features(self.VIDEO[:, :, 0])) == 5

    @pytest.mark.skipif(importlib.util.find_spec("stlpips_pytorch") is None, reason="needs stlpips-pytorch")
    @pytest.mark.parametrize(("trunk", "expected"), [("alex", 0.0317883), ("vgg", 0.0924997)])
    def test_shift_tolerant_lpips_equals_the_packages_own(self, trunk: str, expected: float) -> None:
        """What `stlpips_pytorch.stlpips.LPIPS(net=trunk, variant="shift_tolerant")` gave, which imports IPython."""
        prediction = (self.VIDEO * 0.8).requires_grad_(True)
        loss = PerceptualLoss(f"st_lpips_{trunk}")(prediction, self.VIDEO)
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        loss.backward()
        assert prediction.grad is not None and prediction.grad.isfinite().all() and prediction.grad.any()

    def test_packages_that_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lpips", None)
        with pytest.raises(ImportError, match="'lpips_vgg' needs `lpips` and torchvision.*pip install lpips"):
            PerceptualLoss("lpips_vgg")
        monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"needs `stlpips-pytorch`.*ultraflash_diffusers\[perceptual\]"):
            PerceptualLoss("st_lpips_alex")

    def test_bad_input(self) -> None:
        loss, video = PerceptualLoss(scorer=make_scorer()), self.VIDEO
        with pytest.raises(ValueError, match="must have the same shape"):
            loss(video, video[:1])
        for wrong in (video[0], video[:, :1], video[..., :31]):
            with pytest.raises(ValueError, match=r"`prediction` must have shape \[batch, 3, frames, height, width\]"):
                loss(wrong, wrong)
        with pytest.raises(ValueError, match="`name` must be one of"):
            PerceptualLoss("vgg")
        with pytest.raises(ValueError, match="`scorer` is for the loss 'quality_scorer' only"):
            PerceptualLoss("st_lpips_alex", scorer=make_scorer())
