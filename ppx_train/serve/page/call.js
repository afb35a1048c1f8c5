// One call over a WebSocket to /api/chat, with the events of proto=2.

import { RATE, makeCodec } from "./codec.js";

const KIND = { handshake: 0, audio: 1, event: 4, error: 5 };
const FRAME = 1920; // samples of 80 ms, the server's step
const SILENT_MS = 10000; // a server that says nothing for so long is gone
const UNSENT_SECONDS = 1; // of sound that the browser holds back; more is not sent
const UNSENT_MOST = 250; // pieces in a row that could not be sent: 5 s
const MOST_URL = 8000; // servers read no longer line
const BYTES_A_SECOND = { opus: 5000, pcm16: 48000 };

export const subprotocols = (token) => (token ? ["ppx", `ppx-token.${token}`] : []);
export const authorization = (token) => (token ? { Authorization: `Bearer ${token}` } : {});

export class Call {
  /** query: the fields of /api/chat. on: phase(name, event), text({at, text}), sound(samples), ended(end). */
  constructor({ query, token, on }) {
    Object.assign(this, { query, token, on });
    this.codecName = query.codec;
    this.stats = {};
    this.pieceTimes = []; // when each piece of 20 ms was spoken, in ms
    this.sent = 0; // samples
    this.received = 0;
    this.unsent = 0; // pieces
    this.unsentInARow = 0;
    this.delay = 0; // seconds from the end of a frame to the arrival of what it led to
    this.isReady = this.isOver = this.wasOpen = false;
  }

  get url() {
    const url = new URL("api/chat", location.href);
    url.search = new URLSearchParams(this.query);
    return url;
  }

  open() {
    this.codec = makeCodec(this.codecName, {
      onBytes: (bytes) => this.#sendBytes(bytes),
      onSamples: (samples) => this.#heard(samples),
      onError: () => this.#end({ reason: "codec" }),
    });
    const url = this.url;
    url.protocol = url.protocol.replace("http", "ws");
    this.socket = new WebSocket(url, subprotocols(this.token));
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.wasOpen = true;
      this.lastMessage = performance.now();
    };
    this.socket.onmessage = ({ data }) => this.#take(new Uint8Array(data));
    this.socket.onclose = ({ code }) => this.#closed(code);
    this.watch = setInterval(() => this.#watch(), 500);
    this.on.phase("connecting");
  }

  /** Sends 20 ms of the user's sound, once the agent is ready; returns whether it went. */
  send(samples) {
    if (!this.isReady || this.isOver) return false;
    if (this.socket.bufferedAmount > UNSENT_SECONDS * BYTES_A_SECOND[this.codecName]) {
      this.unsent += 1;
      this.unsentInARow += 1;
      if (this.unsentInARow > UNSENT_MOST) this.#end({ reason: "upload" });
      return false;
    }
    this.unsentInARow = 0;
    this.sent += samples.length;
    this.pieceTimes.push(performance.now());
    this.codec.send(samples);
    return true;
  }

  hangUp() {
    this.#end({ reason: "user" });
  }

  get limitSeconds() {
    return (this.ready?.max_steps ?? 0) * (FRAME / RATE);
  }

  #sendBytes(bytes) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    const message = new Uint8Array(1 + bytes.length);
    message[0] = KIND.audio;
    message.set(bytes, 1);
    this.socket.send(message);
  }

  #take(message) {
    this.lastMessage = performance.now();
    const payload = message.subarray(1);
    if (message[0] === KIND.handshake) this.#begin();
    else if (message[0] === KIND.audio) this.codec.take(payload);
    else if (message[0] === KIND.event) this.#event(JSON.parse(new TextDecoder().decode(payload)));
    else if (message[0] === KIND.error) this.sentence = new TextDecoder().decode(payload);
  }

  #begin() {
    this.isReady = true;
    this.on.phase("talking");
  }

  #event(event) {
    if (event.type === "text") this.on.text(event);
    else if (event.type === "ready") this.ready = event;
    else if (event.type === "stats") this.stats = event;
    else if (event.type === "bye") this.bye = event;
    else {
      if (event.type === "backlog_dropped") this.stats = { ...this.stats, dropped: event.frames };
      this.on.phase(event.type, event);
    }
  }

  #heard(samples) {
    this.received += samples.length;
    const { cut_ms: cut = 0, dropped = 0, left_out: leftOut = 0 } = this.stats;
    const led = this.received + (cut * RATE) / 1000 + (dropped + leftOut) * FRAME; // samples of the user's sound
    const spoken = this.pieceTimes[Math.min(this.pieceTimes.length, Math.ceil(led / 480)) - 1];
    const delay = (performance.now() - spoken) / 1000;
    if (delay >= 0) this.delay += (delay - this.delay) * (this.delay ? 0.05 : 1);
    this.on.sound(samples);
  }

  #watch() {
    // Timers of a hidden page may run before the messages that wait for it.
    if (this.wasOpen && !document.hidden && performance.now() - this.lastMessage > SILENT_MS && this.isReady)
      this.#end({ reason: "silent" });
  }

  async #closed(code) {
    if (this.isOver) return;
    if (this.bye) this.#end(this.bye);
    else if (this.wasOpen) this.#end({ reason: code === 1012 ? "draining" : "broken", code, sentence: this.sentence });
    else this.#end(await this.#refusal());
  }

  /** Why the server refused: a WebSocket loses the body of an answer, so the question is asked again. */
  async #refusal() {
    if (this.url.href.length > MOST_URL) return { reason: "long" };
    try {
      const answer = await fetch(this.url, { headers: authorization(this.token) });
      const body = await answer.json();
      if (answer.status !== 400 || body.field) return { reason: "refused", status: answer.status, ...body };
      const info = await (await fetch("api/info", { headers: authorization(this.token) })).json();
      return { reason: info.active >= info.sessions ? "full" : "no-socket", ...info };
    } catch {
      return { reason: "unreachable" };
    }
  }

  #end(end) {
    if (this.isOver) return;
    this.isOver = true;
    clearInterval(this.watch);
    this.codec.close();
    this.socket.close();
    this.on.ended({ ...end, wasReady: this.isReady });
  }
}
