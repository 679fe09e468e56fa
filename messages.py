"""What REST takes and gives, as JSON; the results themselves are those of chains/schema.py."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, WithJsonSchema, model_validator

from chains.config import MAX_CHARACTERS
from chains.schema import Detection, Recognition
from chains.store import Job

__all__ = [
    "EXAMPLE", "MAX_SHOTS", "Entities", "Health", "JobStatus", "Languages", "ModelStatus", "Name", "Recognitions",
    "Texts",
]  # fmt: skip

MAX_TEXTS = 128  # a request
MAX_ALL_CHARACTERS = 200_000  # the texts of a request together
MAX_SHOTS = 6
TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 600.0
EXAMPLE = "Camille Roussel a quitté Lyon pour ouvrir le bureau d'Airbus à Hambourg."


# How a text or several are described; what is wrong with them is said in words by ``Texts``.
ONE: dict[str, Any] = {"type": "string", "maxLength": MAX_CHARACTERS}
TEXT_OR_TEXTS = {"anyOf": [ONE, {"type": "array", "items": ONE, "minItems": 1, "maxItems": MAX_TEXTS}]}


def _number(value: object) -> object:
    """``value``, unless pydantic would read it as a number and JSON does not."""
    if isinstance(value, str | bool):
        raise ValueError("expected a number")
    return value


Shots = Annotated[int | None, BeforeValidator(_number)]


class Texts(BaseModel, extra="forbid"):
    """One text or several."""

    text: Annotated[str | list[str], WithJsonSchema(TEXT_OR_TEXTS)] = Field(
        description=f"A text, or up to {MAX_TEXTS} of them, of at most {MAX_CHARACTERS:,} characters each and "
        f"{MAX_ALL_CHARACTERS:,} together.",
        examples=[EXAMPLE, [EXAMPLE, "¿Dónde está la estación?"]],
    )
    shots: Shots = Field(None, ge=0, le=MAX_SHOTS, description="Solved examples before each text.", examples=[None])
    explain: StrictBool = Field(False, description="Whether prompts and raw replies come with the results.")
    timeout_s: float = Field(
        TIMEOUT_S, strict=True, gt=0, le=MAX_TIMEOUT_S, description="After so many seconds, rather no answer."
    )

    @property
    def all(self) -> list[str]:
        """The texts as a list."""
        return [self.text] if isinstance(self.text, str) else self.text

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= len(self.all) <= MAX_TEXTS:
            raise ValueError(f"{len(self.all):,} texts were sent: expected 1 to {MAX_TEXTS}; POST /jobs takes files")
        for number, text in enumerate(self.all, 1):
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise ValueError(f"text {number} holds half a character (a lone surrogate): expected Unicode text")
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"text {number} has {len(text):,} characters: expected at most {MAX_CHARACTERS:,}")
        if (total := sum(map(len, self.all))) > MAX_ALL_CHARACTERS:
            raise ValueError(f"the texts have {total:,} characters: expected at most {MAX_ALL_CHARACTERS:,} together")
        return self


class Languages(BaseModel):
    """The language of each text, in the order of the request; ``counts`` says how many have which."""

    model: str = Field(examples=["embedded · 0123abcd"])
    counts: dict[str, int] = Field(examples=[{"french": 1}])
    results: list[Detection]


class Entities(Recognition):
    """The entities of one text; ``occurrences`` counts them by type."""

    occurrences: dict[str, int] = Field(examples=[{"person": 1, "location": 2, "organization": 1}])


class Name(BaseModel):
    """A name as some of the texts have it, and how often."""

    text: str
    type: str
    count: int


class Recognitions(BaseModel):
    """The entities of each text, in the order of the request; ``counts`` by type and ``names`` are of all texts."""

    model: str = Field(examples=["embedded · 0123abcd"])
    counts: dict[str, int] = Field(examples=[{"person": 1, "location": 2, "organization": 1}])
    names: list[Name]
    results: list[Entities]


class JobStatus(BaseModel):
    """How far a job is; ``seconds_left`` is not known before its first rows are done."""

    id: str
    name: str
    state: str = Field(examples=["waiting", "running", "done", "stopped", "failed"])
    error: str
    model: str
    text_column: str
    created: str
    total: int
    done: int
    failed: int
    rows_per_second: float
    seconds_left: float | None

    @classmethod
    def of(cls, job: Job) -> Self:
        """What the outside sees of a job."""
        return cls.model_validate(job, from_attributes=True)


class ModelStatus(BaseModel):
    """A model of the table, or the one that answers here (``is_served``)."""

    name: str
    licence: str
    parameters: int
    memory_bytes: int
    shots: int
    is_served: bool


class Health(BaseModel):
    """The model that answers."""

    status: Literal["ready"] = "ready"
    model: str
