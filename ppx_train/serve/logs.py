"""Log lines as JSON objects. They hold no prompts, no words, no sound, no tokens and no addresses of people."""

import json
import logging
import sys
import time
from typing import Any

from model.text_safety import plain

logger = logging.getLogger("ppx_train.serve")


def note(event: str, **fields: Any) -> None:
    """Writes one line. fields: numbers, and texts that are the server's own."""
    logger.info(event, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, with the traceback of an error."""
        content = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": plain(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


def log_to_stderr() -> None:
    """Sends what this package and the engine log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("ppx_train", "asyncio", "aiohttp"):
        package = logging.getLogger(name)
        package.handlers = [handler]
        package.propagate = False
    logging.getLogger("ppx_train").setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # It reports each client that fails to shake hands in TLS.
