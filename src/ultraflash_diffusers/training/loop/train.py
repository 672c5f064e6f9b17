# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training loop of all stages.

Batches and noise are functions of the seed and the step, so that a run that was interrupted and resumed from a
checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from diffusers.optimization import get_scheduler
from diffusers.utils import logging
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ...pipelines.lora import write_original_lora
from ..data.crops import batches
from ..files import delete_dead_files, replace_text
from ..processes import naming_lost_processes, wait_patiently
from ..stages.base import Training
from .accelerator import share_tokens
from .checkpoints import (
    check_checkpoint,
    delete_leftovers,
    find_checkpoints,
    put_in_place,
    unfinished_checkpoint,
)
from .command_line import plain, write_config
from .hub import FinishedRun, upload
from .illustrations import draw_curves, write_comparison
from .interruption import Interruption
from .memory_plan import say_plan
from .run_state import RunState
from .sharding import WeightAverage, reshard, shard_layers, whole_parameters

logger = logging.get_logger(__name__)

# what runs that go on with a checkpoint are not asked about
MAY_CHANGE = {"config", "max_train_steps", "max_train_seconds", "resume_from_checkpoint"}
# totals of what was measured, by name, each with the number of its batches
_Sums = dict[str, tuple[torch.Tensor, int]]


class TrainingBatch(Protocol):
    """What a stage takes at a step: clips, chunks of latents or prompts."""

    def to(self, device: torch.device) -> Self:
        """Moves what it holds to a device."""


def train(
    stage: Training,
    dataset: Dataset,
    validation: Sequence[TrainingBatch],
    arguments: argparse.Namespace,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Trains a stage and saves it to `arguments.output_dir`.

    Args:
        stage (`Stage`): what is trained.
        dataset (`Dataset`): batches of the kind that the stage takes, by number.
        validation (list of such batches): held-out clips, in uint8; empty for no validation.
        arguments (`argparse.Namespace`): of [`~ultraflash_diffusers.training.loop.arguments.training_parser`].
        accelerator (`Accelerator`): from [`~ultraflash_diffusers.training.loop.accelerator.make_accelerator`].

    Returns:
        `dict[str, float]`: the last validation's measures, `{}` without validation.

    Raises:
        ValueError: nothing to train, or a checkpoint that is not there, incomplete or another stage's.
        FloatingPointError: the loss became infinite or not a number.
        OSError: a checkpoint could not be written; the ones before are whole.
        RuntimeError: another process has ended or no longer answers.
        SystemExit: the run was interrupted (Ctrl-C, or a request to terminate); the step in progress was finished and
            a checkpoint written, from which it can be resumed.
    """
    together = share_tokens(stage, arguments, accelerator.num_processes, accelerator.device)
    say_plan(stage, dataset, arguments, accelerator)
    with naming_lost_processes():
        return _Run(stage, dataset, validation, arguments, accelerator, together).run()


class _Entrance(nn.Module):
    """The one way into a stage: what distributed training wraps, so that validation too sees gathered parameters."""

    def __init__(self, stage: Training, autocast: Callable[[], AbstractContextManager]) -> None:
        super().__init__()
        self.stage, self.autocast = stage, autocast

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> Any:
        """Validates the batch if there is no generator to train with."""
        with self.autocast():
            return self.stage.validate(batch) if generator is None else self.stage(batch, generator)


class _Run:
    def __init__(
        self,
        stage: Training,
        dataset: Dataset,
        validation: Sequence[TrainingBatch],
        arguments: argparse.Namespace,
        accelerator: Accelerator,
        together: int,
    ) -> None:
        if not stage.trained_parameters():
            raise ValueError("`stage` has no parameter that requires gradients: there is nothing to train")
        self.arguments, self.accelerator, self.dataset, self.validation = arguments, accelerator, dataset, validation
        # processes that share clips take the same batches
        self.parts, self.part = accelerator.num_processes // together, accelerator.process_index // together
        self.checkpointed = 0  # the step of the newest checkpoint
        sharded = shard_layers(accelerator, stage, arguments.mixed_precision)
        self.plain_stage = stage if sharded else stage.to(accelerator.device)
        groups = stage.parameter_groups(arguments.learning_rate)
        optimizer = _make_optimizer(groups, arguments)
        self.learning_rates = [group["lr"] for group in groups]
        # only its curve is used: the loop says where on it a step lies
        schedule = get_scheduler(
            arguments.lr_scheduler,
            optimizer,
            num_warmup_steps=arguments.lr_warmup_steps,
            num_training_steps=arguments.max_train_steps,
        )
        self.lr_factor = schedule.lr_lambdas[0]
        self.stage, self.optimizer = accelerator.prepare(_Entrance(stage, self._autocast), optimizer)
        if sharded:
            stage.to(accelerator.device)  # what is no parameter
            # accelerate finds the new parameters by their memory, and shards without a row have none
            for group, placed in zip(optimizer.param_groups, stage.parameter_groups(0), strict=True):
                group["params"] = placed["params"]
        # as they are now, since FSDP2 puts others in their place while they are gathered
        self.trained, self.averaged = stage.named_trained_parameters(), stage.averaged_parameters()
        self.ema: WeightAverage | None = None
        if arguments.use_ema:
            # averaging that begins late is warm at once
            self.ema = WeightAverage(self.averaged, arguments.ema_decay, warm_up=arguments.ema_start_step == 0)
        self.state = RunState(self.trained, self.optimizer, self.averaged, self.ema, accelerator.scaler)
        self.progress = self.state.progress

    def _autocast(self) -> AbstractContextManager:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            enabled = self.arguments.mixed_precision == "bf16"
            return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)
        return self.accelerator.autocast()

    def run(self) -> dict[str, float]:
        self._start()
        validated, measures = self.progress.step, {}
        if self.progress.step == 0:
            measures = self._validate()
        started = time.monotonic() - self.progress.seconds
        sums: _Sums = {}
        loader = batches(self.dataset, self._batch_numbers(), self.arguments.dataloader_num_workers)
        with self._progress_bar() as bar, Interruption() as interruption:
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
        if self.accelerator.is_main_process:
            for path in (*delete_leftovers(arguments.output_dir), *delete_dead_files(arguments.output_dir)):
                logger.warning(f"deleted {str(path)!r}, which an earlier run did not finish")
        wait_patiently()
        if arguments.resume_from_checkpoint is not None:
            self._resume(arguments.resume_from_checkpoint)
        elif find_checkpoints(arguments.output_dir):
            raise ValueError(
                f"`output_dir` {str(arguments.output_dir)!r} holds checkpoints of an earlier run: go on with "
                "--resume_from_checkpoint latest, or choose another folder"
            )
        self.settings = {name: plain(value) for name, value in vars(arguments).items() if name != "given"}
        if self.accelerator.is_main_process:
            self._write_settings()
        self.accelerator.init_trackers(
            "ultraflash",
            {name: str(value) for name, value in self.settings.items()},
            {"wandb": {"dir": str(arguments.output_dir)}},
        )
        self._forget_later_lines()

    def _write_settings(self) -> None:
        """Writes all settings, and those that were given; says which a resumed run changes."""
        file = self.arguments.output_dir / "training_arguments.json"
        if self.progress.step and file.is_file():
            before = json.loads(file.read_text())
            changed = sorted(name for name, value in self.settings.items() if before.get(name) != value)
            for name in (name for name in changed if name not in MAY_CHANGE):
                logger.warning(f"--{name} is {self.settings[name]}, before the checkpoint it was {before.get(name)}")
        replace_text(file, json.dumps(self.settings, indent=2) + "\n")
        write_config(self.arguments.output_dir / "config.yaml", self.arguments)

    def _batch_numbers(self) -> range:
        """The numbers of this process' batches, from the current step on."""
        per_step = self.arguments.gradient_accumulation_steps * self.parts
        first = self.progress.step * per_step + self.part
        return range(first, self.arguments.max_train_steps * per_step, self.parts)

    def _optimise(self, loader: Iterator[TrainingBatch], sums: _Sums) -> None:
        """One optimiser step; adds what it measured to `sums`: totals by name, each with the number of its batches."""
        self.plain_stage.begin_step(self.progress.step, _generator(self.arguments.seed, self.progress.step, 2))
        factor = self.lr_factor(self._schedule_position())
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate * factor
        accumulated = self.arguments.gradient_accumulation_steps
        first = self.progress.step * accumulated * self.parts + self.part
        self.stage.train()
        for index in range(accumulated):
            batch = next(loader).to(self.accelerator.device)
            number = first + index * self.parts
            torch.manual_seed(_generator(self.arguments.seed, number, 3).initial_seed())  # for dropout
            with self.accelerator.accumulate(self.stage):
                loss, measured = self.stage(batch, _generator(self.arguments.seed, number, 1))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.trained.values(), self.arguments.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss, **measured}.items():
                total, count = sums.get(name, (torch.zeros_like(loss, dtype=torch.float32), 0))
                sums[name] = (total + value.detach().float(), count + 1)
        step = self.progress.step + 1
        if self.ema and step >= self.arguments.ema_start_step and step % self.arguments.ema_interval == 0:
            self.ema.step(self.averaged)

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

    def _log_means(self, sums: _Sums) -> dict[str, str]:
        """Logs the means since the last time, over all processes, and returns what the progress bar shows."""
        means = mean_measures(gather_object([{name: (total.item(), count) for name, (total, count) in sums.items()}]))
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
            replace_text(self._log_file, "".join(kept))

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Measures and shows the held-out clips, with averaged weights where there are."""
        if not self.validation:
            return {}
        self.stage.eval()
        with self._averaged():
            # every process all of them: sharded parameters can only be gathered together
            measured = [self._validate_clip(*numbered) for numbered in enumerate(self.validation)]
        totals = {f"validation/{name}": float(np.mean([each[name] for each in measured])) for name in measured[0]}
        self._log(totals)
        if self.accelerator.is_main_process:
            draw_curves(self._log_file, self.arguments.output_dir / "curves.png")
            tqdm.write(f"step {self.progress.step}: " + ", ".join(f"{n} {value:.3f}" for n, value in totals.items()))
        wait_patiently()
        return totals

    def _validate_clip(self, index: int, batch: TrainingBatch) -> dict[str, float]:
        results: Mapping[str, float | torch.Tensor] = self.stage(batch.to(self.accelerator.device))
        videos = {name: value.float() for name, value in results.items() if isinstance(value, torch.Tensor)}
        if videos and self.accelerator.is_main_process:
            name = f"clip-{index}"
            folder = self.arguments.output_dir / "validation" / f"step-{self.progress.step}"
            self._track_picture(f"validation/{name}", write_comparison(folder / name, videos))
        return {name: value for name, value in results.items() if not isinstance(value, torch.Tensor)}

    def _track_picture(self, name: str, picture: np.ndarray) -> None:
        for tracker in self.accelerator.trackers:
            of_kind = picture[None].transpose(0, 3, 1, 2) if tracker.name == "tensorboard" else [picture]
            tracker.log_images({name: of_kind}, step=self.progress.step)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the averaged weights in place, if averaging has begun."""
        if self.ema is None or self.ema.optimization_step == 0:
            yield
            return
        self.ema.store(self.averaged)
        self.ema.copy_to(self.averaged)
        reshard(self.stage)
        try:
            yield
        finally:
            self.ema.restore(self.averaged)
            reshard(self.stage)

    def _checkpoint(self) -> None:
        """Writes a checkpoint that is whole or not there, and deletes the oldest ones beyond the limit."""
        output_dir, step = self.arguments.output_dir, self.progress.step
        with unfinished_checkpoint(output_dir, step) as folder:
            self.state.save(folder, writes=self.accelerator.is_main_process)
        wait_patiently()
        if self.accelerator.is_main_process:
            put_in_place(output_dir, step, self.arguments.checkpoints_total_limit)
        self.checkpointed = step

    def _resume(self, name: str) -> None:
        found = find_checkpoints(self.arguments.output_dir)
        if name == "latest" and not found:
            logger.warning(f"no checkpoint in {str(self.arguments.output_dir)!r} yet: starting at step 0")
            return
        folder = found[-1] if name == "latest" else Path(name)
        check_checkpoint(folder, self.trained, self.arguments.use_ema, self.arguments.use_8bit_adam)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "--resume_from_checkpoint: DeepSpeed's optimisers cannot be restored without pickles; use FSDP2, or "
                "start anew from the weights"
            )
        self.state.load(folder)
        self.checkpointed = self.progress.step
        logger.info(f"resumed from {str(folder)!r} at step {self.progress.step}")

    def _finish(self, measures: dict[str, float]) -> None:
        if self.checkpointed != self.progress.step:
            self._checkpoint()
        self.plain_stage.eval()
        with self._averaged(), whole_parameters(self.stage, keep=self.accelerator.is_main_process):
            if self.accelerator.is_main_process:
                self._save()
        if self.arguments.push_to_hub and self.accelerator.is_main_process:
            self._upload(measures)
        wait_patiently()
        self.accelerator.end_training()

    def _save(self) -> None:
        folder = self.arguments.output_dir
        self.plain_stage.save_pretrained(folder)
        if vars(self.arguments).get("lora_format") == "original":
            write_original_lora(folder, folder / "original_lora_weights.safetensors")

    def _upload(self, measures: dict[str, float]) -> None:
        run = FinishedRun(
            steps=self.progress.step,
            seconds=self.progress.seconds,
            processes=self.accelerator.num_processes,
            validation_clips=len(self.validation),
            measures=measures,
            settings=self.settings,
        )
        upload(self.arguments.hub_model_id, self.arguments.output_dir, run)


def _make_optimizer(groups: list[dict], arguments: argparse.Namespace) -> torch.optim.Optimizer:
    optimizer_class: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    if arguments.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        optimizer_class = AdamW8bit
    return optimizer_class(
        groups,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        weight_decay=arguments.adam_weight_decay,
        eps=arguments.adam_epsilon,
    )


def mean_measures(parts: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
    """Returns the means of what the processes have measured, each its own totals and numbers of batches by name."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(total for total, _ in each) / sum(count for _, count in each) for name, each in found.items()}


def _generator(seed: int, number: int, kind: int) -> torch.Generator:
    """The source of a batch's noise (kind 1), a step's choices (2) or dropout (3), apart from that of the crops."""
    return torch.Generator().manual_seed(int(np.random.default_rng((seed, number, kind)).integers(2**63 - 1)))
