"""What the chains return: frozen values that serialise to JSON. No torch, no pandas."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["UNKNOWN", "Analysis", "Correction", "Detection", "Entity", "Gold", "Mention", "Recognition", "Reply"]

UNKNOWN = "unknown"


class Result(BaseModel):
    """Base of all results: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mention(Result):
    """One ``<text>(type)`` item of a reply, as the model wrote it."""

    text: str
    type: str


class Reply(Result):
    """What an entity reply says: its mentions in reply order, and the ``raw`` text as the model wrote it."""

    mentions: tuple[Mention, ...]
    raw: str


class Entity(Result):
    """A mention found in the text: ``source[start:end] == text``.

    ``start`` is inclusive and ``end`` exclusive, in Unicode code points.
    """

    text: str
    type: str
    start: int
    end: int


class Detection(Result):
    """The language of a text.

    ``language`` is a label's name or ``unknown``. ``probability`` is that of the answer; ``probabilities``
    holds every label and ``unknown`` and sums to 1, ``logprobs`` each label word's summed log-probability
    in nats, averaged over windows. The plain way (generate, then parse) has no probabilities: they are
    empty and ``probability`` is ``None``. ``threshold`` is the least probability that names a language.
    """

    language: str
    probability: float | None
    probabilities: dict[str, float] = {}
    logprobs: dict[str, float] = {}
    threshold: float | None = None
    way: Literal["forced", "plain", "empty"] = "forced"
    prompts: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()


class Recognition(Result):
    """The entities of a text in reading order, and the ``ungrounded`` mentions that are not in the text.

    Ungrounded mentions are never counted. One prompt and one reply per window of the text.
    """

    entities: tuple[Entity, ...] = ()
    ungrounded: tuple[Mention, ...] = ()
    prompts: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Number of occurrences per type; a type that does not occur is absent."""
        return dict(Counter(entity.type for entity in self.entities))

    def distinct(self) -> dict[tuple[str, str], int]:
        """Number of occurrences per distinct (surface text, type), most frequent first."""
        return dict(Counter((entity.text, entity.type) for entity in self.entities).most_common())


class Analysis(Result):
    """Everything that is known about one text: its language, its entities, or the ``error`` that prevented it.

    ``model`` is its version, ``tasks`` the identity of each task file that asked, by kind.
    """

    text: str
    detection: Detection | None = None
    recognition: Recognition | None = None
    error: str | None = None
    model: str = ""
    tasks: dict[str, str] = {}


class Correction(Result):
    """What a person answers in the model's place: the language, a label's name or ``unknown``, and all entities."""

    language: str
    entities: tuple[Entity, ...] = ()


class Gold(Correction):
    """A text with its right answer."""

    text: str
