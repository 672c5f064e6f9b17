# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The page's player: what `assets/player.js` brings to life."""

from __future__ import annotations

from html import escape

_METER = {"speed": "Speed", "latency": "First frame after", "frames": "Frames", "ahead": "Made ahead"}


def player_html(tab: str, hint: str) -> str:
    """Returns the markup of a tab's player.

    Args:
        tab (`str`): name of the tab, unique on the page.
        hint (`str`): what the status line says before the first video.
    """
    meter = "".join(f'<div><dt>{label}</dt><dd data-part="{name}">–</dd></div>' for name, label in _METER.items())
    return f"""
<section class="uf-player" id="uf-{tab}" aria-label="Player">
  <div class="uf-screen">
    <video data-part="video" aria-label="The video that is being made" muted playsinline></video>
    <video data-part="before" class="uf-before" aria-hidden="true" muted playsinline></video>
  </div>
  <label class="uf-wipe" data-part="compare" hidden>
    <span>Before</span>
    <input data-part="wipe" type="range" min="0" max="100" value="50" aria-label="How much of the source is shown">
    <span>After</span>
  </label>
  <p class="uf-status" data-part="status" role="status" aria-live="polite">{escape(hint)}</p>
  <p class="uf-note" data-part="note" role="note" hidden></p>
  <div class="uf-bar" role="toolbar" aria-label="Playback">
    <button type="button" data-action="toggle" data-part="pause" disabled>Pause</button>
    <button type="button" data-action="stop" data-part="stop" disabled>Stop</button>
    <a data-part="download" download="ultraflash.mp4" hidden>Download</a>
  </div>
  <dl class="uf-meter" aria-label="Meter">{meter}</dl>
  <div class="uf-stages" data-part="stages" role="group" aria-label="Milliseconds a frame, by stage"></div>
  <video data-part="camera" class="uf-camera" aria-label="What is sent" muted playsinline hidden></video>
</section>
"""
