"""Events of `/v1/realtime`: those of OpenAI's Realtime API that a model without turns can have.

Source: the types of the Python package openai 3.57 (openai/types/realtime). What a client may set is what has an effect
here, and the values of other fields that are true here, such as `turn_detection: null`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

MOST_ROLE_CHARACTERS = 8000
"""The longest role whose tokens are counted: counting takes time."""
MOST_ID_CHARACTERS = 512
PLACE_CHARACTERS = 100
"""What an error repeats of a place that the client has named."""
NO_TURNS = (
    "a full-duplex model has no turns: it hears and speaks all the time, so that there is nothing to commit, to create "
    "or to cancel"
)
TURN_EVENTS = (
    "input_audio_buffer.commit", "input_audio_buffer.clear", "output_audio_buffer.clear", "response.create",
    "response.cancel", "conversation.item.create", "conversation.item.retrieve", "conversation.item.truncate",
    "conversation.item.delete",
)  # fmt: skip
"""Events of the API that are refused, since they need turns."""
QUERY_FIELDS = {"instructions": "text_prompt", "audio.output.voice": "voice_prompt"}
"""Fields of a session, and what they are called in the query of `/api/chat`; ours have the same name in both."""
Number = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ClientPart(BaseModel):
    """A part of a client's event: without fields that are unknown, and of the types that are asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PcmFormat(ClientPart):
    """The one format of sound."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class InputAudio(ClientPart):
    """Sound of the user, which goes to the model as it is."""

    format: PcmFormat = PcmFormat()
    noise_reduction: None = None
    transcription: None = None
    turn_detection: None = None


class OutputAudio(ClientPart):
    """Sound of the agent."""

    format: PcmFormat = PcmFormat()
    speed: Annotated[Number, Field(ge=1, le=1)] = 1.0
    voice: str = ""


class SessionAudio(ClientPart):
    """Sound in both directions."""

    input: InputAudio = InputAudio()
    output: OutputAudio = OutputAudio()


class SessionFields(ClientPart):
    """What a client may set; the last six are fields of `/api/chat`."""

    type: Literal["realtime"] = "realtime"
    audio: SessionAudio = SessionAudio()
    instructions: Annotated[str, Field(max_length=MOST_ROLE_CHARACTERS)] = ""
    output_modalities: Annotated[list[Literal["audio"]], Field(min_length=1, max_length=1)] = ["audio"]
    tools: Annotated[list[Any], Field(max_length=0)] = []
    tool_choice: Literal["auto", "none"] = "auto"
    max_output_tokens: Literal["inf"] = "inf"
    seed: Whole = -1
    text_temperature: Number = 0.0
    audio_temperature: Number = 0.0
    text_topk: Whole = 0
    audio_topk: Whole = 0
    max_steps: Whole = 0

    def query(self) -> dict[str, str]:
        """The fields that are given, as the query of `/api/chat` has them."""
        given = self.model_dump(exclude_unset=True)
        fields = {name: str(given[name]) for name in OUR_FIELDS if name in given}
        if "instructions" in given:
            fields["text_prompt"] = self.instructions
        if "voice" in given.get("audio", {}).get("output", {}):
            fields["voice_prompt"] = self.audio.output.voice
        return fields


OUR_FIELDS = ("seed", "text_temperature", "audio_temperature", "text_topk", "audio_topk", "max_steps")


class SessionUpdate(ClientPart):
    """Settings, before the first sound."""

    type: Literal["session.update"]
    event_id: str | None = None
    session: SessionFields


class AppendSound(ClientPart):
    """Sound of the user: PCM16 in base64."""

    type: Literal["input_audio_buffer.append"]
    event_id: str | None = None
    audio: str


class EventError(Exception):
    """An event that is refused; the session goes on. param: the field. event_id: the client's id of the event."""

    def __init__(self, message: str, code: str, *, param: str | None = None, event_id: str | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.param, self.event_id = message, code, param, event_id


def read_event(data: str) -> SessionUpdate | AppendSound:
    """Reads an event of a client. Raises: EventError for one that is malformed, unknown, or needs turns."""
    try:
        content = from_json(data)
    except ValueError as why:
        raise EventError("an event must be JSON", "invalid_json") from why
    if not isinstance(content, dict):
        raise EventError("an event must be a JSON object with a type", "invalid_value")
    type_, event_id = content.get("type"), content.get("event_id")
    if not isinstance(event_id, str) or len(event_id) > MOST_ID_CHARACTERS:
        event_id = None
    if type_ in TURN_EVENTS:
        raise EventError(NO_TURNS, "no_turns", param="type", event_id=event_id)
    models: dict[Any, type[SessionUpdate | AppendSound]] = {
        "session.update": SessionUpdate, "input_audio_buffer.append": AppendSound,
    }  # fmt: skip
    model = models.get(type_) if isinstance(type_, str) else None
    if model is None:
        sentence = f"this type of event is unknown here: choose from {', '.join(models)}"
        raise EventError(sentence, "invalid_value", param="type", event_id=event_id)
    try:
        return model.model_validate(content)
    except ValidationError as why:
        raise _refused(why, event_id) from why


def _refused(why: ValidationError, event_id: str | None) -> EventError:
    """What is wrong with an event, by the first of its faults."""
    fault = why.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))[:PLACE_CHARACTERS]
    if "turn_detection" in fault["loc"]:
        return EventError(f"{place}: {NO_TURNS}", "no_turns", param=place, event_id=event_id)
    if fault["type"] == "extra_forbidden":
        sentence = f"{place} can have no effect here: leave it out"
        return EventError(sentence, "unknown_parameter", param=place, event_id=event_id)
    return EventError(f"{place}: {fault['msg'][:200]}", "invalid_value", param=place, event_id=event_id)
