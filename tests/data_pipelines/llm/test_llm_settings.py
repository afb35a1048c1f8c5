"""Settings of an endpoint that cannot be used are refused before anything is sent."""

from typing import Any

import pytest

from data_pipelines.llm.settings import LLMSettings
from model.errors import Code, UserError
from tests.refusals import refused


@pytest.mark.parametrize("settings, code, named", [
    ({"temperature": 3}, "bad-value", "--llm-temperature 3: must be from 0 to 2"),
    ({"concurrency": 0}, "bad-value", "--llm-concurrency 0"),
    ({"tries": 0}, "bad-value", "--llm-tries 0"),
    ({"timeout": 0}, "bad-value", "--llm-timeout 0"),
    ({"price_output": -1.0}, "bad-value", "--llm-price-output -1"),
    ({"answer_format": "xml"}, "unknown-name", "--llm-format 'xml'"),
    ({"max_tokens_name": "limit"}, "unknown-name", "--llm-max-tokens-name 'limit'"),
    ({"model": ""}, "missing-option", "--llm-model"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any], code: Code, named: str) -> None:
    with refused(code, named):
        LLMSettings(**({"model": "m"} | settings))


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://[host/v1", "http://host:99999/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with refused("bad-value", f"--llm-url {url!r}"):
        LLMSettings(model="m", base_url=url)


@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "https://host/v1?key=secret"])
def test_an_address_that_holds_a_key_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError, match=r"--llm-url .* put the key into \$OPENAI_API_KEY") as stop:
        LLMSettings(model="m", base_url=url)
    assert stop.value.code == "unsafe" and "secret" not in str(stop.value)


def test_a_missing_model_says_how_to_list_those_of_the_server() -> None:
    with refused("missing-option", "name the model as the server does (GET /v1/models lists them)"):
        LLMSettings(model="")
