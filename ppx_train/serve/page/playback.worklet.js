// Plays sound that comes in pieces at 24 kHz, and keeps as little of it waiting as the network allows.

import { Fifo } from "./fifo.js";
import { Resampler } from "./resample.js";

const RATE = 24000;
const FIRST_MARGIN = 0.04; // seconds that sound waits before it is played
const FRAME = 0.08; // seconds that come at a time
const MORE_MARGIN = 0.02; // after each gap
const MOST_MARGIN = 0.24;
const CALM = 20; // seconds without a gap, after which the margin is what they needed
const SPARE = 0.04; // seconds that may wait beyond the margin; more is left out where it is silent
const MOST_SPARE = 0.3; // and beyond that is cut
const QUIET = 0.003; // a peak of -50 dB
const FADE = 0.005;
const BLOCK = 0.02;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(RATE, sampleRate);
    this.waiting = new Fifo();
    this.margin = FIRST_MARGIN;
    this.fade = new Float32Array(Math.round(FADE * sampleRate));
    this.ahead = new Float32Array(128);
    this.reset();
    this.port.onmessage = ({ data }) => {
      if (data.samples) this.add(data.samples);
      else if (data.type === "cut") this.cut(this.waiting.length / sampleRate - this.margin - SPARE);
      else if (data.type === "reset") this.reset();
    };
  }

  reset() {
    this.waiting = new Fifo();
    this.isPlaying = false;
    this.waited = 0; // seconds since the first piece of a filling queue
    this.fadesIn = 0; // samples that are still to be faded in
    this.fadesOut = 0; // samples that are left before a gap
    this.excess = 0; // seconds to leave out at the next silence
    this.least = Infinity; // what waited at least in this second
    this.leastUntil = 0;
    this.startCalm();
    this.figures = { played: 0, gaps: 0, cut: 0 };
    this.block = { power: 0, count: 0 };
  }

  startCalm() {
    this.calm = 0; // seconds
    this.leastInCalm = Infinity; // what waited at least in them
  }

  add(samples) {
    this.waiting.push(this.resampler.process(samples));
  }

  /** Drops the oldest seconds, with a short crossfade in their place. */
  cut(seconds) {
    const count = Math.floor(seconds * sampleRate);
    if (count < this.fade.length || !this.isPlaying || this.fadesOut) return;
    const { fade, waiting } = this;
    waiting.peek(fade);
    waiting.drop(count);
    const into = new Float32Array(fade.length);
    waiting.read(into);
    for (let n = 0; n < fade.length; n++) into[n] = (into[n] * n + fade[n] * (fade.length - n)) / fade.length;
    const rest = new Float32Array(waiting.length);
    waiting.read(rest);
    waiting.push(into);
    waiting.push(rest);
    this.excess = 0;
    this.figures.cut += count / sampleRate;
  }

  process(_, [output]) {
    const out = output[0];
    const seconds = out.length / sampleRate;
    if (!this.isPlaying && this.waiting.length) {
      this.waited += seconds;
      // After a gap, what was held up comes at once: with a frame beyond the margin there is nothing to wait for.
      this.isPlaying = this.waited >= this.margin || this.waiting.length >= (this.margin + FRAME) * sampleRate;
      this.fadesIn = this.fade.length;
    }
    if (this.isPlaying) this.play(out, seconds);
    for (const channel of output.slice(1)) channel.set(out);
    this.report(out);
    return true;
  }

  play(out, seconds) {
    this.leaveOut(out.length);
    // The last samples are faded out; whatever comes meanwhile is too late to be joined on.
    if (!this.fadesOut && this.waiting.length < out.length + this.fade.length)
      this.fadesOut = this.fadeLength = this.waiting.length;
    const isLast = this.fadesOut > 0 && this.fadesOut <= out.length;
    const done = this.waiting.read(this.fadesOut ? out.subarray(0, this.fadesOut) : out);
    for (let n = 0; n < done && this.fadesIn > 0; n++) out[n] *= 1 - this.fadesIn-- / this.fade.length;
    for (let n = 0; n < done && this.fadesOut > 0; n++) out[n] *= --this.fadesOut / this.fadeLength;
    this.figures.played += done / sampleRate;
    if (isLast || done < out.length) {
      this.isPlaying = false;
      this.waited = 0;
      this.figures.gaps += 1;
      this.margin = Math.min(MOST_MARGIN, this.margin + MORE_MARGIN);
      this.startCalm();
    } else this.lowerMargin(seconds);
    this.least = Math.min(this.least, this.waiting.length / sampleRate);
    this.leastUntil += seconds;
    if (this.leastUntil < 1) return;
    // What waited all through a second was in nobody's way: the queue is longer than the network asks for.
    this.excess = this.least > this.margin + SPARE ? this.least - this.margin : 0;
    if (this.excess > MOST_SPARE) this.cut(this.excess);
    this.least = Infinity;
    this.leastUntil = 0;
  }

  /** After a calm time, takes back what waited all through it. */
  lowerMargin(seconds) {
    this.leastInCalm = Math.min(this.leastInCalm, this.waiting.length / sampleRate);
    this.calm += seconds;
    if (this.calm < CALM) return;
    this.margin = Math.max(FIRST_MARGIN, this.margin - Math.max(0, this.leastInCalm - FIRST_MARGIN));
    this.startCalm();
  }

  /** Drops one silent block, if too much waits. */
  leaveOut(length) {
    if (this.excess <= 0 || this.fadesOut || this.waiting.length < 2 * length) return;
    this.waiting.peek(this.ahead);
    if (this.ahead.some((value) => Math.abs(value) > QUIET)) return;
    this.waiting.drop(length);
    this.excess -= length / sampleRate;
    this.figures.cut += length / sampleRate;
  }

  report(out) {
    const { block } = this;
    for (const value of out) block.power += value * value;
    block.count += out.length;
    if (block.count < BLOCK * sampleRate) return;
    const level = Math.sqrt(block.power / block.count);
    const queued = this.waiting.length / sampleRate;
    this.port.postMessage({ ...this.figures, level, queued, margin: this.margin, time: currentTime });
    this.block = { power: 0, count: 0 };
  }
}

registerProcessor("playback", Playback);
