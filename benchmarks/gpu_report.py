# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tables and plots of what `benchmarks/gpu_run.py` has measured, beside what was predicted.

    python benchmarks/gpu_report.py OUT/results.jsonl --folder benchmarks/results/2026-12-01_first_gpu

It writes FOLDER.md for the results pages, and its plots into FOLDER: speed by setting, stages of a group, kernels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from ultraflash_diffusers.tables import markdown_table  # noqa: E402

_SPEED = {
    "fps": "FPS",
    "fps_slowest": "slowest",
    "first_group": "first group, s",
    "first_frame": "first frame, s",
    "peak": "peak, GB",
    "planned_peak": "planned, GB",
    "tflops": "TFLOP/s",
    "floor": "floor, FPS",
    "latent_error": "error of latents",
    "psnr": "PSNR, dB",
}
_STAGES = ("generator_steps", "context_pass", "upsampler", "transformer", "decoder", "output")
_KERNELS = 15


class Results:
    """The lines of a run.

    Args:
        path (`Path`): of `results.jsonl`; a last line that a cut has left unfinished is dropped.

    Raises:
        ValueError: a line that is no JSON, other than the last.
    """

    def __init__(self, path: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        texts = path.read_text().splitlines()
        for number, text in enumerate(texts, start=1):
            try:
                self.lines.append(json.loads(text))
            except json.JSONDecodeError as error:
                if number < len(texts):
                    raise ValueError(f"{path}: line {number} is no JSON: {text[:80]!r}") from error
        self.predictions: dict[str, dict[str, Any]] = {}
        for line in self.having("predictions"):
            self.predictions |= line["predictions"]
        # a stage that ran twice counts as it ran last
        self.values = {line["name"]: line for line in self.having("name")}

    def having(self, *names: str) -> list[dict[str, Any]]:
        """The lines that have all of these entries."""
        return [line for line in self.lines if all(name in line for name in names)]

    def settings(self, measure: str) -> list[str]:
        """What has this measure, as `stage.label`, in the order of the run."""
        return [name.removesuffix(f".{measure}") for name in self.values if name.endswith(f".{measure}")]

    def measured(self, name: str) -> float | None:
        """A value, if there is one."""
        return self.values[name]["value"] if name in self.values else None

    def predicted(self, name: str) -> float | None:
        """What was expected of it, if anything was."""
        return self.predictions[name]["value"] if name in self.predictions else None


def markdown(results: Results, folder: str) -> str:
    """The page, with its plots from `folder`."""
    parts = ["# Measured on a GPU", _machine(results)]
    for title, text in (
        ("Speed", _speed(results)),
        ("Predicted and measured", _beside(results)),
        ("Kernels by time", _kernels(results)),
        ("What failed", _failures(results)),
        ("Stages of the run", _run(results)),
    ):
        parts += [f"## {title}", text]
    plots = {"speed": "frames a second by setting", "stages": "milliseconds of a group by stage", "kernels": "kernels"}
    parts += [f"![{about}]({folder}/{name}.svg)" for name, about in plots.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Nothing."
    return markdown_table(titles, rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _machine(results: Results) -> str:
    facts = {name: line[name] for name in ("gpu", "torch", "cudnn", "device") for line in results.having(name)}
    return ", ".join(f"{name}: {value}" for name, value in facts.items())


def _speed(results: Results) -> str:
    rows = []
    for setting in results.settings("fps"):
        values = [results.measured(f"{setting}.{measure}") for measure in _SPEED]
        expected = _shown(results.predicted(f"{setting}.fps"))
        rows.append([setting, expected, *map(_shown, values)])
    return _table(["setting", "predicted FPS", *_SPEED.values()], rows)


def _beside(results: Results) -> str:
    rows = []
    for name, prediction in results.predictions.items():
        expected, measured = prediction["value"], results.measured(name)
        off = "not measured" if measured is None else _off(measured, expected)
        rows.append([name, f"{expected:g} {prediction['unit']}", _shown(measured), off, prediction["from"]])
    return _table(["value", "predicted", "measured", "measured / predicted", "where the prediction is from"], rows)


def _off(measured: float, expected: float) -> str:
    return f"{measured / expected:.2f}" if expected else f"{measured - expected:+g}"


def _kernels(results: Results) -> str:
    rows = [
        [f"{line['stage']}, {line['label']}: `{name}`", str(count), f"{milliseconds:.2f}"]
        for line in results.having("kernels")
        for name, count, milliseconds in line["kernels"][:_KERNELS]
    ]
    return _table(["kernel of a group", "calls", "ms"], rows)


def _failures(results: Results) -> str:
    rows = [[line["stage"], line["failed"], line["error"]] for line in results.having("failed")]
    rows += [[line["stage"], "skipped", line["skipped"]] for line in results.having("skipped")]
    rows = [[cell.replace("\n", " ").replace("|", "/") for cell in row] for row in rows]
    return _table(["stage", "part", "reason"], rows)


def _run(results: Results) -> str:
    rows = [[line["stage"], str(line["exit"]), f"{line['seconds']:g}"] for line in results.having("exit", "seconds")]
    return _table(["stage", "exit", "seconds"], rows)


def draw(results: Results, folder: Path) -> None:
    """Writes the plots as SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in (("speed", _draw_speed), ("stages", _draw_stages), ("kernels", _draw_kernels)):
        figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
        plot(results, axes)
        figure.savefig(folder / f"{name}.svg")
        pyplot.close(figure)


def _draw_speed(results: Results, axes: Axes) -> None:
    settings = results.settings("fps")
    for shift, (label, value) in enumerate((("predicted", results.predicted), ("measured", results.measured))):
        places = [index + 0.4 * shift for index in range(len(settings))]
        axes.barh(places, [value(f"{setting}.fps") or 0 for setting in settings], height=0.4, label=label)
    axes.set_yticks([index + 0.2 for index in range(len(settings))], settings)
    axes.invert_yaxis()
    axes.set_xlabel("frames a second")
    axes.legend()


def _draw_stages(results: Results, axes: Axes) -> None:
    settings = results.settings("fps")
    left = [0.0] * len(settings)
    for stage in _STAGES:
        widths = [results.measured(f"{setting}.{stage}") or 0.0 for setting in settings]
        axes.barh(settings, widths, left=left, label=stage)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms a group; where stages overlap, their sum exceeds the whole")
    axes.legend()


def _draw_kernels(results: Results, axes: Axes) -> None:
    lines = results.having("kernels")
    rows = lines[0]["kernels"][:_KERNELS] if lines else []
    axes.barh([name[:60] for name, _, _ in rows], [milliseconds for _, _, milliseconds in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms a group" + (f": {lines[0]['stage']}, {lines[0]['label']}" if lines else ""))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.jsonl of a run")
    parser.add_argument("--folder", type=Path, required=True, help="for the plots; the page is FOLDER.md")
    options = parser.parse_args(arguments)
    if not options.results.is_file():
        parser.error(f"{options.results}: no such file")
    results = Results(options.results)
    draw(results, options.folder)
    page = options.folder.with_name(options.folder.name + ".md")
    page.write_text(markdown(results, options.folder.name))
    print(page)


if __name__ == "__main__":
    main()
