// Samples that wait, as a list of pieces.

export class Fifo {
  constructor() {
    this.pieces = [];
    this.length = 0;
    this.start = 0; // of the first piece
  }

  push(samples) {
    if (!samples.length) return;
    this.pieces.push(samples);
    this.length += samples.length;
  }

  /** Fills `out` with the oldest samples and returns how many there were. */
  peek(out) {
    let done = 0;
    let start = this.start;
    for (const piece of this.pieces) {
      if (done === out.length) break;
      const part = piece.subarray(start, start + out.length - done);
      out.set(part, done);
      done += part.length;
      start = 0;
    }
    return done;
  }

  /** As `peek`, and takes them out. */
  read(out) {
    const done = this.peek(out);
    this.drop(done);
    return done;
  }

  drop(count) {
    this.start += Math.min(count, this.length);
    this.length -= Math.min(count, this.length);
    while (this.pieces.length && this.start >= this.pieces[0].length) this.start -= this.pieces.shift().length;
  }
}
