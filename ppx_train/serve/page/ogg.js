// Opus packets into Ogg pages and back. Sources: RFC 3533 (Ogg), RFC 7845 (Opus in Ogg).

const BEGINS = 2;
const CONTINUES = 1;
const HEADER = 27;
const MOST_PACKET = 61440; // beyond it a stream is not one of Opus

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte << 24;
  for (let bit = 0; bit < 8; bit++) value = value & 0x80000000 ? (value << 1) ^ 0x04c11db7 : value << 1;
  return value >>> 0;
});

/** The checksum of a page whose own four bytes of it are zero. */
export function crc(bytes) {
  let value = 0;
  for (const byte of bytes) value = ((value << 8) ^ TABLE[(value >>> 24) ^ byte]) >>> 0;
  return value;
}

/** Writes one stream of mono Opus: `headers()` once, then `page(packet)` for each packet. */
export class OggWriter {
  /** preSkip: samples at 48 kHz by which the encoder delays. */
  constructor({ rate, preSkip, serial = crypto.getRandomValues(new Uint32Array(1))[0] }) {
    Object.assign(this, { rate, preSkip, serial, number: 0, granule: 0 });
  }

  headers() {
    const head = new DataView(new ArrayBuffer(19));
    write(head, 0, "OpusHead");
    head.setUint8(8, 1); // version
    head.setUint8(9, 1); // channels
    head.setUint16(10, this.preSkip, true);
    head.setUint32(12, this.rate, true);
    const tags = new DataView(new ArrayBuffer(8 + 4 + 3 + 4));
    write(tags, 0, "OpusTags");
    tags.setUint32(8, 3, true);
    write(tags, 12, "ppx");
    return join([this.#page(new Uint8Array(head.buffer), BEGINS), this.#page(new Uint8Array(tags.buffer), 0)]);
  }

  /** A page with one packet of so many samples at 48 kHz. */
  page(packet, samples) {
    this.granule += samples;
    return this.#page(packet, 0);
  }

  #page(packet, flags) {
    const segments = Math.floor(packet.length / 255) + 1;
    const page = new Uint8Array(HEADER + segments + packet.length);
    const view = new DataView(page.buffer);
    write(view, 0, "OggS");
    view.setUint8(5, flags);
    view.setBigUint64(6, BigInt(this.granule), true);
    view.setUint32(14, this.serial, true);
    view.setUint32(18, this.number++, true);
    view.setUint8(26, segments);
    page.fill(255, HEADER, HEADER + segments - 1);
    page[HEADER + segments - 1] = packet.length % 255;
    page.set(packet, HEADER + segments);
    view.setUint32(22, crc(page), true);
    return page;
  }
}

/** Reads one stream that may be cut anywhere; pages with a wrong checksum are skipped. */
export class OggReader {
  constructor() {
    this.rest = new Uint8Array(0);
    this.begun = []; // parts of a packet that goes on in the next page
    this.preSkip = 0;
    this.damaged = 0;
  }

  /** Returns the Opus packets that are whole with some more bytes; headers are read and left out. */
  push(bytes) {
    this.rest = join([this.rest, bytes]);
    const packets = [];
    for (let page = this.#next(); page; page = this.#next()) packets.push(...this.#packets(page));
    return packets.filter((packet) => !this.#isHeader(packet));
  }

  #next() {
    for (;;) {
      const at = find(this.rest, "OggS");
      this.rest = this.rest.subarray(at);
      if (this.rest.length < HEADER) return null;
      const lacing = this.rest.subarray(HEADER, HEADER + this.rest[26]);
      const length = HEADER + this.rest[26] + lacing.reduce((sum, lace) => sum + lace, 0);
      if (lacing.length < this.rest[26] || this.rest.length < length) return null;
      const page = this.rest.slice(0, length);
      const view = new DataView(page.buffer);
      const checksum = view.getUint32(22, true);
      view.setUint32(22, 0, true);
      if (crc(page) === checksum) {
        this.rest = this.rest.subarray(length);
        return page;
      }
      this.damaged += 1;
      this.begun = [];
      this.rest = this.rest.subarray(4); // The next page may begin within what this one claims.
    }
  }

  #packets(page) {
    const packets = [];
    if (!(page[5] & CONTINUES)) this.begun = [];
    let at = HEADER + page[26];
    for (let n = 0; n < page[26]; n++) {
      const lace = page[HEADER + n];
      this.begun.push(page.subarray(at, at + lace));
      at += lace;
      if (lace < 255) {
        packets.push(join(this.begun));
        this.begun = [];
      } else if (this.begun.length > MOST_PACKET / 255) this.begun = [];
    }
    return packets;
  }

  #isHeader(packet) {
    if (starts(packet, "OpusHead") && packet.length >= 19) {
      this.preSkip = packet[10] | (packet[11] << 8);
      return true;
    }
    return starts(packet, "OpusTags");
  }
}

const starts = (bytes, word) => [...word].every((letter, n) => bytes[n] === letter.charCodeAt(0));

/** Where a word begins, or where it might begin once more bytes are there. */
function find(bytes, word) {
  for (let at = 0; at < bytes.length; at++)
    if (starts(bytes.subarray(at, at + 4), word.slice(0, bytes.length - at))) return at;
  return bytes.length;
}

function write(view, at, word) {
  for (let n = 0; n < word.length; n++) view.setUint8(at + n, word.charCodeAt(n));
}

export function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
