"""Task file → checked ``Task`` → ``FewShotPromptTemplate`` and the options of a reply; nothing here knows a model.

A task file holds all that a prompt is made of: instruction, shot and query templates, labels, shots, version. Whoever
may edit one is not trusted: it is read with limits, and nothing in it is run.
"""

import hashlib
import re
import unicodedata
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chains.errors import TaskError
from chains.schema import UNKNOWN

__all__ = [
    "KINDS", "MAX_SHOTS", "MENTION", "TASKS_FOLDER", "Kind", "Shot", "Task", "Tasks",
    "items_of", "labels_of", "load_task", "make_task", "prompt_template", "read_task", "read_yaml", "to_prompt_text",
    "write_reply", "write_task",
]  # fmt: skip

TASKS_FOLDER = Path(__file__).parent / "tasks"
Kind = Literal["language", "entities"]
KINDS: tuple[Kind, ...] = ("language", "entities")
MAX_SHOTS = 6
MAX_LABELS = 100
MAX_TEXT_CHARACTERS = 4_000  # of any one text in a task file
MAX_NAME_CHARACTERS = 40
MAX_FILE_BYTES = 65_536
# One item of an entity reply; structure characters never occur inside a text (see to_prompt_text).
MENTION = re.compile(r"<([^<>\n]*)>\(([^()<>\n]*)\)")
# Look-alikes of one code point each, so that offsets in the prompt's text are offsets in the user's text.
LOOK_ALIKES = {ord("<"): "‹", ord(">"): "›"}


class Strict(BaseModel):
    """A frozen part of a task file; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_min_length=1, str_max_length=MAX_TEXT_CHARACTERS)

    @field_validator("*")
    @classmethod
    def _check_characters(cls, value: Any) -> Any:
        texts = [*value, *value.values()] if isinstance(value, dict) else [value]
        for text in texts:
            if isinstance(text, str) and any(_is_control(char) for char in text):
                raise ValueError(f"{text!r} holds a control character or half a character, expected plain text")
        return value


class Shot(Strict):
    """A few-shot example: a text and the reply that it should get."""

    text: str
    reply: str


class Task(Strict):
    """A checked task file.

    ``labels`` maps each name in results to the word that the model reads and writes. ``kind`` says how a reply
    is read: ``language`` is one label word, be the labels languages or not, ``entities`` a list of ``<text>(word)``
    items or the word ``empty``.
    """

    name: str = Field(max_length=MAX_NAME_CHARACTERS)
    kind: Kind
    version: int = Field(ge=1)
    instruction: str
    shot: str
    query: str
    labels: dict[str, str] = Field(min_length=1, max_length=MAX_LABELS)
    out_of_scope: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    empty: str | None = None
    shots: tuple[Shot, ...] = Field(max_length=MAX_SHOTS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, template, fields in (("shot", self.shot, ["{text}", "{reply}"]), ("query", self.query, ["{text}"])):
            if re.findall(r"{[^{}]*}", template) != fields:
                raise ValueError(f"{key}: {template!r} must hold {' then '.join(fields)} once, and no other braces")
        if not self.shot.startswith(self.query) or self.query.endswith(" "):
            raise ValueError(
                "query: must be the beginning of 'shot', up to where the reply starts, without a last space"
            )
        if self.query.endswith("{text}"):
            raise ValueError(
                f"query: something must follow '{{text}}' in {self.query!r}, as in 'Text: {{text}}\\nLabel:'"
            )
        self._check_words()
        words = [*self.labels.values(), *filter(None, [self.out_of_scope, self.empty])]
        if repeated := {word for word in words if words.count(word) > 1}:
            raise ValueError(f"labels: every word may stand for one label only, found {sorted(repeated)} twice")
        begun = [(a, b) for a in words for b in words if a != b and b.startswith(a)]
        if self.kind == "language" and begun:
            raise ValueError(f"labels: no word may be the beginning of another, as {begun[0][0]!r} of {begun[0][1]!r}")
        if self.kind == "language" and self.threshold is None:
            raise ValueError("threshold: a task of kind 'language' needs one, from 0 to 1")
        if self.kind == "entities" and self.empty is None:
            raise ValueError("empty: a task of kind 'entities' needs the word that means 'nothing found'")
        seen: set[str] = set()
        for number, shot in enumerate(self.shots, 1):
            if shot.text in seen:
                raise ValueError(f"shots.{number - 1}.text: shot {number} repeats the text {shot.text!r}")
            seen.add(shot.text)
            self._check_reply(number, shot)
        shown = {word for word in self.labels.values() if any(word in shot.reply for shot in self.shots)}
        # Of more labels than a file may have shots, some go without.
        if self.shots and len(self.labels) <= MAX_SHOTS and (missing := set(self.labels.values()) - shown):
            raise ValueError(f"shots: no shot shows the label {sorted(missing)}")
        return self

    def _check_words(self) -> None:
        for key, name in (("name", self.name), *(("labels", label) for label in self.labels)):
            if len(name) > MAX_NAME_CHARACTERS or name != name.strip() or not name.isprintable():
                raise ValueError(
                    f"{key}: {name!r} cannot be a name in results: expected one line of up to {MAX_NAME_CHARACTERS} "
                    "characters, without outer spaces"
                )
        if UNKNOWN in self.labels:
            raise ValueError(f"labels: {UNKNOWN!r} is what results say when no label fits, choose another name")
        others = (("out_of_scope", self.out_of_scope), ("empty", self.empty))
        for key, word in (*(("labels", word) for word in self.labels.values()), *others):
            if word and (word != word.strip() or not word.isprintable() or re.search(r"[<>()]", word)):
                raise ValueError(
                    f"{key}: {word!r} cannot be a word in a reply: expected one line without <, >, (, ) or outer spaces"
                )

    def _check_reply(self, number: int, shot: Shot) -> None:
        words, key = set(self.labels.values()), f"shots.{number - 1}.reply"
        if self.kind == "language":
            words |= {self.out_of_scope} if self.out_of_scope else set()
            if shot.reply not in words:
                raise ValueError(f"{key}: shot {number} has the label {shot.reply!r}, expected one of {sorted(words)}")
            return
        mentions = MENTION.findall(shot.reply)
        if shot.reply != self.empty and " ".join(f"<{text}>({word})" for text, word in mentions) != shot.reply:
            raise ValueError(
                f"{key}: shot {number}: cannot read {shot.reply!r}, expected '<text>(type) …' or {self.empty!r}"
            )
        for text, word in mentions:
            if word not in words:
                raise ValueError(f"{key}: shot {number} has the type {word!r}, expected one of {sorted(words)}")
            if text not in to_prompt_text(shot.text):
                raise ValueError(f"{key}: shot {number} names {text!r}, which is not in its text")

    @property
    def fingerprint(self) -> str:
        """8 hexadecimal digits for all of the task but its version."""
        return hashlib.sha256(self.model_dump_json(exclude={"version"}).encode()).hexdigest()[:8]

    @property
    def identity(self) -> str:
        """What names the task beside a result: name, version and fingerprint, as in ``language 2 · 0123abcd``."""
        return f"{self.name} {self.version} · {self.fingerprint}"

    def pick_shots(self, k: int) -> tuple[Shot, ...]:
        """The first ``k`` shots; the file orders them so that every prefix is balanced over the labels."""
        if not 0 <= k <= len(self.shots):
            raise TaskError(f"{k} shots were asked for: task '{self.name}' has 0 to {len(self.shots)} of them.")
        return self.shots[:k]

    @property
    def reply_separator(self) -> str:
        """What stands between the query and the reply: a space that starts the reply, or nothing."""
        return self.shot[len(self.query) :].split("{reply}")[0]

    @property
    def reply_end(self) -> str:
        """What ends a reply in the prompt's layout."""
        return self.shot.split("{reply}")[1] or "\n"

    def name_of(self, word: str) -> str | None:
        """The label's name for a word that the model wrote, or ``None``."""
        return next((name for name, label in self.labels.items() if label == word), None)


class Tasks(Strict):
    """The two tasks that answer together; by default the shipped ones."""

    language: Task = Field(default_factory=lambda: load_task("language"))
    entities: Task = Field(default_factory=lambda: load_task("entities"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind in KINDS:
            if (task := getattr(self, kind)).kind != kind:
                raise ValueError(f"{kind}: '{task.name}' is a task of kind {task.kind!r}")
        return self

    @property
    def identities(self) -> dict[str, str]:
        """The ``Task.identity`` of each by its kind."""
        return {kind: getattr(self, kind).identity for kind in KINDS}

    @property
    def max_shots(self) -> int:
        """The largest number of shots that both have."""
        return min(len(self.language.shots), len(self.entities.shots))


def load_task(path: str | Path) -> Task:
    """The checked task of a file, or of a shipped task by its name (``language``, ``entities``).

    Raises:
        TaskError: the file cannot be read or breaks a rule; the message names the file and the key.
    """
    # A file may be edited while the program runs, a shipped one not.
    return _load_shipped(path) if isinstance(path, str) and path.isidentifier() else _load(Path(path))


@cache
def _load_shipped(name: str) -> Task:
    return _load(TASKS_FOLDER / f"{name}.yaml")


def _load(file: Path) -> Task:
    try:
        with file.open("rb") as content:
            text = content.read(MAX_FILE_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"Cannot read the task file '{file}': {error}. Give the path of a UTF-8 YAML file.") from error
    return read_task(text, f"The task file '{file}'")


def read_task(content: str, source: str = "The task file") -> Task:
    """The checked task of a file's ``content``; ``source`` is what an error calls it.

    Raises:
        TaskError: it is too large, not YAML, or breaks a rule.
    """
    return make_task(read_yaml(content, source), source)


def read_yaml(content: str, source: str) -> Any:
    """The plain values of a YAML document: no tags, no aliases, which can make gigabytes of a kilobyte, no key twice.

    Raises:
        TaskError: it is not that, or too large.
    """
    if len(content.encode(errors="replace")) > MAX_FILE_BYTES:
        raise TaskError(f"{source} is larger than {MAX_FILE_BYTES // 1024} KB. Keep to {MAX_SHOTS} shots of few lines.")
    try:
        loader = PlainLoader(content)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that the calendar lacks
        reason = " ".join(str(error).split()) or "it is nested too deep"
        raise TaskError(f"{source} is not YAML: {reason}. Compare chains/tasks/language.yaml.") from error


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases ('*name') are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := {str(key) for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"the key {min(repeated)!r} stands there twice")
        return super().construct_mapping(node, deep)


def make_task(values: Any, source: str = "The task") -> Task:
    """The checked task of plain ``values``.

    Raises:
        TaskError: a rule is broken; ``problems`` says which, by key.
    """
    try:
        return Task.model_validate(values)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for problem in error.errors():
            key, message = _explain(problem["loc"], problem["msg"])
            problems.setdefault(key, message)
        words = " ".join(f"{key}: {message}." if key else f"{message}." for key, message in problems.items())
        raise TaskError(f"{source} breaks its rules. {words}", problems) from error


def _explain(place: tuple[int | str, ...], message: str) -> tuple[str, str]:
    """The key of a broken rule, as in ``shots.0.reply``, and what is wrong there. Our own rules name it themselves."""
    message = message.removeprefix("Value error, ")
    if place:
        return ".".join(map(str, place)), message
    key, colon, rest = message.partition(": ")
    return (key, rest) if colon else ("", message)


def write_task(task: Task) -> str:
    """The content of a file from which ``read_task`` makes this task again."""
    values = task.model_dump(mode="json", exclude_none=True)
    return str(yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=10_000))


def _is_control(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in {"Cc", "Cs"}


def to_prompt_text(text: str) -> str:
    """The text as a prompt may hold it: one line, no ``<`` or ``>``, code point by code point.

    Line breaks and control characters become spaces and angle brackets become look-alikes, so no text can end its
    line, close its bracket or pose as a shot. The length is unchanged: offsets into one are offsets into the other.
    """
    if text.isprintable():
        return text.translate(LOOK_ALIKES)
    return "".join(
        " " if unicodedata.category(char) in {"Cc", "Zl", "Zp", "Cs"} else char for char in text.translate(LOOK_ALIKES)
    )


def write_reply(mentions: list[tuple[str, str]], empty: str) -> str:
    """The reply that names ``mentions``, (surface text, type word) each, in order; ``empty`` when there are none."""
    return " ".join(f"<{to_prompt_text(text)}>({word})" for text, word in mentions) or empty


def prompt_template(task: Task, k: int) -> FewShotPromptTemplate:
    """The prompt of ``task`` with ``k`` shots and one variable, ``text`` (already passed through ``to_prompt_text``).

    ``FewShotPromptTemplate`` formats shots twice, so braces inside them are doubled here.
    """

    def escape(value: str) -> str:
        return value.replace("{", "{{").replace("}", "}}")

    return FewShotPromptTemplate(
        prefix=escape(task.instruction),
        examples=[
            {"text": escape(to_prompt_text(shot.text)), "reply": escape(shot.reply)} for shot in task.pick_shots(k)
        ],
        example_prompt=PromptTemplate.from_template(task.shot),
        suffix=task.query,
        example_separator="\n",
        input_variables=["text"],
    )


def labels_of(task: Task) -> dict[str, Any]:
    """What a language chain binds to its ``llm`` as ``pipeline_kwargs``: the label words to score."""
    words = [*task.labels.values(), *filter(None, [task.out_of_scope])]
    return {"labels": {"query": task.query, "words": [task.reply_separator + word for word in words]}}


def items_of(task: Task) -> dict[str, Any]:
    """What an entity chain binds to its ``llm`` as ``pipeline_kwargs``: all that a grounded reply is made of."""
    return {
        "items": {
            "query": task.query,
            "separator": task.reply_separator,
            "empty": task.empty,
            "words": list(task.labels.values()),
            "end": task.reply_end,
        }
    }
