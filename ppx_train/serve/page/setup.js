// The form before a call: role, voice, devices, level test, and what is behind "More settings".

import { authorization } from "./call.js";
import { canChooseSpeaker, level, listDevices } from "./sound.js";

export const at = (id) => document.getElementById(id);
const SAMPLING = ["text_temperature", "text_topk", "audio_temperature", "audio_topk"];
const CODECS = { opus: "Opus, 32 kbit/s", pcm16: "PCM16, 384 kbit/s" };
const DECIBELS = 60; // shown below full scale
const TESTED = 50; // pieces of 20 ms between two words about the level

/** What the server offers: {info, voices, presets}. Raises: an answer's {status, error}, or TypeError without one. */
export async function askServer(token) {
  const get = async (path) => {
    const answer = await fetch(path, { headers: authorization(token) });
    const body = await answer.json();
    if (!answer.ok) throw { status: answer.status, ...body };
    return body;
  };
  const [info, { voices }, { presets }] = await Promise.all(["api/info", "api/voices", "api/presets"].map(get));
  return { info, voices, presets };
}

export function fillForm({ info, voices, presets }, hasOpus) {
  at("server").textContent = info.model ? `${info.model}, ppx-train ${info.version}` : "";
  at("role-hint").textContent = `At most ${info.limits.role_tokens} tokens; ten words have about 13.`;
  at("presets").replaceChildren(
    ...presets.map(presetPill),
    presetPill({ id: "own", label: "My own", text_prompt: "" }),
  );
  at("role").oninput = () => (at("preset-own").checked = true);
  const named = voices.map(({ id, label, seconds }) => option(id, `${label || id} (${seconds.toFixed(1)} s)`));
  at("voice").replaceChildren(...named, option("", "No voice prompt"));
  at("voice").value = info.default_voice;
  const codecs = info.codecs.filter((name) => name !== "opus" || hasOpus);
  at("codec").replaceChildren(...codecs.map((name) => option(name, CODECS[name])));
  at("presets").querySelector("input").click();
}

function presetPill({ id, label, text_prompt: role }) {
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "preset", id: `preset-${id}` });
  input.onchange = () => {
    at("role").value = role;
    if (id === "own") at("role").focus();
  };
  const pill = document.createElement("label");
  pill.append(input, Object.assign(document.createElement("span"), { textContent: label }));
  return pill;
}

function option(value, label) {
  return Object.assign(document.createElement("option"), { value, textContent: label });
}

/** Fills the two lists of devices; the choice stays. Names are there once the microphone was allowed. */
export async function fillDevices() {
  at("speaker-choice").hidden = !canChooseSpeaker();
  for (const [id, kind] of [
    ["microphone", "audioinput"],
    ["speaker", "audiooutput"],
  ]) {
    const chosen = at(id).value;
    const devices = (await listDevices(kind)).filter(({ label }) => label);
    at(id).replaceChildren(option("", "System default"), ...devices.map((each) => option(each.id, each.label)));
    at(id).value = devices.some((each) => each.id === chosen) ? chosen : "";
  }
}

/** What getUserMedia is asked for. */
export function microphoneWanted() {
  return {
    deviceId: at("microphone").value,
    echoCancellation: at("echo").checked,
    noiseSuppression: at("noise").checked,
    autoGainControl: at("gain").checked,
  };
}

/** The query of /api/chat. A seed is drawn here if none is given, so that it can be written down. */
export function callQuery() {
  const seed = at("seed").value.trim() || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const sampling = Object.fromEntries(SAMPLING.map((name) => [name, at(name).value]));
  const who = { voice_prompt: at("voice").value, text_prompt: at("role").value.trim() };
  return { ...who, seed, ...sampling, codec: at("codec").value, proto: "2" };
}

/** Shows how loud the microphone is, and says once a second what to think of it. */
export class LevelTest {
  constructor() {
    this.stop();
  }

  start() {
    this.isOn = true;
    at("test-microphone").textContent = "Stop the test";
    at("level-test").hidden = false;
    at("level-words").textContent = "Say something.";
  }

  stop() {
    Object.assign(this, { isOn: false, count: 0, loudest: 0 });
    at("test-microphone").textContent = "Test microphone";
    at("level").value = 0;
    at("level-test").hidden = true;
    at("level-words").textContent = "";
  }

  add(samples) {
    if (!this.isOn) return;
    const share = Math.max(0, 1 + (20 * Math.log10(Math.max(level(samples), 1e-6))) / DECIBELS);
    at("level").value = Math.max(share, at("level").value - 0.02);
    this.loudest = Math.max(this.loudest, share);
    if (++this.count < TESTED) return;
    at("level-words").textContent = judge(this.loudest);
    Object.assign(this, { count: 0, loudest: 0 });
  }
}

function judge(share) {
  if (share === 0) return "Nothing is heard. Is the microphone switched off?";
  if (share < 0.35) return "Very quiet. Speak, or come closer.";
  if (share > 0.95) return "Too loud. Move away, or turn the microphone down.";
  return "Good.";
}
