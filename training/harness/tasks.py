"""Both tasks for lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), with the chains' own
prompts, parsers and scores.

    lm_eval --include_path training/harness --tasks bloom_lens --model hf --model_args pretrained=FOLDER_OR_HUB_ID

``--metadata '{"shots": 3, "language": "gold.csv", "entities": "gold.jsonl"}'`` sets the number of shots (default: the
model's own) and the gold sets (default: the sample in ``tests/gold``).

The harness adds up the log-probabilities of all of a label's tokens; forced decoding compares only those at forks, the
others being certain. So the choices of a row are not the labels but every beginning of a label's tokens: the difference
of two neighbours is one token's log-probability, and ``fork_scores`` makes the same of them as of a server's.
A text is asked as a whole, whatever its length; the chains read one that is longer than their window in pieces.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from langchain_core.exceptions import OutputParserException

ROOT = Path(__file__).parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # lm_eval loads this file by its path

from chains.entities import place  # noqa: E402
from chains.errors import ModelError  # noqa: E402
from chains.evaluation import TaskName, read_gold  # noqa: E402
from chains.metrics import entity_scores, language_scores  # noqa: E402
from chains.parsers import MentionParser, ScoreParser  # noqa: E402
from chains.prompts import labels_of, load_task, prompt_template, to_prompt_text  # noqa: E402
from chains.registry import find_model  # noqa: E402
from chains.remote import fork_scores  # noqa: E402
from chains.schema import Entity  # noqa: E402

LANGUAGE, ENTITIES = load_task("language"), load_task("entities")
SAMPLES: dict[str, Path] = {
    "language": ROOT / "tests" / "gold" / "language.csv",
    "entities": ROOT / "tests" / "gold" / "entities.jsonl",
}


def language_rows(**metadata: Any) -> dict[str, Dataset]:
    """A row per text of the gold set: ``prompt``, ``choices``, ``gold`` (a label or ``unknown``) and, for reading the
    results, ``tokens``: per label word the beginnings of its tokens, as places in ``choices``."""
    choices, tokens = label_beginnings(str(metadata["pretrained"]))
    prompts, gold = asked("language", metadata)
    rows = {"prompt": prompts, "choices": [choices] * len(gold), "gold": [label for _, label in gold]}
    return {"test": Dataset.from_dict({**rows, "tokens": [json.dumps(tokens)] * len(gold)})}


def entity_rows(**metadata: Any) -> dict[str, Dataset]:
    """A row per text of the gold set: ``prompt``, ``text``, and the entities as JSON in ``gold``."""
    prompts, gold = asked("entities", metadata)
    entities = [json.dumps([entity.model_dump() for entity in marked]) for _, marked in gold]
    return {"test": Dataset.from_dict({"prompt": prompts, "text": [text for text, _ in gold], "gold": entities})}


def asked(task: TaskName, metadata: dict[str, Any]) -> tuple[list[str], list[tuple[str, Any]]]:
    """The prompts of a gold set's texts, and its texts with their answers; a blank text is left out, since the chains
    answer it without asking."""
    file = load_task(task)
    shots = metadata.get("shots", find_model(str(metadata["pretrained"])).shots)
    template = prompt_template(file, int(shots))
    gold = [(text, answer) for text, answer in read_gold(Path(metadata.get(task, SAMPLES[task])), task) if text.strip()]
    return [template.format(text=to_prompt_text(text)) for text, _ in gold], gold


@cache
def label_beginnings(pretrained: str) -> tuple[list[str], dict[str, list[int]]]:
    """Every beginning of a label word that ends with one of its tokens, and for each word the places of its own.

    Raises:
        ModelError: the tokenizer cuts a beginning otherwise than the word, so it cannot be scored by itself.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pretrained, trust_remote_code=False)
    choices: list[str] = []
    places: dict[str, list[int]] = {}
    for word in labels_of(LANGUAGE)["labels"]["words"]:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        beginnings = [tokenizer.decode(ids[:end]) for end in range(1, len(ids) + 1)]
        for end, beginning in enumerate(beginnings, 1):
            if tokenizer(beginning, add_special_tokens=False)["input_ids"] != ids[:end]:
                raise ModelError(
                    f"The tokenizer of {pretrained!r} cuts {beginning!r} otherwise than the beginning of {word!r}: "
                    "choose label words whose tokens are whole letters in chains/tasks/language.yaml."
                )
        choices += [beginning for beginning in beginnings if beginning not in choices]
        places[word.strip()] = [choices.index(beginning) for beginning in beginnings]
    return choices, places


def language_results(row: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[str, str]]:
    """Gold and predicted label of a row, once for each metric."""
    detection = ScoreParser(task=LANGUAGE).parse(json.dumps(label_scores(row, results)))
    pair = (row["gold"], detection.language)
    return {"accuracy": pair, "macro_f1": pair}


def label_scores(row: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Label word → log-probability in nats, given that the reply is a label."""
    tokens: dict[str, list[int]] = json.loads(row["tokens"])
    sums = [logprob for logprob, _ in results]
    paths = []
    for places in tokens.values():
        before = [0.0, *(sums[place] for place in places[:-1])]
        paths.append([(str(place), sums[place] - start) for place, start in zip(places, before, strict=True)])
    return dict(zip(tokens, fork_scores(paths), strict=True))


def entity_results(row: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Gold and predicted entities of a row, once for each metric; a reply that cannot be read names nothing."""
    try:
        mentions, is_unreadable = MentionParser(task=ENTITIES).parse(results[0]).mentions, 0.0
    except OutputParserException:
        mentions, is_unreadable = (), 1.0
    found, _ = place(row["text"], mentions)
    pair = ([Entity(**entity) for entity in json.loads(row["gold"])], found)
    return {"micro_f1": pair, "macro_f1": pair, "unreadable": is_unreadable}


def accuracy(pairs: list[tuple[str, str]]) -> float:
    return float(_of_languages(pairs)["accuracy"])


def language_macro_f1(pairs: list[tuple[str, str]]) -> float:
    return float(_of_languages(pairs)["macro_f1"])


def micro_f1(pairs: list[tuple[list[Entity], list[Entity]]]) -> float:
    return float(_of_entities(pairs)["micro_f1"])


def entity_macro_f1(pairs: list[tuple[list[Entity], list[Entity]]]) -> float:
    return float(_of_entities(pairs)["macro_f1"])


def _of_languages(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    return language_scores([gold for gold, _ in pairs], [predicted for _, predicted in pairs])


def _of_entities(pairs: list[tuple[list[Entity], list[Entity]]]) -> dict[str, Any]:
    return entity_scores([gold for gold, _ in pairs], [predicted for _, predicted in pairs])
