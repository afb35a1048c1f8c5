// Streaming conversion between sample rates: a windowed sinc with a Kaiser window, one row of weights for each phase.
// Linear phase; flat to 84 % of the lower Nyquist frequency, 80 dB down at and beyond it. tests: against soxr.

const CROSSINGS = 32; // of the sinc on each side, counted at the lower rate
const CUTOFF = 0.92; // of the lower Nyquist frequency: the middle of the transition
const BETA = 7.86; // 80 dB

/** Converts mono sound piece by piece; as many pieces as wanted, of any length. */
export class Resampler {
  constructor(from, to) {
    const common = gcd(from, to);
    this.up = to / common;
    this.down = from / common;
    this.half = Math.ceil(CROSSINGS * Math.max(1, from / to));
    this.weights = from === to ? null : table(this.up, this.half, CUTOFF * Math.min(1, to / from));
    this.kept = new Float32Array(this.half - 1); // what output still needs of earlier input; silence at first
    this.phase = 0; // position of the next output after the kept input, in parts of 1 / up of an input sample
  }

  /** Returns the samples that can be computed with `input` added: they lag by `half` input samples. */
  process(input) {
    if (!this.weights) return input;
    const { up, down, half, weights } = this;
    const samples = new Float32Array(this.kept.length + input.length);
    samples.set(this.kept);
    samples.set(input, this.kept.length);
    const output = new Float32Array(Math.ceil((samples.length * up) / down) + 1);
    let count = 0;
    let position = this.phase; // of the first weight, so that a row ends 2 * half samples later
    for (let first = Math.floor(position / up); first + 2 * half <= samples.length; first = Math.floor(position / up)) {
      const row = (position % up) * 2 * half;
      let sum = 0;
      for (let k = 0; k < 2 * half; k++) sum += weights[row + k] * samples[first + k];
      output[count++] = sum;
      position += down;
    }
    const used = Math.min(Math.floor(position / up), samples.length);
    this.kept = samples.slice(used);
    this.phase = position - used * up;
    return output.slice(0, count);
  }
}

/** Weights [up, 2 * half]: row p is for an output that lies p / up after the input at index half - 1. */
function table(up, half, cutoff) {
  const weights = new Float32Array(up * 2 * half);
  for (let p = 0; p < up; p++) {
    let sum = 0;
    for (let k = 0; k < 2 * half; k++) {
      const x = k - (half - 1) - p / up;
      const w = sinc(cutoff * x) * bessel(BETA * Math.sqrt(Math.max(0, 1 - (x / half) ** 2)));
      weights[p * 2 * half + k] = w;
      sum += w;
    }
    for (let k = 0; k < 2 * half; k++) weights[p * 2 * half + k] /= sum;
  }
  return weights;
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

/** The modified Bessel function of order 0, by its series. */
function bessel(x) {
  let sum = 1;
  let term = 1;
  for (let n = 1; term > 1e-10 * sum; n++) {
    term *= (x / (2 * n)) ** 2;
    sum += term;
  }
  return sum;
}

const gcd = (a, b) => (b ? gcd(b, a % b) : a);
