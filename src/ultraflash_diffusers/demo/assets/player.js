// Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
// Plays streams of the realtime protocol by Media Source Extensions, while they are made.
"use strict";
(() => {
  const PING_SECONDS = 20, MOST_AHEAD = 30, RESUME_AHEAD = 10, KEPT_BEHIND = 60, SLOWEST = 0.0625;
  const RESERVE = 1.6;  // chunk times for which what is there must last
  const Source = window.MediaSource || window.ManagedMediaSource;
  const players = {};

  class Player {
    constructor(tab) {
      this.tab = tab;
      this.root = document.getElementById(`uf-${tab}`);
      this.video = this.part("video");
      this.running = false;
      this.root.addEventListener("click", (event) => {
        const action = event.target.closest("[data-action]")?.dataset.action;
        if (action) this[action]();
      });
      this.part("wipe").addEventListener("input", (event) => this.wipe(event.target.value));
      for (const name of ["timeupdate", "seeked", "play", "pause"]) this.video.addEventListener(name, () => this.follow());
      this.video.addEventListener("timeupdate", () => this.pace());
      // before the first frame its controls would spin, which costs a slow machine a third of a core
      this.video.addEventListener("loadeddata", () => { this.video.controls = true; });
    }

    part(name) { return this.root.querySelector(`[data-part="${name}"]`); }

    say(text) { this.part("status").textContent = text; }

    // what stays true of the video: words that the checkpoint does not know, a prompt that was cut off
    warn(texts) {
      const note = this.part("note");
      note.textContent = (texts || []).map((text) => `${text[0].toUpperCase()}${text.slice(1)}.`).join(" ");
      note.hidden = !texts?.length;
    }

    // starts a stream; `feed` may send more once the session is open
    start(message, { feed, before } = {}) {
      if (this.socket) this.socket.close();
      if (!Source) return this.say("This browser cannot play video while it is made (no Media Source Extensions).");
      Object.assign(this, { running: true, paused: false, held: false, bytes: [], queue: [], frames: 0, first: null,
        expected: null, feed, before, clicked: performance.now(), ended: false, made: null, prompts: 0 });
      this.source = new Source();
      this.video.disableRemotePlayback = true;
      this.video.loop = this.video.controls = false;
      this.video.src = URL.createObjectURL(this.source);
      this.part("compare").hidden = true;
      this.part("download").hidden = true;
      this.warn();
      this.root.classList.add("uf-running");
      this.root.scrollIntoView({ block: "nearest" });  // on a narrow screen it is below the settings
      this.buttons();
      this.say("Waiting for the server …");
      const url = new URL("v1/realtime/video", location.href.split(/[?#]/)[0]);
      url.protocol = url.protocol.replace("http", "ws");
      const socket = this.socket = new WebSocket(url);
      socket.binaryType = "arraybuffer";
      socket.onopen = () => { this.send("session.start", message); };
      socket.onmessage = ({ data }) => {
        if (this.socket !== socket) return;
        if (typeof data === "string") this.told(JSON.parse(data)); else this.media(data);
      };
      socket.onclose = () => { if (this.socket === socket) this.finish("The connection has ended."); };
      clearInterval(this.timer);
      this.timer = setInterval(() => this.send("session.ping"), PING_SECONDS * 1000);
    }

    send(type, content = {}) {
      if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...content }));
    }

    told(message) {
      switch (message.type) {
        case "session.queued": return this.say(`Waiting for a place: number ${message.position} in the queue`);
        case "video.start": return this.begin(message);
        case "video.chunk_metadata": return this.measure(message);
        case "session.interaction.queued": return this.say("The new prompt comes with the next frames.");
        case "error": return this.finish(`${message.message[0].toUpperCase()}${message.message.slice(1)}`);
        case "session.done": return this.done(message);
      }
    }

    async begin(message) {
      this.fps = message.config.fps;
      this.config = message.config;
      this.expected = message.config.num_frames;
      this.warn(message.warnings);
      this.say("Making the first frames …");
      if (this.source.readyState !== "open")
        await new Promise((resolve) => this.source.addEventListener("sourceopen", resolve, { once: true }));
      this.buffer = this.source.addSourceBuffer(message.mime_type);
      this.buffer.addEventListener("updateend", () => { this.append(); this.pace(true); });
      this.append();
      this.feed?.(this);
    }

    measure(metadata) {
      this.frames += metadata.num_frames;
      this.first ??= (performance.now() - this.clicked) / 1000;
      // the longer one of two: not each chunk brings a whole group, nor each group one of the generator's
      this.interval = Math.max(0.001, metadata.seconds, this.made?.seconds || 0);
      this.made = metadata;
      this.arrived = performance.now();
      if (metadata.started_event_ids.length) { this.warn(metadata.warnings); this.say("From here on by the new prompt."); }
      else if (this.frames === metadata.num_frames) this.say("Playing while it is made.");
      const stages = this.part("stages");
      const times = Object.entries(metadata.stage_seconds), longest = Math.max(...times.map(([, seconds]) => seconds));
      stages.replaceChildren(...times.map(([name, seconds]) => {
        const row = document.createElement("div"), label = document.createElement("span"), bar = document.createElement("i");
        const value = document.createElement("b");
        label.textContent = name.replaceAll("_", " ");
        value.textContent = `${Math.round((1000 * seconds) / metadata.num_frames)} ms`;
        bar.style.setProperty("--share", seconds / longest);
        row.append(label, bar, value);
        return row;
      }));
      this.meter();
    }

    media(data) {
      this.bytes.push(data);
      this.queue.push(data);
      this.append();
    }

    append() {
      const { buffer, video } = this;
      if (!buffer || buffer.updating || this.source.readyState !== "open") return;
      if (this.queue.length) {
        try { buffer.appendBuffer(this.queue[0]); this.queue.shift(); }
        catch (error) {  // full: what was played long ago makes room
          if (error.name !== "QuotaExceededError") throw error;
          if (video.currentTime > KEPT_BEHIND) buffer.remove(0, video.currentTime - KEPT_BEHIND / 2);
        }
      } else if (this.ended) {
        this.source.endOfStream();
        video.loop = true;
        video.playbackRate = 1;
      }
      if (video.paused && !this.paused && this.running) video.play().catch(() => {});
    }

    get ahead() {
      const { buffered, currentTime } = this.video;
      return buffered.length ? Math.max(0, buffered.end(buffered.length - 1) - currentTime) : 0;
    }

    // so fast that what is there lasts until the next chunk has come, slower where that is late, and never faster
    // than the video is meant to be
    pace(fresh = false) {
      if (!this.running || !this.made) return;
      const { ahead, interval, video } = this, late = performance.now() - this.arrived > 1000 * interval;
      const rate = fresh ? ahead / (RESERVE * interval) : late ? Math.min(video.playbackRate, (2 * ahead) / interval) : video.playbackRate;
      video.playbackRate = Math.min(1, Math.max(SLOWEST, rate));
      const hold = ahead > MOST_AHEAD || (this.held && ahead > RESUME_AHEAD);
      if (hold !== this.held && !this.paused) this.send(hold ? "session.pause" : "session.resume");
      this.held = hold;
      this.meter();
    }

    meter() {
      const made = this.made, write = (name, text) => { this.part(name).textContent = text; };
      if (!made) return;
      write("speed", `${made.fps.toFixed(1)} frames/s`);
      write("latency", `${this.first.toFixed(1)} s`);
      write("frames", this.expected ? `${this.frames} of ${this.expected}` : `${this.frames}`);
      const ahead = Math.round(this.ahead * this.fps);
      write("ahead", ahead === 1 ? "1 frame" : `${ahead} frames`);
    }

    change(prompt) {
      if (!this.running) return this.say("Nothing runs whose prompt could change: start a video first.");
      this.send("session.interaction", { interaction: { event_id: `prompt-${++this.prompts}`, event: { prompt } } });
    }

    toggle() {
      this.paused = !this.paused;
      this.send(this.paused ? "session.pause" : "session.resume");
      if (this.paused) this.video.pause(); else this.video.play().catch(() => {});
      this.say(this.paused ? "Paused." : "Playing while it is made.");
      this.buttons();
    }

    stop() { this.stopped = true; this.send("session.stop"); this.say("Stopping after this chunk …"); }

    done(message) {
      const missing = message.missing_frames ? ` ${message.missing_frames} frames are missing: the file is cut off or damaged.` : "";
      const size = `${this.config.width} × ${this.config.height}`;
      const total = ((performance.now() - this.clicked) / 1000).toFixed(1);
      const word = { end: "Done", stop: "Stopped" }[message.ended_by] || "Ended by the server's limit";
      this.result = message.result;
      this.finish(`${word}: ${this.frames} frames of ${size} in ${total}\u00a0s.${missing}`);
    }

    finish(text) {
      if (!this.running) return;
      this.running = false;
      this.ended = true;
      clearInterval(this.timer);
      this.root.classList.remove("uf-running");
      this.socket.onclose = null;
      this.socket.close();
      this.socket = null;
      this.append();
      this.say(text);
      this.buttons();
      if (!this.bytes.length) return;
      const link = this.part("download");
      URL.revokeObjectURL(link.href);
      link.href = this.result || URL.createObjectURL(new Blob(this.bytes, { type: "video/mp4" }));
      link.hidden = false;
      if (this.before) this.compare();
    }

    buttons() {
      const pause = this.part("pause");
      pause.textContent = this.paused ? "Resume" : "Pause";
      pause.disabled = this.part("stop").disabled = !this.running;
    }

    // before | after: the source lies over the result, cut off at the slider
    compare() {
      const original = this.part("before");
      original.src = this.before;
      this.part("compare").hidden = false;
      this.wipe(this.part("wipe").value);
      this.follow();
    }

    wipe(share) { this.part("before").style.clipPath = `inset(0 ${100 - share}% 0 0)`; }

    follow() {
      const original = this.part("before");
      if (this.part("compare").hidden || !original.src) return;
      if (Math.abs(original.currentTime - this.video.currentTime) > 0.02) original.currentTime = this.video.currentTime;
    }
  }

  const player = (tab) => {
    if (!players[tab] || !players[tab].root.isConnected) players[tab] = new Player(tab);
    return players[tab];
  };

  // frames of a camera, or of a file that plays as if live, as pictures to the server
  class Camera {
    constructor(live, width, fps, file) { Object.assign(this, { live, width, fps, file }); }

    async open() {
      const view = this.view = this.live.part("camera");
      view.hidden = false;
      if (this.file) { view.src = this.file; view.loop = true; }
      else view.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: this.width } } });
      view.muted = true;
      await view.play();
      const canvas = this.canvas = document.createElement("canvas");
      canvas.width = this.width;
      canvas.height = 2 * Math.round((this.width * view.videoHeight) / view.videoWidth / 2);
      return { width: canvas.width, height: canvas.height };
    }

    // no more than the server has made waits for it: a slow server gets fewer frames a second
    feed(live) {
      let sent = 0;
      const first = performance.now();
      this.loop = setInterval(() => {
        if (!live.running) return this.close();
        if (live.paused || sent - live.frames > 24 || (performance.now() - first) * this.fps < 1000 * sent) return;
        this.canvas.getContext("2d").drawImage(this.view, 0, 0, this.canvas.width, this.canvas.height);
        sent += 1;
        this.canvas.toBlob(async (picture) => live.socket?.readyState === 1 && live.socket.send(picture), "image/jpeg", 0.9);
      }, 10);
    }

    close() {
      clearInterval(this.loop);
      this.view.srcObject?.getTracks().forEach((track) => track.stop());
      this.view.srcObject = null;
      this.view.pause();
    }
  }

  const size = (text) => text.split("×").map((side) => parseInt(side, 10));

  window.ultraflash = {
    generate(model, prompt, resolution, frames, endless, seed) {
      const [width, height] = size(resolution);
      const message = { model, prompt, width, height, seed, num_frames: endless ? null : frames };
      player("text").start(message);
    },
    change(prompt) { player("text").change(prompt); },
    upscale(model, token, color_correction, seed, clip) {
      if (!token) return;
      const message = { model, source: "video", video: { token }, seed, extra_params: { color_correction } };
      player("upscale").start(message, { before: clip?.video?.url ?? clip?.url });
    },
    async live(model, width, clip, seed) {
      const live = player("live");
      const camera = new Camera(live, width, 12, clip?.video?.url ?? clip?.url);
      try {
        const found = await camera.open();
        const message = { model, source: "frames", ...found, fps: camera.fps, seed };
        live.start(message, { feed: (session) => camera.feed(session) });
      } catch (error) { live.say(`There are no frames to send: ${error.message}`); }
    },
    dice: () => Math.floor(Math.random() * 2 ** 32),
    // the settings of the page's address, so that a link reproduces them
    settings(...defaults) {
      const query = new URLSearchParams(location.search), number = (text) => parseInt(text, 10);
      const kinds = { prompt: String, size: String, frames: number, endless: (text) => text === "true", seed: number };
      return Object.entries(kinds).map(([name, read], index) => {
        const value = query.has(name) ? read(query.get(name)) : defaults[index];
        return Number.isNaN(value) ? defaults[index] : value;
      });
    },
    async link(prompt, size, frames, endless, seed) {
      const url = new URL(location.href);
      url.search = new URLSearchParams({ prompt, size, frames, endless, seed });
      history.replaceState(null, "", url);
      try { await navigator.clipboard.writeText(url.href); player("text").say("The link is copied: it reproduces these settings."); }
      catch { player("text").say("The page's address is now the link that reproduces these settings."); }
    },
  };
})();
