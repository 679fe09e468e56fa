"""The entity chain: ``prompt | llm | parser``, and its mentions placed in texts of any length."""

from collections.abc import Sequence
from typing import Literal

from langchain_core.runnables import Runnable, RunnableLambda

from chains.language import clean, run
from chains.parsers import MentionParser
from chains.prompts import Task, items_of, load_task, prompt_template, to_prompt_text
from chains.registry import Model
from chains.schema import Entity, Mention, Recognition, Reply
from chains.spans import align
from chains.windows import split_windows

__all__ = ["entity_chain", "find_entities", "find_entities_batch"]

PLAIN_TOKENS = 160
Way = Literal["grounded", "plain"]


def entity_chain(
    model: Model, *, task: Task | None = None, shots: int | None = None, way: Way = "grounded"
) -> Runnable[dict[str, str], Reply]:
    """A chain from ``{"text": …}`` to the reply with its mentions; ``shots`` defaults to the model's own number."""
    task = task or load_task("entities")
    template = prompt_template(task, model.info.shots if shots is None else shots)
    options = model.plain_options(PLAIN_TOKENS) if way == "plain" else items_of(task)
    return RunnableLambda(clean) | template | model.llm.bind(pipeline_kwargs=options) | MentionParser(task=task)


def find_entities(
    text: str, model: Model, *, task: Task | None = None, shots: int | None = None, way: Way = "grounded"
) -> Recognition:
    """The entities of one text; see ``find_entities_batch``."""
    return find_entities_batch([text], model, task=task, shots=shots, way=way)[0]


def find_entities_batch(
    texts: Sequence[str], model: Model, *, task: Task | None = None, shots: int | None = None, way: Way = "grounded"
) -> list[Recognition]:
    """The entities of each text, in order, placed by the rules in ``chains.spans``.

    A text that does not fit the model is read in windows, each on its own. An empty or white-space-only text has no
    entities, without asking the model.

    Raises:
        ReplyError: a reply could not be read (only possible in the plain way, or behind a server).
    """
    task = task or load_task("entities")
    template = prompt_template(task, model.info.shots if shots is None else shots)
    pieces = [split_windows(text, model.count_tokens, model.info.window_tokens) for text in texts]
    inputs = [{"text": text[a:b]} for text, spans in zip(texts, pieces, strict=True) for a, b in spans]
    answers = iter(run(entity_chain(model, task=task, shots=shots, way=way), inputs))
    results = []
    for text, spans in zip(texts, pieces, strict=True):
        entities: list[Entity] = []
        ungrounded: list[Mention] = []
        prompts, replies = [], []
        for start, end in spans:
            reply: Reply = next(answers)
            window = text[start:end]
            found, missing = place(window, reply.mentions)
            entities += [Entity(text=e.text, type=e.type, start=start + e.start, end=start + e.end) for e in found]
            ungrounded += [mention for mention in missing if mention not in ungrounded]
            prompts.append(template.format(text=to_prompt_text(window)))
            replies.append(reply.raw)
        results.append(
            Recognition(
                entities=tuple(entities), ungrounded=tuple(ungrounded), prompts=tuple(prompts), replies=tuple(replies)
            )
        )
    return results


def place(text: str, mentions: Sequence[Mention]) -> tuple[list[Entity], tuple[Mention, ...]]:
    """The mentions' entities in ``text``, with its own spelling, and those that are not in it.

    The model read ``to_prompt_text(text)``; that keeps every offset, so spans found there hold here.
    """
    found, missing = align(to_prompt_text(text), mentions)
    return [entity.model_copy(update={"text": text[entity.start : entity.end]}) for entity in found], missing
