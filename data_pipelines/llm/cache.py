"""Answers of a language model on disk: one readable JSON file for each request ever answered.

Answers are kept as they came, valid or not, so that a run which was stopped, or is done again, asks nobody twice
and comes to the same results.
"""

import json
from pathlib import Path
from typing import Any

from data_pipelines.files import digest, write_json

FORMAT = 1


class AnswerCache:
    """FOLDER/ab/abcd....json, named by the hash of everything an answer depends on."""

    def __init__(self, folder: Path):
        self.folder = folder

    @staticmethod
    def key(request: dict[str, Any]) -> str:
        """Hash of a request: model, messages, schema, sampling settings, seed."""
        return digest(json.dumps(request, sort_keys=True, ensure_ascii=False))

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored answer; None if there is none, or the file was damaged."""
        try:
            stored = json.loads(self.path(key).read_text("utf-8"))
            answer = stored["answer"]
            return answer if stored["format"] == FORMAT and isinstance(answer, dict) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keeps an answer; the file appears whole or not at all."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "request": request, "answer": answer})
