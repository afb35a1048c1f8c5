// What is seen during a call and after it: phase, clock, waveforms, captions, notices and figures.

import { Scope } from "./scope.js";
import { at } from "./setup.js";

const CALM_MS = 500; // between two pictures, for people who asked for less motion

export class CallView {
  constructor() {
    this.agentWave = new Scope(at("agent-wave"));
    this.userWave = new Scope(at("user-wave"));
    this.isCalm = matchMedia("(prefers-reduced-motion: reduce)");
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
    addEventListener("resize", () => this.#redraw());
  }

  start() {
    for (const wave of [this.agentWave, this.userWave]) wave.clear();
    for (const id of ["captions", "notices", "figures"]) at(id).replaceChildren();
    for (const id of ["delay", "why"]) at(id).textContent = "";
    at("why").classList.remove("problem");
    at("no-captions").hidden = false;
    at("waves").hidden = true;
    at("keep").hidden = true;
    at("elapsed").textContent = "0:00";
    at("left-words").hidden = true;
    at("hang-up").textContent = "Cancel";
    showOnly("hang-up");
    this.isOn = true;
    this.say("Connecting.");
    this.#draw();
  }

  say(words) {
    if (at("phase").textContent !== words) at("phase").textContent = words;
  }

  talking() {
    this.began = performance.now();
    at("waves").hidden = false;
    at("hang-up").textContent = "End call";
    showOnly("mute", "hang-up");
    this.say("Connected. Speak.");
  }

  /** isPlanned: whether the user ended the call. wasReady: whether there is anything to keep. */
  ended({ title, text }, { isPlanned, wasReady }) {
    this.isOn = false;
    this.say(title);
    at("why").textContent = text;
    at("why").classList.toggle("problem", !isPlanned);
    at("left-words").hidden = true;
    at("keep").hidden = !wasReady;
    at("notices").replaceChildren();
    showOnly("again", "change");
    at("phase").focus();
  }

  /** The lines that were said so far; only the last ones can have changed. */
  caption(lines) {
    const list = at("captions");
    const log = at("captions-log");
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    at("no-captions").hidden = true;
    for (let n = Math.max(0, list.children.length - 1); n < lines.length; n++) {
      const item = list.children[n] ?? list.appendChild(newCaption(lines[n].start));
      if (item.lastChild.textContent !== lines[n].text) item.lastChild.textContent = lines[n].text;
    }
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  /** Shows a notice of a kind in the place of the one before; null takes it away. */
  notice(kind, words) {
    const old = at("notices").querySelector(`[data-kind=${kind}]`);
    if (!words) return old?.remove();
    const item = old ?? at("notices").appendChild(document.createElement("li"));
    item.dataset.kind = kind;
    item.textContent = words;
  }

  /** call: its delay, statistics and codec. played: what the playback reports. */
  figures(call, played, outputSeconds, info) {
    const now = performance.now();
    if (!call.isReady || now - (this.shown ?? 0) < 250) return;
    this.shown = now;
    const elapsed = (now - this.began) / 1000;
    at("elapsed").textContent = clock(elapsed);
    at("left").textContent = clock(Math.max(0, call.limitSeconds - elapsed));
    at("left-words").hidden = !call.limitSeconds;
    const { tick_ms: tick, budget_ms: budget, dropped, missed, backlog_ms: backlog } = call.stats;
    const total = call.delay + played.queued + outputSeconds;
    at("delay").textContent = `Delay ${ms(total)}, of it ${ms(played.queued)} in the buffer`;
    show(at("figures"), {
      "Server and network": ms(call.delay),
      Buffer: `${ms(played.queued)}, aim ${ms(played.margin)}`,
      Speaker: ms(outputSeconds),
      Played: `${played.played.toFixed(1)} s`,
      "Gaps, left out": `${played.gaps}, ${played.cut.toFixed(1)} s`,
      "Time of a frame": tick === undefined ? "" : `${tick} of ${budget} ms`,
      "Waits at the server": backlog === undefined ? "" : ms(backlog / 1000),
      "Frames dropped": String(dropped ?? ""),
      "Ticks missed": String(missed ?? ""),
      "Sound on the wire": call.codecName === "opus" ? "Opus" : "PCM16",
      Model: info.model ?? "",
      Seed: call.query.seed,
    });
  }

  #redraw() {
    for (const wave of [this.agentWave, this.userWave]) {
      wave.dirty = true;
      wave.draw();
    }
  }

  #draw() {
    this.agentWave.draw();
    this.userWave.draw();
    if (!this.isOn) return;
    if (this.isCalm.matches) setTimeout(() => this.#draw(), CALM_MS);
    else requestAnimationFrame(() => this.#draw());
  }
}

function showOnly(...shown) {
  for (const id of ["mute", "hang-up", "again", "change"]) at(id).hidden = !shown.includes(id);
}

function newCaption(start) {
  const item = document.createElement("li");
  const time = Object.assign(document.createElement("time"), { textContent: clock(start) });
  item.append(time, document.createElement("span"));
  return item;
}

/** Fills a list of terms; their places stay, so that nothing jumps. */
function show(list, figures) {
  for (const [name, value] of Object.entries(figures)) {
    let cell = list.querySelector(`[data-name="${name}"]`);
    if (!cell) {
      cell = document.createElement("dd");
      cell.dataset.name = name;
      const row = document.createElement("div");
      row.append(Object.assign(document.createElement("dt"), { textContent: name }), cell);
      list.append(row);
    }
    if (cell.textContent !== value) cell.textContent = value;
  }
}

const ms = (seconds) => `${Math.round(1000 * seconds)} ms`;

function clock(seconds) {
  const whole = Math.floor(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const pad = (value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}
