// The sound of a call on the wire: Ogg-Opus by WebCodecs where the browser has it, else PCM16, little-endian, 24 kHz.

import { OggReader, OggWriter } from "./ogg.js";
import { Resampler } from "./resample.js";

export const RATE = 24000;
const SOUND = { codec: "opus", sampleRate: RATE, numberOfChannels: 1 };
const ENCODER = { ...SOUND, bitrate: 32000, opus: { frameDuration: 20000, application: "voip" } };
const DELAY = 312; // of libopus, in samples at 48 kHz

/** Whether the browser encodes and decodes Opus at 24 kHz. */
export async function hasOpus() {
  if (!globalThis.AudioEncoder || !globalThis.AudioDecoder) return false;
  try {
    const kinds = await Promise.all([AudioEncoder.isConfigSupported(ENCODER), AudioDecoder.isConfigSupported(SOUND)]);
    return kinds.every((kind) => kind.supported);
  } catch {
    return false;
  }
}

/** Samples, float in [-1, 1], as 16 bits; what is beyond full scale is clipped. */
export function toInt16(samples) {
  return Int16Array.from(samples, (value) => Math.max(-32768, Math.min(32767, Math.round(value * 32768))));
}

/** A sender and a receiver. onBytes gets what is to be sent, onSamples Float32Array at 24 kHz, onError what broke. */
export function makeCodec(name, on) {
  return name === "opus" ? new Opus(on) : new Pcm16(on);
}

class Pcm16 {
  constructor({ onBytes, onSamples }) {
    Object.assign(this, { onBytes, onSamples, rest: new Uint8Array(0) });
  }

  send(samples) {
    const view = new DataView(new ArrayBuffer(2 * samples.length));
    toInt16(samples).forEach((value, n) => view.setInt16(2 * n, value, true));
    this.onBytes(new Uint8Array(view.buffer));
  }

  take(bytes) {
    const whole = new Uint8Array(this.rest.length + bytes.length);
    whole.set(this.rest);
    whole.set(bytes, this.rest.length);
    const count = whole.length >> 1;
    this.rest = whole.slice(2 * count);
    const view = new DataView(whole.buffer);
    if (count) this.onSamples(Float32Array.from({ length: count }, (_, n) => view.getInt16(2 * n, true) / 32768));
  }

  close() {}
}

class Opus {
  constructor({ onBytes, onSamples, onError }) {
    Object.assign(this, { onBytes, onSamples, sent: 0, received: 0, skipped: 0 });
    this.writer = new OggWriter({ rate: RATE, preSkip: DELAY });
    this.reader = new OggReader();
    this.encoder = new AudioEncoder({ output: (chunk) => this.#encoded(chunk), error: onError });
    this.encoder.configure(ENCODER);
    this.decoder = new AudioDecoder({ output: (data) => this.#decoded(data), error: onError });
    this.decoder.configure(SOUND);
  }

  send(samples) {
    if (this.encoder.state !== "configured") return;
    if (!this.sent) this.onBytes(this.writer.headers());
    const timestamp = Math.round((1e6 * this.sent) / RATE);
    const shape = { format: "f32-planar", sampleRate: RATE, numberOfChannels: 1, numberOfFrames: samples.length };
    const sound = new AudioData({ ...shape, timestamp, data: samples });
    this.sent += samples.length;
    this.encoder.encode(sound);
    sound.close();
  }

  take(bytes) {
    for (const data of this.reader.push(bytes)) {
      if (this.decoder.state !== "configured" || !data.length) continue;
      this.decoder.decode(new EncodedAudioChunk({ type: "key", timestamp: 40000 * this.received++, data }));
    }
  }

  close() {
    for (const part of [this.encoder, this.decoder]) if (part.state !== "closed") part.close();
  }

  #encoded(chunk) {
    const packet = new Uint8Array(chunk.byteLength);
    chunk.copyTo(packet);
    this.onBytes(this.writer.page(packet, Math.round(((chunk.duration ?? 20000) * 48) / 1000)));
  }

  /**
   * The decoder may have another rate than it was asked for. The first samples are the encoder's delay: servers with
   * sphn announce 80 ms, which would cut off the agent's first sound, but theirs is libopus's too.
   */
  #decoded(data) {
    const rate = data.sampleRate;
    let samples = new Float32Array(data.numberOfFrames);
    data.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    data.close();
    const skip = Math.min(
      samples.length,
      Math.round((Math.min(this.reader.preSkip, DELAY) * rate) / 48000) - this.skipped,
    );
    this.skipped += skip;
    if (rate !== RATE) {
      this.resampler ??= new Resampler(rate, RATE);
      samples = this.resampler.process(samples.subarray(skip));
    } else samples = samples.slice(skip);
    if (samples.length) this.onSamples(samples);
  }
}
