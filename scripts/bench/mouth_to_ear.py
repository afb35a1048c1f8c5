"""Delays from the user's mouth to the user's ear, through a real server, a real browser and a network with faults.

    python scripts/bench/mouth_to_ear.py --loss 0 1 3 --rtt 20 50 100 150 --seconds 60
    python scripts/bench/mouth_to_ear.py --here

A headless Chromium holds calls on the page with a microphone that hears a file; both microphone and speaker are
recorded in the page's AudioContext, by one clock (ear_marks.py says what is measured). Server and browser are in
network namespaces of their own, between which packets are delayed, and lost each with the same chance in both
directions (lossy_link.py). In the place of the model is a stand-in that answers at once (ear_server.py).
With --here everything runs on this machine's loopback, without delay or loss and without root.
"""

# Shapes: S samples, N rows (utterances)

import argparse
import asyncio
import base64
import contextlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import wave
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import table, write_json
from ear_marks import Wave, read_delays, user_speech
from lossy_link import ADDRESSES, Link, LossyLine

from model.errors import UserError

HERE = Path(__file__).parent
PORT = 8998
FILE_RATE, FILE_SECONDS = 48000, 120.0
"""Of what the microphone hears, again and again."""
SETTLE_SECONDS = 2.0
"""Of a call, before it is recorded."""

PATIENCE_SECONDS = 300
"""For the page to come up, on a busy machine too."""


def main() -> None:
    args = arguments()
    try:
        with contextlib.nullcontext() if args.here else Link() as link:
            rows = asyncio.run(measure(args, link))
    except UserError as why:
        sys.exit(f"mouth_to_ear.py: {why}")
    except asyncio.CancelledError:
        sys.exit("mouth_to_ear.py: interrupted")
    print(table(rows))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    write_json(args.json, {"machine": platform.platform(), "settings": settings, "rows": rows})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", type=float, nargs="+", default=[0, 1, 3], help="packets lost each way, in percent")
    parser.add_argument("--rtt", type=float, nargs="+", default=[20, 50, 100, 150], help="round trips in ms")
    parser.add_argument("--here", action="store_true", help="loopback alone: no delay, no loss, no root")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each call is recorded")
    parser.add_argument("--codec", choices=["opus", "pcm16"], default="opus")
    parser.add_argument("--seed", type=int, default=0, help="of the losses and of the user's pauses")
    parser.add_argument("--json", type=Path, help="writes the figures there")
    args = parser.parse_args()
    if args.here and (args.loss, args.rtt) != (parser.get_default("loss"), parser.get_default("rtt")):
        parser.error("--here has no network: leave out --loss and --rtt")
    if not all(0 <= loss < 100 for loss in args.loss) or min(args.rtt) < 0 or args.seconds < 4:
        parser.error("give --loss 0 to 99, --rtt 0 or more, and --seconds 4 or more")
    return args


async def measure(args: argparse.Namespace, link: Link | None) -> list[dict[str, Any]]:
    """One row for each loss and round trip."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # Browser, server and namespaces are removed first.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    cells = [(loss, rtt) for loss in args.loss for rtt in args.rtt] if link else [(0.0, 0.0)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_wav(folder / "user.wav", user_speech(FILE_SECONDS, FILE_RATE, args.seed))
        with server(link) as address:
            async with chromium(folder, address, link) as browser:
                rows = []
                for n, (loss, rtt) in enumerate(cells):
                    lines = link.set(rtt / 1000, loss / 100, args.seed + n) if link else ()
                    print(f"loss {loss:g} %, round trip {rtt:g} ms, {args.seconds:g} s", file=sys.stderr, flush=True)
                    rows.append({"loss %": loss, "rtt ms": rtt, **row_of(await call(browser, address, args), lines)})
                return rows


@contextlib.contextmanager
def server(link: Link | None) -> Iterator[str]:
    """The server as a process of its own, in its namespace; yields its address."""
    host = ADDRESSES[1] if link else "127.0.0.1"
    inside = ["ip", "netns", "exec", link.spaces[1]] if link else []
    command = [*inside, sys.executable, str(HERE / "ear_server.py"), host, str(PORT if link else 0)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                log.seek(0)
                raise UserError(f"the server does not start: {log.read()[-500:]}", code="program-failed")
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextlib.asynccontextmanager
async def chromium(folder: Path, address: str, link: Link | None) -> AsyncIterator[Any]:
    """A browser in its namespace, whose microphone hears the file and is allowed to the server's page."""
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        raise UserError("playwright is not installed: pip install playwright", code="missing-package") from None
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise UserError("no Chromium: apt-get install chromium", code="missing-engine")
    if link:
        starter = folder / "chromium"
        starter.write_text(f'#!/bin/sh\nexec ip netns exec {link.spaces[0]} {program} "$@"\n')
        starter.chmod(0o755)
        program = str(starter)
    words = ["--no-sandbox", "--no-proxy-server", "--autoplay-policy=no-user-gesture-required"]
    words += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={folder / 'user.wav'}"]
    words += [f"--unsafely-treat-insecure-origin-as-secure={address}"]
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=program, args=words)
        try:
            yield browser
        finally:
            await browser.close()


async def call(browser: Any, address: str, args: argparse.Namespace) -> dict[str, Any]:
    """Holds one call on the page; what was recorded, and the server's counts at its end."""
    # The page's own policy forbids the script that records.
    context = await browser.new_context(permissions=["microphone"], bypass_csp=True, reduced_motion="reduce")
    try:
        context.set_default_timeout(1000 * PATIENCE_SECONDS)
        await context.add_init_script(path=HERE / "ear_tap.js")
        page = await context.new_page()
        await page.goto(address)
        await page.locator("#start").wait_for()
        await page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        for processor in ("echo", "noise"):  # They would change the marker.
            await page.uncheck(f"#{processor}")
        await page.select_option("#codec", args.codec)
        await page.click("#start")
        await page.locator("#mute").wait_for()
        await asyncio.sleep(SETTLE_SECONDS)
        await page.evaluate("ear.start()")
        await asyncio.sleep(args.seconds)
        recorded = await page.evaluate("ear.stop()")
        phase = await page.locator("#phase").inner_text()
        if not await page.locator("#mute").is_visible():
            raise UserError(f"the call has ended: {phase}", code="program-failed")
        recorded["dropped"] = await page.locator("[data-name='Frames dropped']").text_content()
        return recorded
    finally:
        await context.close()


def row_of(recorded: dict[str, Any], lines: Sequence[LossyLine]) -> dict[str, Any]:
    """The figures of one call: delays as median and 95th percentile in ms, and what the playback reports."""
    sides = [np.frombuffer(base64.b64decode(side), "<i2") / 32767 for side in recorded["sides"]]
    delays = read_delays(sides[0], sides[1], round(recorded["rate"]))
    first, last = recorded["reports"][0], recorded["reports"][-1]
    minutes = (last["time"] - first["time"]) / 60
    queued = [report["queued"] for report in recorded["reports"]]
    stalled = 60 * minutes - (last["played"] - first["played"])
    return {
        "mouth to ear": quantiles(delays.mouth_to_ear),
        "reply": quantiles(delays.reply),
        "stop": quantiles(delays.stop),
        "trials": len(delays.reply),
        "gaps/min": round((last["gaps"] - first["gaps"]) / minutes, 1),
        "stalled s/min": round(stalled / minutes, 2),
        "cut s/min": round((last["cut"] - first["cut"]) / minutes, 2),
        "buffer ms": quantiles(np.array(queued)),
        "margin ms": round(1000 * last["margin"]),
        "frames dropped": recorded["dropped"],
        "speaker ms": round(1000 * recorded["output"]),
        "packets lost": f"{sum(line.lost for line in lines)} of {sum(line.taken for line in lines)}",
    }


def quantiles(seconds_N: Wave) -> str:
    """Median and 95th percentile, in ms, and how many were missed, if some were."""
    came = seconds_N[~np.isnan(seconds_N)]
    if not len(came):
        return "none"
    p50, p95 = 1000 * np.quantile(came, [0.5, 0.95])
    missed = len(seconds_N) - len(came)
    return f"{p50:.0f}, {p95:.0f}" + (f" ({missed} missed)" if missed else "")


def write_wav(path: Path, wav_S: Wave) -> None:
    """16 bits, mono."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, FILE_RATE, 0, "NONE", ""))
        file.writeframes((32767 * wav_S).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
