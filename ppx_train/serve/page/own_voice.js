// A voice of the caller's own: recorded or taken from a file, heard, agreed to, and made by the server.

import { authorization } from "./call.js";
import { RATE, toInt16 } from "./codec.js";
import { LevelMeter } from "./level_meter.js";
import { ofClip } from "./reasons.js";
import { download, flat, wav } from "./record.js";
import { at, option } from "./setup.js";
import { canChooseSpeaker } from "./sound.js";

const MOST_FILE = 20e6; // bytes: a minute of uncompressed sound, and far more than a clip
const PADDING = 0.1; // seconds that some formats add to a clip
const SILENT = 0.003; // the peak of a clip in which nobody speaks

export class OwnVoice {
  /** openSound(): opens the microphone, returns whether it went. closeSound(). token(): of the server, or null. */
  constructor({ openSound, closeSound, token }) {
    Object.assign(this, { openSound, closeSound, token, isRecording: false, isBusy: false, clip: null, made: null });
    this.meter = new LevelMeter(at("own-level"), at("own-words"));
    at("record-voice").onclick = () => (this.isRecording ? this.closeSound() : this.#record());
    at("choose-clip").onclick = () => at("clip-file").click();
    at("clip-file").onchange = ({ target }) => this.#take(target.files[0]);
    at("play-clip").onclick = () => (this.player ? this.#stopPlaying() : this.#play());
    at("use-clip").onclick = () => this.#use();
    at("forget-voice").onclick = () => this.#forget();
    at("keep-voice").onclick = at("save-voice").onclick = () => this.#save();
  }

  /** limits: {seconds, kept_seconds} of the server, or null where it takes no voices of callers. */
  offer(limits) {
    this.limits = limits;
    at("own-voice").hidden = !limits;
  }

  /** Takes 20 ms of the microphone, if it records. */
  add(samples) {
    if (!this.isRecording) return;
    this.pieces.push(samples);
    this.meter.add(samples);
    const seconds = (this.pieces.length * samples.length) / RATE;
    at("clip-length").textContent = `${seconds.toFixed(1)} s of ${this.#span}`;
    if (seconds >= this.limits.seconds[1]) this.closeSound();
  }

  /** Ends the recording; the microphone is being closed. */
  stop() {
    if (!this.isRecording) return;
    this.isRecording = false;
    at("record-voice").textContent = "Record again";
    at("clip-level").hidden = true;
    this.#keep(flat(this.pieces, Float32Array));
  }

  /** The name, in files, of the voice of this id, as long as it is this page's own; "" for all others. */
  nameOf(id) {
    return this.made && this.made.id === id ? this.made.name : "";
  }

  /** Whether the server refused a call because it has forgotten the voice, which is then no longer offered. */
  hasExpired(id, { field }) {
    if (field !== "voice_prompt" || !this.nameOf(id)) return false;
    this.#withdraw();
    this.#say("The server has forgotten your voice. Use the clip again.");
    return true;
  }

  get #span() {
    return this.limits.seconds.join(" to ");
  }

  async #record() {
    this.#drop();
    if (!(await this.openSound())) return;
    Object.assign(this, { isRecording: true, pieces: [] });
    at("record-voice").textContent = "Stop recording";
    at("clip-length").textContent = "";
    at("clip-level").hidden = false;
    this.meter.reset("Speak.");
  }

  async #take(file) {
    at("clip-file").value = ""; // so that the same file can be taken again
    if (!file) return;
    this.closeSound();
    this.#drop();
    if (file.size > MOST_FILE) return this.#complain(`The file is too large. Give a clip of ${this.#span} s.`);
    try {
      const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
      this.#keep(mono(sound));
    } catch {
      this.#complain("The browser cannot read this file. Give a WAV, FLAC, Ogg or MP3 file.");
    }
  }

  /** Keeps a clip to be heard and used, unless it is plain that it is none. */
  #keep(samples) {
    const seconds = samples.length / RATE;
    const [low, high] = this.limits.seconds;
    if (seconds < low) return this.#complain(`Too short: ${seconds.toFixed(1)} s. Give ${this.#span} s.`);
    if (seconds > high + PADDING) return this.#complain(`Too long: ${seconds.toFixed(1)} s. Give ${this.#span} s.`);
    if (samples.every((value) => Math.abs(value) < SILENT))
      return this.#complain("The clip is silent. Is the microphone switched off?");
    this.clip = samples.subarray(0, high * RATE);
    at("clip").hidden = false;
    this.#say(`A clip of ${seconds.toFixed(1)} s. Listen to it, then use it.`);
  }

  #drop() {
    this.#stopPlaying();
    this.clip = null;
    at("clip").hidden = true;
    at("consent").checked = false; // The next clip may be another person's.
    this.#say("");
  }

  async #play() {
    const context = new AudioContext();
    const buffer = new AudioBuffer({ length: this.clip.length, sampleRate: RATE, numberOfChannels: 1 });
    buffer.copyToChannel(this.clip, 0);
    this.player = context;
    at("play-clip").textContent = "Stop";
    if (canChooseSpeaker()) await context.setSinkId(at("speaker").value).catch(() => {}); // else the default one
    const source = new AudioBufferSourceNode(context, { buffer });
    source.onended = () => this.player === context && this.#stopPlaying();
    source.connect(context.destination);
    if (context.state !== "closed") source.start();
  }

  #stopPlaying() {
    this.player?.close();
    this.player = null;
    at("play-clip").textContent = "Listen";
  }

  async #use() {
    if (this.isBusy) return;
    if (!at("consent").checked) {
      this.#complain("Nobody is imitated without consent. Tick the box if you may.");
      return at("consent").focus();
    }
    this.isBusy = true;
    this.#say("The server checks the clip. This may take a while.");
    try {
      const made = await this.#ask("POST", "api/voices?consent=yes", wav([toInt16(this.clip)]));
      if (this.made) this.#ask("DELETE", `api/voices/${this.made.id}`).catch(() => {});
      this.#withdraw();
      this.#offerVoice(made);
    } catch (error) {
      this.#complain(ofClip(error));
    } finally {
      this.isBusy = false;
    }
  }

  #offerVoice(made) {
    this.made = made;
    at("voice").append(option(made.id, `My own voice (${made.seconds.toFixed(1)} s)`));
    at("voice").value = made.id;
    at("own-made").hidden = false;
    const kept = Math.round(made.kept_seconds / 60);
    const notes = made.notes.map((note) => ` Note: ${note}.`).join("");
    this.#say(`Ready: the agent speaks with this voice. It is forgotten ${kept} minutes after its last use.${notes}`);
  }

  async #forget() {
    const { id } = this.made;
    this.#withdraw();
    at("record-voice").focus();
    try {
      await this.#ask("DELETE", `api/voices/${id}`);
      this.#say("The server has forgotten the voice.");
    } catch (error) {
      this.#say(error.status === 404 ? "The server had forgotten the voice before." : ofClip(error));
    }
  }

  #withdraw() {
    if (!this.made) return;
    const chosen = at("voice").value;
    at("voice").querySelector(`[value="${this.made.id}"]`)?.remove();
    if (chosen === this.made.id) at("voice").selectedIndex = 0;
    this.made = null;
    at("own-made").hidden = true;
  }

  #save() {
    const bytes = Uint8Array.from(atob(this.made.file), (letter) => letter.charCodeAt(0));
    download(`${this.made.name}.safetensors`, new Blob([bytes]));
  }

  /** Raises: an answer's {status, error, ...}, or TypeError without one. */
  async #ask(method, path, body) {
    const headers = { ...authorization(this.token()), ...(body && { "Content-Type": "audio/wav" }) };
    const answer = await fetch(path, { method, headers, body });
    const content = await answer.json();
    if (!answer.ok) throw { status: answer.status, ...content };
    return content;
  }

  #say(words) {
    at("own-words").textContent = words;
    at("own-why").textContent = "";
  }

  #complain(words) {
    at("own-words").textContent = "";
    at("own-why").textContent = words;
  }
}

function mono(sound) {
  const samples = sound.getChannelData(0).slice();
  for (let n = 1; n < sound.numberOfChannels; n++)
    sound.getChannelData(n).forEach((value, k) => (samples[k] += value));
  return samples.map((value) => value / sound.numberOfChannels);
}
