// What is kept of a call, and the files it makes. Times are those of the model: its frame n hears the user's frame n.

import { RATE, toInt16 } from "./codec.js";

const PAUSE = 1.0; // seconds of silence in the text that end a line

export class Recording {
  constructor() {
    this.started = new Date();
    this.user = [];
    this.agent = [];
    this.pieces = []; // {at, text}
  }

  /** The lines of the agent: pieces without a long pause between them. */
  get lines() {
    const lines = [];
    for (const { at, text } of this.pieces) {
      const line = lines.at(-1);
      if (line && at - line.end < PAUSE) Object.assign(line, { end: at, text: line.text + text });
      else lines.push({ start: at, end: at, text });
    }
    return lines.map((line) => ({ ...line, text: line.text.trim() }));
  }

  addUser(samples) {
    this.user.push(toInt16(samples));
  }

  addAgent(samples) {
    this.agent.push(toInt16(samples));
  }

  addText({ at, text }) {
    this.pieces.push({ at, text });
  }

  /** Stereo: the agent on the left, the user on the right. cut: first samples of the user to leave out. */
  wav(cut) {
    return wav([flat(this.agent, Int16Array), flat(this.user, Int16Array).subarray(cut)]);
  }

  transcript() {
    return json({ started: this.started.toISOString(), agent: this.lines, pieces: this.pieces });
  }
}

export const json = (content) => new Blob([JSON.stringify(content, null, 2), "\n"], { type: "application/json" });

/** A file of 16 bits at 24 kHz of channels, Int16Array each; what a shorter one lacks is silence. */
export function wav(channels) {
  const count = Math.max(...channels.map((samples) => samples.length));
  const parts = [wavHeader(count, channels.length)];
  for (let start = 0; start < count; start += RATE) {
    const size = Math.min(RATE, count - start);
    const view = new DataView(new ArrayBuffer(2 * channels.length * size));
    for (let n = 0; n < size; n++)
      channels.forEach((samples, k) => view.setInt16(2 * (n * channels.length + k), samples[start + n] ?? 0, true));
    parts.push(view.buffer);
  }
  return new Blob(parts, { type: "audio/wav" });
}

/** Lets the browser save a file. */
export function download(name, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Pieces as one array of a kind. */
export function flat(list, Kind) {
  const whole = new Kind(list.reduce((sum, samples) => sum + samples.length, 0));
  let at = 0;
  for (const samples of list) {
    whole.set(samples, at);
    at += samples.length;
  }
  return whole;
}

function wavHeader(count, channels) {
  const width = 2 * channels;
  const view = new DataView(new ArrayBuffer(44));
  const word = (at, letters) => [...letters].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + width * count, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, channels, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, width * RATE, true);
  view.setUint16(32, width, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, width * count, true);
  return view.buffer;
}
