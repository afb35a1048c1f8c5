"""Why calls end, and what the client hears about it."""

from dataclasses import dataclass

from ppx_train.serve.protocol import Close


@dataclass(frozen=True)
class End:
    """The end of a call. reason: for logs and metrics. sentence: for the client; "" where there is nothing to say."""

    reason: str
    code: Close
    sentence: str


GONE = End("left", Close.NORMAL, "")
"""The client has closed, or is not there any more."""
ENDS = {
    end.reason: end
    for end in (
        GONE,
        End("limit", Close.NORMAL, "The longest time of a call is over."),
        End("idle", Close.NORMAL, "No sound has come for too long."),
        End("wrong-type", Close.WRONG_TYPE, "Text frames are no part of this protocol: send binary ones."),
        End("undecodable", Close.UNDECODABLE, "The sound cannot be decoded: send one continuous Ogg-Opus stream."),
        End("too-fast", Close.POLICY, "More sound than twice real time has come for too long."),
        End("slow", Close.POLICY, "The sound is not read fast enough: the connection is too slow."),
        End("backlog", Close.POLICY, "More sound waits than can be worked off."),
        End("too-large", Close.TOO_LARGE, "A message was longer than 64 KiB."),
        End("internal", Close.INTERNAL, "The server has failed. It has noted why."),
        End("draining", Close.DRAINING, "The server restarts: call again in a moment."),
        End("queue", Close.TRY_LATER, "All lines are taken: try again later."),
    )
}
"""By reason; those of the engine are among them."""
