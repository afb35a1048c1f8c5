// A meter of how loud the microphone is, and once a second what to think of it.

import { level } from "./sound.js";

const DECIBELS = 60; // shown below full scale
const JUDGED = 50; // pieces of 20 ms between two words about the level
const FULL = 0.999;

export class LevelMeter {
  /** meter: the element that shows the level. words: the one that says what to think of it. */
  constructor(meter, words) {
    Object.assign(this, { meter, words });
    this.reset("");
  }

  reset(words) {
    Object.assign(this, { count: 0, loudest: 0, peak: 0 });
    this.meter.value = 0;
    this.words.textContent = words;
  }

  add(samples) {
    const share = Math.max(0, 1 + (20 * Math.log10(Math.max(level(samples), 1e-6))) / DECIBELS);
    this.meter.value = Math.max(share, this.meter.value - 0.02);
    this.loudest = Math.max(this.loudest, share);
    this.peak = samples.reduce((peak, value) => Math.max(peak, Math.abs(value)), this.peak);
    if (++this.count < JUDGED) return;
    const words = judge(this.loudest, this.peak);
    if (this.words.textContent !== words) this.words.textContent = words; // else it would be read out each second
    Object.assign(this, { count: 0, loudest: 0, peak: 0 });
  }
}

function judge(share, peak) {
  if (share === 0) return "Nothing is heard. Is the microphone switched off?";
  if (share < 0.35) return "Very quiet. Speak, or come closer.";
  if (share > 0.95 || peak > FULL) return "Too loud. Move away, or turn the microphone down.";
  return "Good.";
}
