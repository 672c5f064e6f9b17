# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training loop of all stages.

Batches and noise are functions of the seed and the step, so that a run that was interrupted and resumed from a
checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .data import Batch, CropDataset, batches
from .hub import create_repository, upload
from .stage import Stage

logger = logging.get_logger(__name__)


def make_accelerator(arguments: argparse.Namespace, leaves_out_parameters: bool = False) -> Accelerator:
    """Makes the accelerator that the arguments ask for, the output folder and, to push to, the repository.

    Args:
        arguments (`argparse.Namespace`): of [`~ultraflash_diffusers.training.arguments.training_parser`].
        leaves_out_parameters (`bool`, *optional*, defaults to `False`): some batches give some of the trained
            parameters no gradient, for which distributed training has to look.

    Raises:
        ValueError: the launcher started several processes that do not know of each other.
    """
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    folders = ProjectConfiguration(project_dir=str(arguments.output_dir), logging_dir=str(arguments.output_dir))
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_config=folders,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=leaves_out_parameters)],
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        # without a GPU, torchrun's processes would all train alone, and write to the same folder
        raise ValueError(
            f"{launched} processes were launched, but each would train alone: use `accelerate launch`, or "
            "set ACCELERATE_USE_CPU=true where there is no GPU"
        )
    if arguments.push_to_hub and accelerator.is_main_process:
        # before training, so that a missing login shows at once
        arguments.hub_model_id = create_repository(arguments.hub_model_id, arguments.output_dir)
    return accelerator


def train(
    stage: Stage,
    dataset: CropDataset,
    validation: Sequence[Batch],
    arguments: argparse.Namespace,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Trains a stage and saves it to `arguments.output_dir`.

    Args:
        stage (`Stage`): what is trained.
        dataset (`CropDataset`): the batches.
        validation (list of `Batch`): held-out clips, in uint8; empty for no validation.
        arguments (`argparse.Namespace`): of [`~ultraflash_diffusers.training.arguments.training_parser`].
        accelerator (`Accelerator`): from [`make_accelerator`].

    Returns:
        `dict[str, float]`: the last validation's measures, `{}` without validation.

    Raises:
        ValueError: nothing to train, or a checkpoint that is not there.
        FloatingPointError: the loss became infinite or not a number.
        SystemExit: the run was interrupted (Ctrl-C, or a request to terminate); the step in progress was finished and
            a checkpoint written, from which it can be resumed.
    """
    return _Training(stage, dataset, validation, arguments, accelerator).run()


@dataclass
class _Progress:
    """What a checkpoint holds beside weights and the optimiser."""

    step: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


class _Interruption:
    """Turns the first Ctrl-C or request to terminate into `signal`; a second one acts at once.

    Signals reach the main thread alone: in another one nothing is watched.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> _Interruption:
        watched = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()


class _Training:
    def __init__(
        self,
        stage: Stage,
        dataset: CropDataset,
        validation: Sequence[Batch],
        arguments: argparse.Namespace,
        accelerator: Accelerator,
    ) -> None:
        if not stage.trained_parameters():
            raise ValueError("`stage` has no parameter that requires gradients: there is nothing to train")
        self.arguments, self.accelerator, self.dataset, self.validation = arguments, accelerator, dataset, validation
        self.progress = _Progress()
        self.checkpointed = 0  # the step of the newest checkpoint
        self.plain_stage = stage.to(accelerator.device)
        groups = stage.parameter_groups(arguments.learning_rate)
        optimizer = torch.optim.AdamW(
            groups,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            weight_decay=arguments.adam_weight_decay,
            eps=arguments.adam_epsilon,
        )
        self.learning_rates = [group["lr"] for group in groups]
        # only its curve is used: the loop says where on it a step lies
        schedule = get_scheduler(
            arguments.lr_scheduler,
            optimizer,
            num_warmup_steps=arguments.lr_warmup_steps,
            num_training_steps=arguments.max_train_steps,
        )
        self.lr_factor = schedule.lr_lambdas[0]
        self.stage, self.optimizer = accelerator.prepare(stage, optimizer)
        self.ema: EMAModel | None = None
        if arguments.use_ema:
            self.ema = EMAModel(stage.averaged_parameters(), decay=arguments.ema_decay, foreach=True)
            accelerator.register_for_checkpointing(self.ema)
        accelerator.register_for_checkpointing(self.progress)
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def run(self) -> dict[str, float]:
        self._start()
        validated, measures = self.progress.step, {}
        if self.progress.step == 0:
            measures = self._validate()
        started = time.monotonic() - self.progress.seconds
        sums: dict[str, tuple[torch.Tensor, int]] = {}
        loader = batches(self.dataset, self._batch_numbers(), self.arguments.dataloader_num_workers)
        with self._progress_bar() as bar, _Interruption() as interruption:
            while self.progress.step < self.arguments.max_train_steps and not self._out_of_time():
                self._optimise(loader, sums)
                self.progress.step += 1
                self.progress.seconds = self._agreed(time.monotonic() - started)
                bar.update()
                if self._is_due(self.arguments.logging_steps):
                    bar.set_postfix(self._log_means(sums))
                if self._is_due(self.arguments.validation_steps):
                    validated, measures = self.progress.step, self._validate()
                interrupted = self._agreed_maximum(interruption.signal)
                if interrupted or self._is_due(self.arguments.checkpointing_steps):
                    self._checkpoint()
                if interrupted:
                    raise SystemExit(128 + interrupted)
        if validated != self.progress.step or not measures:
            measures = self._validate()
        self._finish(measures)
        return measures

    def _progress_bar(self) -> tqdm:
        # where the time decides, the number of steps is not known
        total = self.arguments.max_train_steps if self.arguments.max_train_seconds is None else None
        hidden = not self.accelerator.is_local_main_process
        return tqdm(initial=self.progress.step, total=total, desc="Training", unit="step", disable=hidden)

    def _start(self) -> None:
        arguments = self.arguments
        if arguments.resume_from_checkpoint is not None:
            self._resume(arguments.resume_from_checkpoint)
        elif _checkpoints(arguments.output_dir):
            raise ValueError(
                f"`output_dir` {str(arguments.output_dir)!r} holds checkpoints of an earlier run: go on with "
                "--resume_from_checkpoint latest, or choose another folder"
            )
        settings = {name: _plain(value) for name, value in vars(arguments).items()}
        if self.accelerator.is_main_process:
            (arguments.output_dir / "training_arguments.json").write_text(json.dumps(settings, indent=2) + "\n")
        self.accelerator.init_trackers("ultraflash", {name: str(value) for name, value in settings.items()})
        self._forget_later_lines()

    def _batch_numbers(self) -> range:
        """The numbers of this process' batches, from the current step on."""
        processes = self.accelerator.num_processes
        per_step = self.arguments.gradient_accumulation_steps * processes
        first = self.progress.step * per_step + self.accelerator.process_index
        return range(first, self.arguments.max_train_steps * per_step, processes)

    def _optimise(self, loader: Iterator[Batch], sums: dict[str, tuple[torch.Tensor, int]]) -> None:
        """One optimiser step; adds what it measured to `sums`: totals by name, each with the number of its batches."""
        self.plain_stage.begin_step(self.progress.step)
        factor = self.lr_factor(self._schedule_position())
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate * factor
        accumulated = self.arguments.gradient_accumulation_steps
        first = self.progress.step * accumulated * self.accelerator.num_processes + self.accelerator.process_index
        parameters = self.plain_stage.trained_parameters()
        self.stage.train()
        for index in range(accumulated):
            batch = next(loader).to(self.accelerator.device)
            number = first + index * self.accelerator.num_processes
            with self.accelerator.accumulate(self.stage):
                loss, measured = self.stage(batch, _generator(self.arguments.seed, number))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(parameters, self.arguments.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss, **measured}.items():
                total, count = sums.get(name, (torch.zeros_like(loss, dtype=torch.float32), 0))
                sums[name] = (total + value.detach().float(), count + 1)
        step = self.progress.step + 1
        if self.ema and step >= self.arguments.ema_start_step and step % self.arguments.ema_interval == 0:
            self.ema.step(self.plain_stage.averaged_parameters())

    def _schedule_position(self) -> float:
        """The step, or where the run is in its time, whichever is nearer to the end."""
        step, steps, warmup = self.progress.step, self.arguments.max_train_steps, self.arguments.lr_warmup_steps
        if self.arguments.max_train_seconds is None or step < warmup:
            return step
        return max(step, warmup + (steps - warmup) * min(1, self.progress.seconds / self.arguments.max_train_seconds))

    def _out_of_time(self) -> bool:
        limit = self.arguments.max_train_seconds
        return limit is not None and self.progress.seconds >= limit

    def _agreed(self, seconds: float) -> float:
        """The time on which all processes base their decisions."""
        if self.accelerator.num_processes == 1 or self.arguments.max_train_seconds is None:
            return seconds
        return self.accelerator.reduce(torch.tensor(seconds, device=self.accelerator.device), "mean").item()

    def _agreed_maximum(self, number: int) -> int:
        """The largest of the processes' numbers: one that was interrupted stops them all at the same step."""
        if self.accelerator.num_processes == 1:
            return number
        return int(self.accelerator.gather(torch.tensor(number, device=self.accelerator.device)).max())

    def _is_due(self, interval: int) -> bool:
        return self.progress.step % interval == 0

    def _log_means(self, sums: dict[str, tuple[torch.Tensor, int]]) -> dict[str, str]:
        """Logs the means since the last time and returns what the progress bar shows."""
        means = {
            name: (self.accelerator.reduce(total, "mean") / count).item() for name, (total, count) in sums.items()
        }
        sums.clear()
        if not np.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss is {means['loss']} at step {self.progress.step}: lower the learning rate, or resume from "
                f"an earlier checkpoint in {str(self.arguments.output_dir)!r}"
            )
        rate = self.optimizer.param_groups[0]["lr"]
        self._log({**means, "lr": rate, "seconds": round(self.progress.seconds, 1)})
        shown: dict[str, str] = {name: f"{means[name]:.4g}" for name in ("loss", "psnr") if name in means}
        if self.arguments.max_train_seconds is not None:
            shown["left"] = f"{max(0, self.arguments.max_train_seconds - self.progress.seconds):.0f}s"
        return shown

    def _log(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.progress.step)
        if self.accelerator.is_main_process:
            with self._log_file.open("a") as file:
                file.write(json.dumps({"step": self.progress.step, **values}) + "\n")

    @property
    def _log_file(self) -> Path:
        return self.arguments.output_dir / "log.jsonl"

    def _forget_later_lines(self) -> None:
        """Takes out of the log what a run wrote after the checkpoint from which this one goes on."""
        if self.accelerator.is_main_process and self._log_file.is_file():
            lines = self._log_file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if self.progress.step and json.loads(line)["step"] <= self.progress.step]
            self._log_file.write_text("".join(kept))

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Measures the held-out clips on the main process, with averaged weights where there are."""
        totals: dict[str, float] = {}
        if self.validation and self.accelerator.is_main_process:
            self.plain_stage.eval()
            with self._averaged(), self.accelerator.autocast():
                measured = [self.plain_stage.validate(batch.to(self.accelerator.device)) for batch in self.validation]
            for name in measured[0]:
                totals[f"validation/{name}"] = sum(each[name] for each in measured) / len(measured)
            self._log(totals)
            tqdm.write(f"step {self.progress.step}: " + ", ".join(f"{n} {value:.3f}" for n, value in totals.items()))
        self.accelerator.wait_for_everyone()
        return totals

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the averaged weights in place, if averaging has begun."""
        if self.ema is None or self.ema.optimization_step == 0:
            yield
            return
        parameters = self.plain_stage.averaged_parameters()
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)

    def _checkpoint(self) -> None:
        """Writes a checkpoint that is whole or not there, and deletes the oldest ones beyond the limit."""
        folder = self.arguments.output_dir / f"checkpoint-{self.progress.step}"
        temporary = folder.with_suffix(".tmp")
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            limit = self.arguments.checkpoints_total_limit
            for old in _checkpoints(self.arguments.output_dir)[: -limit if limit else 0]:
                shutil.rmtree(old)
        self.checkpointed = self.progress.step

    def _resume(self, name: str) -> None:
        found = _checkpoints(self.arguments.output_dir)
        if name == "latest" and not found:
            logger.warning(f"no checkpoint in {str(self.arguments.output_dir)!r} yet: starting at step 0")
            return
        folder = found[-1] if name == "latest" else Path(name)
        if not folder.is_dir():
            raise ValueError(f"`resume_from_checkpoint` {name!r} is not a folder")
        self.accelerator.load_state(str(folder))
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.checkpointed = self.progress.step
        logger.info(f"resumed from {str(folder)!r} at step {self.progress.step}")

    def _save_weights(self, models: list, weights: list[dict], folder: str) -> None:
        """Saves the trained parameters instead of all networks (a hook of `Accelerator.save_state`)."""
        if self.accelerator.is_main_process:
            tensors = {n: p.detach().contiguous() for n, p in self.plain_stage.named_trained_parameters().items()}
            save_file(tensors, str(Path(folder) / "trained.safetensors"))
        weights.clear()

    def _load_weights(self, models: list, folder: str) -> None:
        """The counterpart of [`_save_weights`] (a hook of `Accelerator.load_state`)."""
        saved = load_file(str(Path(folder) / "trained.safetensors"))
        parameters = self.plain_stage.named_trained_parameters()
        if saved.keys() != parameters.keys():
            differing = sorted(saved.keys() ^ parameters.keys())
            raise ValueError(f"`resume_from_checkpoint`: {folder!r} was made by another stage: {differing[:3]} differ")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
        models.clear()

    def _finish(self, measures: dict[str, float]) -> None:
        if self.checkpointed != self.progress.step:
            self._checkpoint()
        if self.accelerator.is_main_process:
            self.plain_stage.eval()
            with self._averaged():
                self.plain_stage.save_pretrained(self.arguments.output_dir)
            if self.arguments.push_to_hub:
                upload(self.arguments.hub_model_id, self.arguments.output_dir, self.progress.step, measures)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _generator(seed: int, number: int) -> torch.Generator:
    """The source of a batch's noise; the third number keeps it apart from the one of the batch's crops."""
    return torch.Generator().manual_seed(int(np.random.default_rng((seed, number, 1)).integers(2**63 - 1)))


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
