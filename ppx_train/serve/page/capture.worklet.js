// The microphone, at whatever rate the context has, as pieces of 20 ms at 24 kHz.

import { Fifo } from "./fifo.js";
import { Resampler } from "./resample.js";

const RATE = 24000;
const PIECE = 480;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.waiting = new Fifo();
    this.silence = new Float32Array(128);
  }

  process([input]) {
    // A microphone that was unplugged leaves no channel: silence keeps the call going.
    this.waiting.push(this.resampler.process((input[0] ?? this.silence).slice()));
    while (this.waiting.length >= PIECE) {
      const samples = new Float32Array(PIECE);
      this.waiting.read(samples);
      this.port.postMessage({ samples, time: currentTime }, [samples.buffer]);
    }
    return true;
  }
}

registerProcessor("capture", Capture);
