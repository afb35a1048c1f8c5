// Runs before the page's own scripts: records what the page gets from the microphone and gives to the speaker, in the
// page's own AudioContext and so by one clock, and what its playback reports.

(() => {
  const MODULE = `
    class EarTap extends AudioWorkletProcessor {
      constructor() {
        super();
        this.begin();
      }
      begin() {
        this.sides = [new Int16Array(4096), new Int16Array(4096)]; // microphone, speaker
        this.count = 0;
      }
      process(inputs) {
        for (let n = 0; n < 128; n++, this.count++)
          this.sides.forEach((side, input) => (side[this.count] = Math.round(32767 * (inputs[input][0]?.[n] ?? 0))));
        if (this.count === 4096) {
          this.port.postMessage(this.sides);
          this.begin();
        }
        return true;
      }
    }
    registerProcessor("ear-tap", EarTap);
  `;
  const kept = { isOn: false, sides: [[], []], reports: [] };
  const connect = AudioNode.prototype.connect;
  const taps = new Map();

  const tapOf = (context) => {
    if (!taps.has(context)) taps.set(context, makeTap(context));
    return taps.get(context);
  };

  const makeTap = async (context) => {
    const url = URL.createObjectURL(new Blob([MODULE], { type: "text/javascript" }));
    await context.audioWorklet.addModule(url);
    const tap = new AudioWorkletNode(context, "ear-tap", { numberOfInputs: 2, numberOfOutputs: 0 });
    tap.port.onmessage = ({ data }) => {
      if (kept.isOn) kept.sides.forEach((side, n) => side.push(data[n]));
    };
    return tap;
  };

  AudioNode.prototype.connect = function (to, ...rest) {
    const input = to instanceof AudioDestinationNode ? 1 : this instanceof MediaStreamAudioSourceNode ? 0 : null;
    if (input !== null) tapOf(this.context).then((tap) => connect.call(this, tap, 0, input));
    return connect.call(this, to, ...rest);
  };

  window.AudioWorkletNode = class extends AudioWorkletNode {
    constructor(context, name, options) {
      super(context, name, options);
      if (name !== "playback") return;
      this.port.addEventListener("message", ({ data }) => kept.isOn && kept.reports.push(data));
    }
  };

  const base64 = (pieces) =>
    new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.readAsDataURL(new Blob(pieces));
    });

  window.ear = {
    start: () => (kept.isOn = true),
    /** What was recorded: both sides as PCM16 in base64, the reports, and what the browser says of its own delays. */
    stop: async () => {
      kept.isOn = false;
      const [context] = taps.keys();
      const { sampleRate: rate, baseLatency = 0, outputLatency = 0 } = context;
      const sides = await Promise.all(kept.sides.map(base64));
      return { rate, output: baseLatency + outputLatency, reports: kept.reports, sides };
    },
  };
})();
