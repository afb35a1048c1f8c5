"""Serves Chatterbox or Dia over HTTP from the engine's own environment.

python scripts/tts_server.py chatterbox

Needs nothing of this project but two files: see data_pipelines/speech/tts/server.py for options and protocol.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines.speech.tts.server import main

if __name__ == "__main__":
    main()
