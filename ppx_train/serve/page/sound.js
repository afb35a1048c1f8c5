// Microphone and speaker: one AudioContext at its native rate, one worklet for each direction.

/** Whether the browser lets this page have a microphone at all: only https pages and those of this machine may. */
export const isSecure = () => isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);

export const canChooseSpeaker = () => "setSinkId" in (globalThis.AudioContext?.prototype ?? {});

const SPEAKER_MS = 15000; // without a speaker, some browsers never start the sound, and say nothing

export class Sound {
  /** Must be made in the handler of a click, before anything is awaited: else some browsers keep it silent. */
  constructor(on) {
    this.on = on; // capture({samples, time}), playback(figures), microphoneLost(), stateChanged(state)
    this.context = new AudioContext({ latencyHint: "interactive" });
    this.resumed = this.context.resume();
    this.context.onstatechange = () => this.on.stateChanged?.(this.context.state);
  }

  async start() {
    const load = (name) => this.context.audioWorklet.addModule(new URL(name, import.meta.url));
    const ready = Promise.all([load("capture.worklet.js"), load("playback.worklet.js"), this.resumed]);
    const late = new Promise((_, fail) => setTimeout(() => fail(new DOMException("late", "NoSpeaker")), SPEAKER_MS));
    await Promise.race([ready, late]);
    const mono = { channelCount: 1, channelCountMode: "explicit" };
    this.capture = new AudioWorkletNode(this.context, "capture", { ...mono, numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => this.on.capture?.(data);
    this.playback = new AudioWorkletNode(this.context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.playback.port.onmessage = ({ data }) => this.on.playback?.(data);
    this.playback.connect(this.context.destination);
  }

  /** Opens a microphone in the place of the one before. wanted: deviceId or "", and the three processors. */
  async openMicrophone({ deviceId, ...processors }) {
    this.closeMicrophone();
    const device = deviceId ? { deviceId: { exact: deviceId } } : {};
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...device, ...processors } });
    if (this.context.state === "closed") return stream.getTracks().forEach((track) => track.stop());
    this.closeMicrophone(); // Another may have been opened meanwhile.
    this.stream = stream;
    [this.track] = stream.getAudioTracks();
    this.track.enabled = !this.isMuted;
    this.track.onended = () => this.on.microphoneLost?.();
    this.source = this.context.createMediaStreamSource(stream);
    this.source.connect(this.capture);
  }

  closeMicrophone() {
    this.source?.disconnect();
    this.stream?.getTracks().forEach((track) => track.stop());
    this.source = this.stream = this.track = null;
  }

  /** A microphone that is muted gives silence, which the call needs to go on. */
  mute(isMuted) {
    this.isMuted = isMuted;
    if (this.track) this.track.enabled = !isMuted;
  }

  async chooseSpeaker(deviceId) {
    if (canChooseSpeaker()) await this.context.setSinkId(deviceId);
  }

  play(samples) {
    this.playback.port.postMessage({ samples }, [samples.buffer]);
  }

  /** Leaves out what waits to be played, but for a margin. */
  cutPlayback() {
    this.playback.port.postMessage({ type: "cut" });
  }

  resetPlayback() {
    this.playback.port.postMessage({ type: "reset" });
  }

  /** Three soft tones. */
  playTones() {
    [440, 554, 659].forEach((frequency, n) => {
      const at = this.context.currentTime + 0.05 + 0.25 * n;
      const tone = new OscillatorNode(this.context, { frequency });
      const gain = new GainNode(this.context, { gain: 0 });
      gain.gain.setTargetAtTime(0.15, at, 0.02);
      gain.gain.setTargetAtTime(0, at + 0.15, 0.03);
      tone.connect(gain).connect(this.context.destination);
      tone.start(at);
      tone.stop(at + 0.5);
    });
  }

  /** Seconds from the worklet to the ear, as far as the browser knows. */
  get outputSeconds() {
    return (this.context.baseLatency || 0) + (this.context.outputLatency || 0);
  }

  close() {
    this.closeMicrophone();
    this.context.onstatechange = null;
    if (this.context.state !== "closed") this.context.close();
  }
}

/** The devices of a kind, "audioinput" or "audiooutput": [{id, label}]; labels are empty before the permission. */
export async function listDevices(kind) {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices
    .filter((each) => each.kind === kind && each.deviceId !== "default" && each.deviceId)
    .map(({ deviceId, label }) => ({ id: deviceId, label }));
}

/** The root mean square of samples, 0 to 1. */
export function level(samples) {
  let power = 0;
  for (const value of samples) power += value * value;
  return Math.sqrt(power / samples.length);
}
