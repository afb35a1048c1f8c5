"""The server as a process: it listens, loads the model, serves until a signal, and lets calls end."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from model.errors import UserError
from ppx_train.serve.app import make_app
from ppx_train.serve.logs import note
from ppx_train.serve.service import Service
from ppx_train.serve.settings import ServeSettings
from ppx_train.serve.tls import local_address, tls_context
from ppx_train.serve.watchdog import Watchdog

CLOSING_SECONDS = 5.0
"""What calls get to say goodbye once they are ended."""


def serve(settings: ServeSettings) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises: UserError for settings, models and places that cannot be used."""
    settings.check()
    if not asyncio.run(_serve(settings)):
        # A thread that loads weights cannot be stopped, and would be torn down in the midst of its work.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


async def _serve(settings: ServeSettings) -> bool:
    """Returns whether the model was loaded before the signal came."""
    service = Service(settings)
    stop = asyncio.Event()
    now = asyncio.Event()

    def on_signal(name: str) -> None:
        """A second signal, or Ctrl-C, ends the calls at once."""
        if stop.is_set() or name == "SIGINT":
            now.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    async with listening(service) as address:
        loading = asyncio.create_task(in_thread(service.load))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            note("stopped while the model was being loaded")
            return False
        await loading
        async with running(service):
            print(_welcome(service, address), flush=True)
            await stop.wait()
            note("draining", calls=len(service.chats))
            await drain(service, settings.limits.drain_seconds, now)
    return True


@contextlib.asynccontextmanager
async def listening(service: Service) -> AsyncIterator[str]:
    """Listens as the settings say; yields the address, such as "http://127.0.0.1:8998".

    Raises: UserError if the address is taken or not this machine's, or the TLS files cannot be used.
    """
    settings = service.settings
    context = tls_context(settings.ssl, settings.host) if settings.ssl else None
    # A body that is packed would be unpacked whatever its size, before anybody reads it.
    runner = web.AppRunner(make_app(service), access_log=None, shutdown_timeout=CLOSING_SECONDS, auto_decompress=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host.strip("[]"), settings.port, ssl_context=context)
        try:
            await site.start()
        except OSError as why:
            raise UserError(
                f"{settings.host}:{settings.port} cannot be listened on ({why.strerror}): choose another --host or "
                "--port",
                code="in-use",
            ) from why
        port = runner.addresses[0][1]
        host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
        beat = asyncio.create_task(service.clock.run())
        upkeep = asyncio.create_task(_keep_up(service))
        try:
            yield f"{'https' if context else 'http'}://{host}:{port}"
        finally:
            beat.cancel()
            upkeep.cancel()
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running(service: Service, leave: Callable[[int], object] = os._exit) -> AsyncIterator[None]:
    """Runs the engine and the watchdog. leave: what ends the process, for tests."""
    loop = asyncio.get_running_loop()
    assert service.engine is not None

    def announce(fault: str) -> None:
        with contextlib.suppress(RuntimeError):  # The loop may have ended.
            loop.call_soon_threadsafe(service.fail)

    watchdog = Watchdog(service.engine, service.clock, service.settings.watchdog_seconds, announce, leave)
    service.start()
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
        service.close()


async def drain(service: Service, seconds: float, now: asyncio.Event) -> None:
    """Takes no more calls, and ends those that there are after some seconds, or at once when `now` is set."""
    service.drain(seconds)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while service.chats and loop.time() < deadline and not now.is_set():
        await asyncio.sleep(0.05)
    service.end_all("draining")
    deadline = loop.time() + CLOSING_SECONDS
    while service.chats and loop.time() < deadline:
        await asyncio.sleep(0.02)


async def in_thread(work: Callable[[], object]) -> None:
    """Runs work in a thread that does not keep the process alive, as a model that is loaded may not."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(why: BaseException | None) -> None:
        if not done.done():
            done.set_exception(why) if why is not None else done.set_result(None)

    def run() -> None:
        why: BaseException | None = None
        try:
            work()
        except BaseException as raised:  # noqa: BLE001 - it is raised again where it is awaited
            why = raised
        with contextlib.suppress(RuntimeError):  # The loop may have ended.
            loop.call_soon_threadsafe(finish, why)

    threading.Thread(target=run, name="loading", daemon=True).start()
    await done


async def _keep_up(service: Service) -> None:
    """Takes over the times of ticks before the engine forgets them, and drops own voices whose time is over."""
    while True:
        await asyncio.sleep(1.0)
        if service.engine is not None:
            service.metrics.note_ticks(service.engine)
        if service.own_voices is not None:
            service.own_voices.sweep()


def _welcome(service: Service, address: str) -> str:
    """What the terminal says once callers are served."""
    assert service.release is not None and service.admission is not None
    settings, admission = service.settings, service.admission
    lines = [f"{service.release.name} on {service.release.device}: {admission.slots} sessions at {address}"]
    if admission.note is not None:
        lines.append(admission.note)
    if settings.cpu_offload:
        layers, total = service.release.host_layers, len(service.release.lm.temporal.layers)
        lines.append(f"--cpu-offload: the weights of {layers} of {total} layers are in the host's memory")
    if service.voices.unnamed:
        names = ", ".join(service.voices.unnamed)
        lines.append(f"not offered, as their names are no ids of letters, digits, _ and -: {names}")
    if settings.ssl and not settings.is_local:
        lines.append(f"from the local network: https://{local_address()}:{address.rpartition(':')[2]}")
    if settings.token is None and not settings.is_local:
        lines.append("--insecure: anybody who reaches this address may call")
    return "\n".join(lines)
