// Notices when the microphone hears the agent: the loudness of what is played comes back with a constant delay.

const BLOCK = 0.02; // seconds
const BLOCKS = 200; // compared at a time, 4 s
const MOST_LAG = 40; // blocks, 800 ms
const EVERY = 50; // blocks between two looks
const ALIKE = 0.65; // correlation: of an echo 20 dB down 0.83, of other speech below 0.5, in the tests
const ACTIVE = 0.25; // share of blocks with sound that are needed to judge
const TIMES = 2; // in a row
const FLOOR = 0.003;

export class EchoWatch {
  constructor() {
    this.played = new Map(); // loudness by block of the context's clock
    this.captured = new Map();
    this.next = 0;
    this.found = 0;
  }

  addPlayed(time, level) {
    this.played.set(Math.floor(time / BLOCK), loudness(level));
  }

  /** Adds what the microphone heard; returns true when it has become clear that it hears the agent. */
  addCaptured(time, level) {
    const block = Math.floor(time / BLOCK);
    this.captured.set(block, loudness(level));
    if (block < this.next) return false;
    this.next = block + EVERY;
    for (const kept of [this.played, this.captured])
      for (const old of kept.keys()) if (old < block - BLOCKS - MOST_LAG - EVERY) kept.delete(old);
    this.found = this.#hearsAgent(block) ? this.found + 1 : 0;
    return this.found === TIMES;
  }

  #hearsAgent(end) {
    const captured = series(this.captured, end);
    if (share(captured) < ACTIVE / 2) return false;
    for (let lag = 0; lag <= MOST_LAG; lag++) {
      const played = series(this.played, end - lag);
      if (share(played) >= ACTIVE && correlation(played, captured) > ALIKE) return true;
    }
    return false;
  }
}

/** In decibels above the floor, so that quiet echoes count like loud ones. */
const loudness = (level) => Math.max(0, 20 * Math.log10(Math.max(level, 1e-6) / FLOOR));
const share = (values) => values.filter((value) => value > 0).length / values.length;

/** The last blocks up to `end`; a block between two that was missed has the value of the one before. */
function series(blocks, end) {
  const values = [];
  for (let n = end - BLOCKS; n < end; n++) values.push(blocks.get(n) ?? values.at(-1) ?? 0);
  return values;
}

function correlation(a, b) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [ma, mb] = [mean(a), mean(b)];
  let [ab, aa, bb] = [0, 0, 0];
  for (let n = 0; n < a.length; n++) {
    ab += (a[n] - ma) * (b[n] - mb);
    aa += (a[n] - ma) ** 2;
    bb += (b[n] - mb) ** 2;
  }
  return aa && bb ? ab / Math.sqrt(aa * bb) : 0;
}
