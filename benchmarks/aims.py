# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What an upscaler should reach on each kind of input, read off the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.ours import CASCADE
from benchmarks.peers import LANCZOS, NETWORKS, SPAN

# figures as [kind][method][measure]
Summary = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Aim:
    """One thing that is asked for.

    Args:
        text (`str`): what.
        figure (`str`): what was measured.
        met (`bool`): whether that is enough.
    """

    text: str
    figure: str
    met: bool


def aims(summary: Summary, resamples_exactly: bool) -> list[Aim]:
    """All aims that can be judged by the kinds and peers that were measured."""
    found = [*_calm(summary), *_text(summary), *_grain(summary), *_anime(summary), *_fast(summary)]
    said = "equal" if resamples_exactly else "not equal"
    return [*found, Aim("`strength=0` is the resampled source to the last bit", said, resamples_exactly)]


def _calm(summary: Summary) -> Iterator[Aim]:
    for kind in ("still", "text_still", "sharp"):
        if kind in summary:
            row = summary[kind][CASCADE]
            most, share = row["flicker"], row["flicker_share"]
            figure = f"{most:.0f}; {share:.0f}"
            met = most <= 2 and share <= 1
            yield Aim(f"{kind}: changes by at most 2 levels from frame to frame, 99.9 % by at most 1", figure, met)


def _text(summary: Summary) -> Iterator[Aim]:
    for kind in ("text_moving", "text_still"):
        if kind in summary:
            own, peer = (summary[kind][name]["psnr"] for name in (CASCADE, LANCZOS))
            figure = f"{own:.2f} dB; {peer:.2f} dB"
            yield Aim(f"{kind}: PSNR no worse than that of {LANCZOS}", figure, own >= peer)


def _grain(summary: Summary) -> Iterator[Aim]:
    if "grain" in summary:
        share = summary["grain"][CASCADE]["grain"]
        yield Aim("grain: its deviation within 10 % of the source's", f"{share:.2f} of it", abs(share - 1) <= 0.1)


def _anime(summary: Summary) -> Iterator[Aim]:
    if "anime" not in summary:
        return
    rows = summary["anime"]
    gain = rows[CASCADE]["psnr"] - rows["bicubic"]["psnr"]
    yield Aim("anime: 0.5 dB above bicubic", f"{gain:+.2f} dB", gain >= 0.5)
    if SPAN not in rows:
        return
    for key, name, sign in (("vmaf", "VMAF", 1), ("st_lpips", "ST-LPIPS", -1)):
        if key in rows[CASCADE]:
            own, peer = rows[CASCADE][key], rows[SPAN][key]
            yield Aim(f"anime: {name} not worse than SPAN's", f"{own:.4g}; {peer:.4g}", sign * own >= sign * peer)


def _fast(summary: Summary) -> Iterator[Aim]:
    rows = summary.get("natural", {})
    peers = [rows[name]["fps"] for name in NETWORKS if name in rows]
    if peers:
        own = rows[CASCADE]["fps"]
        figure = f"{own:.2f} FPS; {', '.join(f'{each:.2f}' for each in peers)}"
        yield Aim("natural: faster than both networks in the same run", figure, own > max(peers))
