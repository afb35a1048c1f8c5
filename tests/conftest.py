"""Ctrl-C is tested, but what a shell starts in the background ignores it, and so does all that this starts in turn."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
