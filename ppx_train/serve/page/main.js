// The page: asks the server what it offers, opens microphone and speaker, holds a call, and keeps what came of it.

import { Call } from "./call.js";
import { hasOpus } from "./codec.js";
import { CallView } from "./call_view.js";
import { EchoWatch } from "./echo.js";
import { INSECURE, ofEnd, ofMicrophone, ofPhase, ofRefusal } from "./reasons.js";
import { OwnVoice } from "./own_voice.js";
import { Recording, download, json } from "./record.js";
import { LevelTest, askServer, at, callQuery, fillDevices, fillForm, microphoneWanted } from "./setup.js";
import { Sound, isSecure, level } from "./sound.js";

const TOKEN = "ppx-token"; // in sessionStorage, which ends with the tab
const SPEECH = 0.02; // the level from which the user speaks
const SPOKEN = 5; // pieces of 20 ms in a row

const view = new CallView();
const levelTest = new LevelTest();
const ownVoice = new OwnVoice({ openSound, closeSound, token: () => sessionStorage.getItem(TOKEN) });
let offer; // of the server
let opening; // a promise while microphone and speaker are being opened
let sound; // open while it is tested, and during a call
let call;
let recording;
let echo;
let speaking = 0;
let wakeLock;

async function begin() {
  if (!isSecure()) return showProblem(INSECURE);
  try {
    offer = await askServer(sessionStorage.getItem(TOKEN));
  } catch (error) {
    return refused(error);
  }
  fillForm(offer, await hasOpus());
  ownVoice.offer(offer.info.own_voices);
  await fillDevices();
  at("token-form").hidden = true;
  at("setup").hidden = false;
}

function refused(error) {
  if (error.status !== 401) return showProblem(error.status ? ofRefusal(error) : ofEnd({ reason: "unreachable" }));
  if (sessionStorage.getItem(TOKEN)) showProblem(ofRefusal(error));
  askForToken();
}

function askForToken() {
  sessionStorage.removeItem(TOKEN);
  at("token-form").hidden = false;
  at("token").focus();
}

function showProblem({ title, text }) {
  const [heading, words] = at("problem").children;
  heading.textContent = title;
  words.textContent = text;
  at("problem").hidden = false;
  at("problem").focus();
}

/** Opens microphone and speaker, unless they are; to be called in the handler of a click. Returns whether it went. */
function openSound() {
  opening ??= open().finally(() => (opening = null));
  return opening;
}

async function open() {
  at("problem").hidden = true;
  try {
    if (!sound) {
      sound = new Sound({ capture: onCapture, playback: onPlayback, microphoneLost, stateChanged });
      await sound.start();
    }
    if (!sound.stream) await sound.openMicrophone(microphoneWanted());
    await fillDevices();
    await sound.chooseSpeaker(at("speaker").value);
    return true;
  } catch (error) {
    closeSound();
    showProblem(ofMicrophone(error));
    return false;
  }
}

function closeSound() {
  sound?.close();
  sound = null;
  levelTest.stop();
  ownVoice.stop();
}

/** A change of device or processor: the microphone is opened anew, once. */
async function reopen() {
  if (!sound?.stream) return;
  try {
    await sound.openMicrophone(microphoneWanted());
    view.notice("microphone", null);
  } catch (error) {
    showProblem(ofMicrophone(error));
  }
}

async function startCall() {
  const query = callQuery();
  if (!(await openSound()) || (call && !call.isOver)) return;
  levelTest.stop();
  ownVoice.stop();
  recording = new Recording();
  echo = new EchoWatch();
  sound.resetPlayback();
  setMute(false);
  call = new Call({ query, token: sessionStorage.getItem(TOKEN), on: { phase, text, sound: onAgent, ended } });
  call.ownVoice = ownVoice.nameOf(query.voice_prompt);
  at("save-voice").hidden = !call.ownVoice;
  at("setup").hidden = true;
  at("call").hidden = false;
  view.start();
  call.open();
  at("hang-up").focus();
}

function phase(name, event) {
  if (name === "talking") {
    recording.started = new Date();
    view.talking();
    keepAwake();
    at("mute").focus();
  } else if (name === "limit") view.notice("limit", `The server restarts in ${Math.round(event.seconds)} seconds.`);
  else if (name === "backlog_dropped")
    view.notice(
      "slow",
      `The server cannot keep up: it has left out ${(0.08 * event.frames).toFixed(1)} s of your sound.`,
    );
  else if (!call.isReady) view.say(ofPhase(name, event));
}

function text(event) {
  recording.addText(event);
  view.caption(recording.lines);
}

function onAgent(samples) {
  recording.addAgent(samples);
  view.agentWave.add(samples);
  sound?.play(samples);
}

function onCapture({ samples, time }) {
  levelTest.add(samples);
  ownVoice.add(samples);
  if (!call || call.isOver) return;
  const loud = level(samples);
  if (echo.addCaptured(time, loud)) warnOfEcho();
  speaking = loud > SPEECH ? speaking + 1 : 0;
  if (speaking === SPOKEN) sound.cutPlayback(); // The user takes the turn: what the agent said late is not wanted.
  if (!call.send(samples)) return;
  recording.addUser(samples);
  view.userWave.add(samples);
}

function onPlayback(figures) {
  if (!call || call.isOver) return;
  echo.addPlayed(figures.time, figures.level);
  view.figures(call, figures, sound.outputSeconds, offer.info);
}

function warnOfEcho() {
  const more = at("echo").checked
    ? "Wear headphones, or turn the speaker down."
    : "Wear headphones, or cancel the echo.";
  view.notice("echo", `The microphone hears the agent. ${more}`);
}

function microphoneLost() {
  fillDevices();
  const words = "The microphone is gone. Plug it in again, or end the call and choose another.";
  if (call && !call.isOver) view.notice("microphone", words);
  else closeSound();
}

function stateChanged(state) {
  if (!call || call.isOver) return;
  const isOff = state !== "running" && state !== "closed";
  view.notice(
    "state",
    isOff ? "The browser has paused the sound, as it does for another app or a telephone call." : null,
  );
}

function ended(end) {
  closeSound();
  wakeLock?.release().catch(() => {});
  wakeLock = null;
  call.end = end;
  if (ownVoice.hasExpired(call.query.voice_prompt, end)) end = { ...end, reason: "own-voice" };
  view.ended(ofEnd({ ...end, wasHidden: document.hidden }), {
    isPlanned: end.reason === "user",
    wasReady: end.wasReady,
  });
  if (end.status === 401) askForToken();
}

function backToSetup() {
  at("call").hidden = true;
  at("problem").hidden = true;
  at("setup").hidden = false;
  at("start").focus();
}

function setMute(isMuted) {
  sound?.mute(isMuted);
  at("mute").setAttribute("aria-pressed", String(isMuted));
  at("mute").textContent = isMuted ? "Muted" : "Mute";
}

async function keepAwake() {
  try {
    wakeLock = await navigator.wakeLock?.request("screen");
  } catch {
    // A battery that is low may refuse it; the call goes on.
  }
}

/** What a call was asked for and what became of it, enough to hold it again offline. */
function callSettings() {
  const { text_prompt: role, voice_prompt: voice, seed, codec, proto, ...sampling } = call.query;
  const { cut_ms = 0, dropped = 0, left_out = 0 } = call.stats;
  const { model, version, checksum, device, precision, past_window, sessions } = offer.info;
  return {
    server: { address: location.origin, model, version, checksum, device, precision, past_window, sessions },
    role,
    voice: call.ownVoice || voice,
    own_voice: Boolean(call.ownVoice),
    seed: Number(seed),
    codec,
    sampling: Object.fromEntries(Object.entries(sampling).map(([name, value]) => [name, Number(value)])),
    microphone: { ...microphoneWanted(), deviceId: undefined },
    started: recording.started.toISOString(),
    seconds: call.received / 24000,
    ended: call.end.reason,
    cut_ms,
    frames_dropped: dropped,
    frames_left_out: left_out,
  };
}

function save(kind, ending, blob) {
  const stamp = recording.started.toISOString().slice(0, 19).replaceAll(":", "-");
  download(`call-${stamp}${kind}.${ending}`, blob);
}

at("token-form").onsubmit = (event) => {
  event.preventDefault();
  const token = at("token").value.trim();
  at("problem").hidden = true;
  if (!/^[A-Za-z0-9._~-]{8,256}$/.test(token)) return showProblem(ofRefusal({ status: 401 }));
  sessionStorage.setItem(TOKEN, token);
  if (offer) at("token-form").hidden = true;
  else begin();
};
at("setup").onsubmit = (event) => {
  event.preventDefault();
  startCall();
};
at("setup").addEventListener("invalid", ({ target }) => (target.closest("details").open = true), true);
at("test-microphone").onclick = async () => {
  if (levelTest.isOn || ownVoice.isRecording) closeSound();
  else if (await openSound()) levelTest.start();
};
at("test-speaker").onclick = async () => {
  if (await openSound()) sound.playTones();
};
for (const id of ["microphone", "echo", "noise", "gain"]) at(id).addEventListener("change", reopen);
at("speaker").onchange = () =>
  sound?.chooseSpeaker(at("speaker").value).catch((error) => showProblem(ofMicrophone(error)));
at("mute").onclick = () => setMute(at("mute").getAttribute("aria-pressed") !== "true");
at("hang-up").onclick = () => call.hangUp();
at("again").onclick = startCall;
at("change").onclick = backToSetup;
at("save-recording").onclick = () => save("", "wav", recording.wav(Math.round((call.stats.cut_ms ?? 0) * 24)));
at("save-transcript").onclick = () => save("-transcript", "json", recording.transcript());
at("save-settings").onclick = () => save("-settings", "json", json(callSettings()));
navigator.mediaDevices?.addEventListener?.("devicechange", async () => {
  await fillDevices();
  if (sound?.track?.readyState === "ended") reopen();
});
document.addEventListener("pointerdown", () => sound?.context.resume()); // after another app had the sound
document.addEventListener("visibilitychange", async () => {
  if (!call || call.isOver) return;
  if (document.hidden)
    return view.notice("hidden", "This tab was hidden. Browsers may pause such tabs: keep it in sight.");
  keepAwake();
  await sound.context.resume();
});

begin();
