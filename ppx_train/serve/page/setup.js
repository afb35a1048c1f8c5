// The form before a call: role, voice, devices, level test, and what is behind "More settings".

import { authorization } from "./call.js";
import { LevelMeter } from "./level_meter.js";
import { canChooseSpeaker, listDevices } from "./sound.js";

export const at = (id) => document.getElementById(id);
const SAMPLING = ["text_temperature", "text_topk", "audio_temperature", "audio_topk"];
const CODECS = { opus: "Opus, 32 kbit/s", pcm16: "PCM16, 384 kbit/s" };

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

export function option(value, label) {
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

/** The test of the microphone before a call. */
export class LevelTest {
  constructor() {
    this.meter = new LevelMeter(at("level"), at("level-words"));
    this.stop();
  }

  start() {
    this.isOn = true;
    at("test-microphone").textContent = "Stop the test";
    at("level-test").hidden = false;
    this.meter.reset("Say something.");
  }

  stop() {
    this.isOn = false;
    at("test-microphone").textContent = "Test microphone";
    at("level-test").hidden = true;
    this.meter.reset("");
  }

  add(samples) {
    if (this.isOn) this.meter.add(samples);
  }
}
