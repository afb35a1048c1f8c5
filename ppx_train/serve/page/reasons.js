// What went wrong, in plain words: {title, text}. Nothing in here is put into the page as HTML.

const CERTIFICATE = "Open the page as https, or as http://localhost on the server's own machine";

export const INSECURE = {
  title: "The browser gives this page no microphone",
  text:
    "Browsers let only https pages, and pages of this very machine, use the microphone. This one came by plain http " +
    "from another machine. Start the server with --ssl auto and open its https address, or lead its port to this " +
    "machine with ssh -L 8998:localhost:8998 HOST and open http://localhost:8998.",
};

const MICROPHONE = {
  NotAllowedError: [
    "The microphone is blocked",
    "The browser, or the system, does not let this page use it. Click the icon beside the address, allow the " +
      "microphone, and try again.",
  ],
  NotFoundError: ["No microphone was found", "Plug one in or switch it on, then try again."],
  OverconstrainedError: ["That microphone is gone", "Choose another one under Sound, then try again."],
  NotReadableError: [
    "The microphone cannot be opened",
    "Another program may hold it. Close that program or choose another microphone, then try again.",
  ],
  NoSpeaker: ["The sound does not start", "Plug in a speaker or headphones, or switch them on, then try again."],
  SecurityError: [INSECURE.title, INSECURE.text],
};

/** For an error of getUserMedia or of the AudioContext. */
export function ofMicrophone(error) {
  const name = error.name === "AbortError" ? "NotReadableError" : error.name;
  const [title, text] = MICROPHONE[name] ?? ["The sound cannot be started", `The browser says: ${error.message}`];
  return { title, text };
}

const ENDS = {
  user: ["The call is over", "You ended it."],
  limit: ["The call is over", "It has reached the longest time that this server allows."],
  idle: ["The call is over", "No sound has come from your microphone for too long."],
  draining: ["The server restarts", "It ended the call. Call again in a moment."],
  internal: ["The server has failed", "It ended the call and has noted why. Call again in a moment."],
  queue: ["All lines are still taken", "You have waited as long as the server allows. Try again later."],
  slow: [
    "Too slow to listen",
    "This connection or computer takes the agent's sound too slowly. Close other programs and downloads, or use a " +
      "better network, then call again.",
  ],
  upload: [
    "Too slow to speak",
    "Your sound leaves this computer too slowly. Close uploads, or use a better network, then call again.",
  ],
  backlog: ["Too much sound waits", "The server cannot work it off. Call again."],
  "too-fast": ["The sound came too fast", "The server ended the call. Reload the page and call again."],
  "too-large": ["A message was too long", "The server ended the call. Reload the page and call again."],
  undecodable: ["The server cannot read the sound", "Choose PCM16 under More settings and call again."],
  codec: ["The browser's Opus codec has failed", "Choose PCM16 under More settings and call again."],
  silent: ["The server has fallen silent", "Nothing has come from it for 10 seconds. It or the network may be down."],
  broken: ["The connection broke", "The server has stopped, or the network is down. Call again in a moment."],
  unreachable: ["The server cannot be reached", "It has stopped or restarts, or the network is down. Try again."],
  "own-voice": [
    "Your own voice is no longer there",
    "The server keeps such voices for a limited time. Change the settings, and use your clip again.",
  ],
  long: ["The role is too long", "Shorten it, and call again."],
  full: ["All lines are taken", "So is the queue. Try again later."],
  "no-socket": [
    "No live connection",
    "The server would take the call, but the WebSocket to it does not open. A proxy on the way may not let it through.",
  ],
};

/** For the end of a call, as `Call` reports it. */
export function ofEnd(end) {
  if (end.reason === "refused") return ofRefusal(end);
  const [title, text] = ENDS[end.reason] ?? ["The call is over", end.sentence ?? ""];
  const hidden = end.wasHidden && end.reason !== "user" ? " This tab was hidden: browsers may stop such tabs." : "";
  return { title, text: text + hidden };
}

/** For an answer of HTTP: {status, error, field, allowed}. */
export function ofRefusal({ status, error, field, allowed }) {
  if (status === 401) return { title: "The token is wrong", text: "Enter the token that the server was started with." };
  if (status === 403)
    return { title: "The server does not take calls from this address", text: `${CERTIFICATE}, or add --origin.` };
  if (field === "voice_prompt")
    return { title: "That voice is not there", text: "Reload the page and choose another." };
  if (field)
    return { title: "The server refuses a setting", text: `${error}. Allowed: ${[allowed].flat().join(", ")}.` };
  if (status === 503) return { title: "The server takes no calls now", text: `It says: ${error}.` };
  return { title: "The server refuses the call", text: `It says: ${error ?? `status ${status}`}.` };
}

/** For a clip that becomes no voice: what the server said, {status, error, faults}, or what fetch raised. One line. */
export function ofClip({ status, error, faults }) {
  if (!status) return "The server cannot be reached. Try again.";
  if (status === 401) return ofRefusal({ status }).text;
  const said = faults ? Object.values(faults) : [error];
  return said.map((words) => `${words[0].toUpperCase()}${words.slice(1)}.`).join(" ");
}

/** Phases before the agent is ready. */
export function ofPhase(name, event) {
  if (name === "queued") return `All lines are taken. You are number ${event.position} in the queue.`;
  if (name === "loading_voice" || name === "prompting") return "The agent reads its role.";
  return "Connecting.";
}
