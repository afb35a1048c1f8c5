"""Asking a language model for JSON: lost requests are retried, invalid answers asked for again, none paid twice."""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from data_pipelines.llm.answers import Answer, Question, T, Verdict, judge, shortened
from data_pipelines.llm.cache import AnswerCache
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.llm.usage import Tokens, Usage
from data_pipelines.records.typed import record_of
from data_pipelines.web import why_no_redirect
from model.errors import UserError
from model.extras import require

LONGEST_BACKOFF, LONGEST_WAIT = 60.0, 600.0
"""The longest wait in seconds before a request is sent again: our own, and what a server may ask for (Retry-After)."""
GIVE_UP_AFTER = 8
"""After this many failed requests in a row the server is taken to be gone, and the run ends. The same number of
refusals ends it before the first answer, because then the reason cannot be what a question asks."""


class NoAnswer(Exception):
    """No valid answer came. `fault` is the kind of reason; `lasting` means that asking again would not help."""

    def __init__(self, fault: str, detail: str, *, lasting: bool = True) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.lasting = lasting


class Client:
    """One endpoint with its cache and its counts. Threads may share it."""

    def __init__(self, settings: LLMSettings, cache: Path, *, sleep: Callable[[float], Any] | None = None) -> None:
        """`cache` is a folder; `sleep` replaces the waiting between requests.

        Raises: UserError if a package is missing ("missing-package"), or the key cannot be sent ("bad-value").
        """
        self.settings = settings
        self.usage = Usage(settings)
        self._cache = AnswerCache(cache)
        self._stopping = threading.Event()
        self._sleep = sleep or self._stopping.wait
        self._openai = require("openai", extra="llm")
        require("jsonschema", extra="llm")
        # The retries of the package are off: they would also repeat 408 and 409, and could not be counted.
        self._api = self._openai.OpenAI(
            base_url=settings.base_url,
            api_key=settings.key(),
            timeout=settings.timeout,
            max_retries=0,
            http_client=self._openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._lock = threading.Lock()
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._failures = self._refusals = 0
        self._has_answers = False

    def stop(self) -> None:
        """Ends all waiting: requests in flight end, and none is sent again."""
        self._stopping.set()

    def ask(self, question: Question[T], tokens: Tokens | None = None) -> T:
        """Returns the record of a valid answer to the question. `tokens` counts what all attempts took.

        After an invalid answer the question is asked again with the next seed, with that answer and its problems.
        Raises: NoAnswer if no valid answer comes; UserError if the server refuses the key ("no-access"), does not know
        the model or the URL ("not-found"), refuses all requests ("no-access") or is gone ("unreachable").
        """
        verdict: Verdict[T] = Verdict()
        last = ""
        for attempt in range(self.settings.tries):
            answer = self._answer(self._request(question, attempt, last, verdict))
            if tokens is not None:
                tokens.add(answer)
            before, last = last, answer.content or ""
            verdict = judge(answer, question, self.settings.answer_format)
            if verdict.value is not None:
                return verdict.value
            if last and last == before:
                raise NoAnswer("repeats", f"the same answer again, which is wrong: {verdict.problems[0]}")
        raise NoAnswer(verdict.fault, "; ".join(verdict.problems))

    def _request(self, question: Question[T], attempt: int, last: str, verdict: Verdict[T]) -> dict[str, Any]:
        """Everything the answer depends on, as it is hashed; `verdict` is about the `last` answer."""
        settings, system = self.settings, question.system
        if settings.answer_format != "json_schema":
            schema = json.dumps(question.schema, separators=(",", ":"))
            system += f"\n\nAnswer with one JSON object and nothing else, after this JSON schema:\n{schema}"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question.user}]
        if attempt:
            wrong = "\n".join(f"- {problem}" for problem in verdict.problems)
            # Some chat templates insist on an answer between two messages of the user. One that is of no use as a
            # starting point may be long, and is shortened.
            shown = last if verdict.fault in ("rules", "schema") else shortened(last) or "..."
            messages.append({"role": "assistant", "content": shown})
            messages.append({"role": "user", "content": f"That cannot be used:\n{wrong}\nAnswer again, in full."})
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": messages,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": question.seed + attempt,
        }
        if settings.answer_format == "json_schema":
            enforced = {"name": question.name, "schema": question.schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": enforced}
        elif settings.answer_format == "json_object":
            request["response_format"] = {"type": "json_object"}
        return request

    def _answer(self, request: dict[str, Any]) -> Answer:
        """The stored answer to a request, or a new one, which is stored."""
        key = self._cache.key(request)
        with self._lock:
            asking = self._asking[key]
        try:
            with asking:  # The same question from two threads is paid once.
                if (stored := self._cache.get(key)) is not None:
                    self._has_answers = True
                    self.usage.answered(stored, from_cache=True)
                    return stored
                answer = self._send(request)
                self._cache.put(key, request, answer)
                self.usage.answered(answer, from_cache=False)
                return answer
        finally:
            with self._lock:
                self._asking.pop(key, None)  # A thread that asks from now on finds the answer in the cache.

    def _send(self, request: dict[str, Any]) -> Answer:
        """Sends a request until it is answered; waits longer each time, or as long as the server asks."""
        for attempt in range(self.settings.retries + 1):
            if self._stopping.is_set():
                raise NoAnswer("stopped", "the run is ending", lasting=False)
            self.usage.sent()
            wait = None
            try:
                completions = self._api.chat.completions.with_raw_response
                answer = _kept(completions.create(**self._on_the_line(request)).text)
                self._failures, self._has_answers = 0, True
                return answer
            except self._openai.APITimeoutError:
                failure = ("timeout", f"no answer in {self.settings.timeout:g} s")
            except self._openai.APIStatusError as why:
                failure, wait = self._status(why)
            except (self._openai.APIConnectionError, self._openai.APIResponseValidationError) as why:
                failure = ("connection", shortened(f"{why} {why.__cause__ or ''}"))
            except (ValueError, RecursionError) as why:  # The body is not JSON, or JSON of another kind.
                failure = ("connection", f"the server's answer is no chat completion ({shortened(str(why))})")
            if attempt == self.settings.retries:
                break
            if wait is not None and wait > LONGEST_WAIT:
                failure = (failure[0], f"{failure[1]}; the server asks to wait {wait:.0f} s")
                break
            # The jitter keeps threads from coming back all at once; it changes times alone.
            own = min(LONGEST_BACKOFF, 2.0**attempt) * random.uniform(0.5, 1.0)
            self._sleep(own if wait is None else wait)
        self._count_failure(*failure)
        raise NoAnswer(failure[0], f"{failure[1]}, asked {attempt + 1} times", lasting=False)

    def _on_the_line(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request with the server's name for the limit of tokens, which changes nothing about the answer."""
        sent = dict(request)
        sent[self.settings.max_tokens_name] = sent.pop("max_tokens")
        return sent

    def _status(self, why: Any) -> tuple[tuple[str, str], float | None]:
        """What an HTTP error means, and the wait its server asks for. Raises where sending it again is no use."""
        status, said = why.status_code, shortened(self._without_key(str(why.message)))
        if 300 <= status < 400:
            target = why.response.headers.get("location")
            raise UserError(
                why_no_redirect(self.settings.base_url, status, target, "--llm-url"), code="unsafe"
            ) from why
        if status == 429 or status >= 500:
            return (f"HTTP {status}", said), retry_after(why.response.headers.get("retry-after"))
        if status in (401, 403, 404):
            what = "--llm-url and --llm-model" if status == 404 else f"the key in ${self.settings.key_env}"
            raise UserError(
                f"{self.settings.base_url} answers {status} ({said}): check {what}",
                code="not-found" if status == 404 else "no-access",
            ) from why
        self._refusals += 1
        if self._refusals >= GIVE_UP_AFTER and not self._has_answers:
            raise UserError(
                f"{self.settings.base_url} answers {status} to all of the first {GIVE_UP_AFTER} requests ({said}): "
                "change the --llm options to what it takes",
                code="no-access",
            ) from why
        raise NoAnswer(f"HTTP {status}", f"the server refuses the request: {said}") from why

    def _count_failure(self, fault: str, detail: str) -> None:
        self._failures += 1
        if self._failures >= GIVE_UP_AFTER:
            raise UserError(
                f"{self.settings.base_url} did not answer {self._failures} requests in a row ({fault}: {detail}): "
                "start the server and run this again; what was answered is kept",
                code="unreachable",
            )

    def _without_key(self, text: str) -> str:
        key = self.settings.key()
        return text.replace(key, "***") if len(key) > 4 else text


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None for a missing or unreadable header."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _kept(body: str) -> Answer:
    """What is kept of a chat completion. Raises ValueError or RecursionError if it is not one."""
    completion = json.loads(body)
    choices = completion.get("choices") if isinstance(completion, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(message := choice.get("message"), dict):
        raise ValueError(body)
    answer = {
        "content": message.get("content"),
        "refusal": message.get("refusal"),
        "finish_reason": choice.get("finish_reason"),
        "model": completion.get("model"),
        "prompt_tokens": _count(completion.get("usage"), "prompt_tokens"),
        "answer_tokens": _count(completion.get("usage"), "completion_tokens"),
    }
    return record_of(Answer, answer)


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens; None if the server states none, or something that is no count."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None
