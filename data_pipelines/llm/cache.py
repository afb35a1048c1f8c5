"""Answers of a language model on disk, one readable JSON file for each request.

Every chat completion is kept as it came, whether its text is valid or not, so that a run which was stopped, or is done
again, sends no request twice and gives the same results.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines.files import digest, write_json
from data_pipelines.llm.answers import Answer
from data_pipelines.records.typed import record_of

FORMAT = 1


class AnswerCache:
    """FOLDER/ab/abcd....json, named by the hash of everything an answer depends on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(request: dict[str, Any]) -> str:
        """Hash of a request: model, messages, schema, sampling settings, seed."""
        return digest(json.dumps(request, sort_keys=True, ensure_ascii=False))

    def path(self, key: str) -> Path:
        """The file of an answer, which need not exist."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Answer | None:
        """The stored answer; None if it is not there, or its file is damaged."""
        try:
            stored = json.loads(self.path(key).read_text("utf-8"))
            return record_of(Answer, stored["answer"]) if stored["format"] == FORMAT else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, key: str, request: dict[str, Any], answer: Answer) -> None:
        """Keeps an answer; the file appears whole or not at all."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "request": request, "answer": asdict(answer)})
