#!/usr/bin/env bash
# The main job, small: speech -> shards -> training -> export -> a streaming chat, on a laptop without a GPU.
# Everything lands in quickstart/. Safe to interrupt and to run again: finished steps are skipped.
#   PPX_QUICK_STEPS (default 240) training steps; PPX_SOUNDS a folder with the unpacked Debian sound packages, for
#   machines without apt-get; PPX_ENGINE kokoro (default) or espeak (fast, robotic).
set -euo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
bash scripts/setup.sh tts,align,fisher,serve
installed=$SECONDS
PATH="$(cd "${PPX_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH
here=quickstart
engine=${PPX_ENGINE:-kokoro}
workers=$(nproc)
export OMP_NUM_THREADS=1 # one thread a process: more wait for each other as soon as a core is busy
mkdir -p "$here"

step() { # step NAME FILE COMMAND...: runs the command unless FILE, its result, is there
  local name=$1 result=$2
  shift 2
  if [ -e "$result" ]; then
    echo "== $name: done before ($result)"
    return
  fi
  echo "== $name (after $((SECONDS - began)) s): $*"
  "$@"
}
again() { # again NAME COMMAND...: for commands that know themselves what is done already
  echo "== $1 (after $((SECONDS - began)) s): ${*:2}"
  "${@:2}"
}

again "speech engine" ppx-data fetch "$engine"
fetched=$SECONDS
write() { # write KIND SEED NUM SECONDS: scripts in $here/KIND-SEED.jsonl
  again "write $1 scripts" ppx-data synth "$1" --seed "$2" --num "$3" --max-seconds "$4" --heldout 0.15 \
    --out "$here/$1-$2.jsonl"
}
speak() { # speak KIND SEED ENGINE: dialogues in $here/dialogues/KIND-SEED
  again "speak $1 with $3" ppx-data speak --scripts "$here/$1-$2.jsonl" --engine "$3" --voice-seconds 3.2 \
    --workers "$workers" --out "$here/dialogues/$1-$2"
}

write service 1 24 22
write assistant 1 12 20
write service 2 40 30 # more words to learn from, in a voice that costs nothing
write assistant 2 20 30
step "tokenizer" $here/tokenizer.model ppx-data tokenizer --vocab 1000 --out $here/tokenizer.model
speak service 1 "$engine"
speak assistant 1 "$engine"
speak service 2 espeak
speak assistant 2 espeak
step "telephone calls of real speech" $here/corpus \
  ppx-data standin --calls 6 --seconds 60 --out $here/corpus ${PPX_SOUNDS:+--sounds "$PPX_SOUNDS"}
again "import the calls" ppx-data fisher --corpus $here/corpus --max-seconds 24 --voice-seconds 3.2 \
  --workers "$workers" --out $here/dialogues/fisher
again "shards" ppx-data shard --dialogues "$here"/dialogues/* --codec small \
  --workers "$workers" --out $here/shards
step "data report" $here/report.html ppx-data report $here/shards --out $here/report.html
precision=32-true
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then precision=bf16-mixed; fi # twice as fast there
again "train" ppx-train recipe=quickstart resume=true steps="${PPX_QUICK_STEPS:-240}" trainer.precision=$precision
step "export" $here/export ppx-export --checkpoint $here/run --out $here/export
step "a held-out caller" $here/caller ppx-data extract $here/shards/heldout --source service --out $here/caller
step "chat" $here/out.wav ppx-chat --model $here/export --input-wav $here/caller/user.flac \
  --voice-prompt $here/caller/voice.flac --text-prompt "$(cat $here/caller/role.txt)" --seed 1 \
  --output-wav $here/out.wav --output-text $here/out.json --timeline $here/timeline.png
echo
echo "done in $((SECONDS - began)) s, of which $((fetched - began)) s set up the environment and the speech engine"
echo "  $here/report.html     what the data looks like"
echo "  $here/run/curves.png losses of every stream, training and held out"
echo "  $here/timeline.png   the chat: both waveforms and the agent's words"
echo "  $here/out.wav        the agent's side of it"
echo "  $here/export         the model as a Hugging Face folder"
echo "to talk to it in a browser: ${PPX_VENV:-.venv}/bin/ppx-serve --model $here/export, then open http://127.0.0.1:8998"
