// A waveform that runs along: peaks of 20 ms, the newest on the right.

const SECONDS = 8;
const PEAKS = SECONDS * 50;

export class Scope {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
  }

  clear() {
    this.peaks = new Float32Array(PEAKS);
    this.dirty = true;
  }

  add(samples) {
    for (let start = 0; start < samples.length; start += 480) {
      let peak = 0;
      for (const value of samples.subarray(start, start + 480)) peak = Math.max(peak, Math.abs(value));
      this.peaks.copyWithin(0, 1);
      this.peaks[PEAKS - 1] = peak;
    }
    this.dirty = true;
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio];
    if (!width || (!this.dirty && canvas.width === Math.round(width))) return;
    this.dirty = false;
    canvas.width = Math.round(width);
    canvas.height = Math.round(height);
    const pen = canvas.getContext("2d");
    pen.fillStyle = getComputedStyle(canvas).color;
    const step = width / PEAKS;
    this.peaks.forEach((peak, n) => {
      const size = Math.max(devicePixelRatio, Math.min(1, Math.sqrt(peak)) * height); // soft speech stays visible
      pen.fillRect(n * step, (height - size) / 2, Math.max(1, step * 0.7), size);
    });
  }
}
