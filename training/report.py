"""Score a model on every development file: ``python -m training.report --data DIR [--card CARD]``.

Prints Markdown tables; ``--card`` also writes them into a model card, between its two ``<!-- scores -->`` lines.
"""

import argparse
import csv
import gzip
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from chains.entities import find_entities_batch
from chains.language import detect_languages
from chains.metrics import entity_scores
from chains.prompts import load_task
from chains.registry import EMBEDDED, Model, load
from chains.schema import UNKNOWN, Detection
from training.data import TYPES, is_held_out, read_gold

# Files that are measured: development splits, and files whose licence allows no training.
ENTITY_FILES = (
    "wikineural.en.dev", "wikineural.es.dev", "wikineural.fr.dev",
    "gum.en.dev", "btc.en.dev", "wnut17.en.dev",
    "meddocan.es.dev", "echr_manual.es.dev", "echr_manual.fr.dev",
    "wikiann.en.train", "wikiann.es.train", "wikiann.fr.train", "novels7.fr.train",
)  # fmt: skip
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SHORT_WORDS = 5
MARKER = "<!-- scores -->"


def report_entities(model: Model, data: Path, limit: int, seed: int) -> Iterator[str]:
    """Lines of a table: one file each, micro-F1 by exact span and type, and F1 per type."""
    yield f"Entities, exact span and type, at most {limit} sentences of each file drawn with seed {seed}:"
    yield ""
    yield "| file | sentences | micro-F1 | precision | recall | location | person | organization | texts/s |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for name in ENTITY_FILES:
        sentences = list(read_gold(data / "ner" / f"{name}.jsonl.gz"))
        if len(sentences) > limit:
            sentences = random.Random(seed).sample(sentences, limit)
        started = time.perf_counter()
        found = find_entities_batch([sentence.text for sentence in sentences], model)
        seconds = time.perf_counter() - started
        gold, predicted = [s.entities for s in sentences], [result.entities for result in found]
        scores = entity_scores(gold, predicted)
        right = sum(len(keys(g) & keys(p)) for g, p in zip(gold, predicted, strict=True))
        precision = right / max(1, sum(map(len, predicted)))
        recall = right / max(1, sum(map(len, gold)))
        found_types = scores["per_type"]  # without those that neither side has
        per_type = " | ".join(f"{found_types[type_]['f1']:.3f}" if type_ in found_types else "–" for type_ in TYPES)
        yield (
            f"| {name} | {len(sentences)} | **{scores['micro_f1']:.3f}** | {precision:.3f} | {recall:.3f} | {per_type} "
            f"| {len(sentences) / seconds:.0f} |"
        )


def keys(entities: Sequence[object]) -> set[tuple[int, int, str]]:
    return {(entity.start, entity.end, entity.type) for entity in entities}  # type: ignore[attr-defined]


def report_language(model: Model, data: Path, limit: int, seed: int) -> Iterator[str]:
    """Lines of two tables: accuracy by set beside lingua's, and what each threshold keeps and refuses."""
    sets = language_sets(data, limit, seed)
    answers: dict[str, list[Detection]] = {}

    def detect(name: str, texts: list[str]) -> list[str]:
        answers[name] = detect_languages(texts, model)
        return [detection.language for detection in answers[name]]

    threshold = load_task("language").threshold
    yield f"Language, threshold {threshold}; a text in another language is right when it is answered `unknown`:"
    yield ""
    yield "| set | detector | texts | right | in scope right | in scope kept | out of scope `unknown` | texts/s |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for detector in (model.info.name, "lingua, all languages"):
        # Lingua is loaded after the model has answered: its gigabyte slows down whatever runs beside it.
        answer = detect if detector == model.info.name else lingua_detector()
        for name, rows in sets.items():
            started = time.perf_counter()
            languages = answer(name, [text for text, _ in rows])
            rate = len(rows) / (time.perf_counter() - started)
            yield f"| {name} | {detector} | {len(rows)} | {describe_answers(languages, rows)} | {rate:,.0f} |"
    yield ""
    yield "What the threshold does, over all sets together:"
    yield ""
    yield "| threshold | in scope right | out of scope `unknown` |"
    yield "|--:|--:|--:|"
    pairs = [(d, gold) for name, rows in sets.items() for d, (_, gold) in zip(answers[name], rows, strict=True)]
    inside = [(d, gold) for d, gold in pairs if gold != UNKNOWN]
    outside = [d for d, gold in pairs if gold == UNKNOWN]
    for value in THRESHOLDS:
        right = sum(decided(d, value) == gold for d, gold in inside)
        refused = sum(decided(d, value) == UNKNOWN for d in outside)
        yield f"| {value} | {share(right, inside)} | {share(refused, outside)} |"


def describe_answers(languages: list[str], rows: list[tuple[str, str]]) -> str:
    """Cells of the language table: the shares that are right, right and kept in scope, and refused out of scope."""
    inside = [(language, gold) for language, (_, gold) in zip(languages, rows, strict=True) if gold != UNKNOWN]
    outside = [language for language, (_, gold) in zip(languages, rows, strict=True) if gold == UNKNOWN]
    refused = sum(language == UNKNOWN for language in outside)
    right = sum(language == gold for language, gold in inside)
    kept = sum(language != UNKNOWN for language, _ in inside)
    shares = (share(right, inside), share(kept, inside), share(refused, outside))
    return " | ".join([f"{(right + refused) / len(rows):.2%}", *shares])


def lingua_detector() -> Callable[[str, list[str]], list[str]]:
    """What a user would pick instead, with all its languages loaded: https://github.com/pemistahl/lingua-py."""
    from lingua import Language, LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()
    names = {Language.ENGLISH: "english", Language.SPANISH: "spanish", Language.FRENCH: "french"}

    def answer(_: str, texts: list[str]) -> list[str]:
        return [names.get(found, UNKNOWN) for found in detector.detect_languages_in_parallel_of(texts)]

    return answer


def decided(detection: Detection, threshold: float) -> str:
    """The language under another threshold."""
    best = max(detection.probabilities, key=lambda name: detection.probabilities[name])
    return best if detection.probabilities[best] >= threshold else UNKNOWN


def share(part: int, whole: Sequence[object]) -> str:
    return f"{part / len(whole):.2%}" if whole else "–"


def language_sets(data: Path, limit: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    """(text, gold language) of each set: held-out Tatoeba rows by length, PUD, and WikiNEuRal sentences."""

    def rows(name: str) -> list[tuple[str, str]]:
        with gzip.open(data / "language" / f"{name}.train.csv.gz", "rt", encoding="utf-8") as file:
            return [(r["text"], UNKNOWN if r["language"] == "other" else r["language"]) for r in csv.DictReader(file)]

    tatoeba = [row for row in rows("tatoeba") if is_held_out(row[0])]
    wiki: list[tuple[str, str]] = []
    for code, language in (("en", "english"), ("es", "spanish"), ("fr", "french")):
        sentences = list(read_gold(data / "ner" / f"wikineural.{code}.dev.jsonl.gz"))
        wiki += [(s.text, language) for s in random.Random(seed).sample(sentences, min(limit, len(sentences)))]
    return {
        "Tatoeba held out, 1–5 words": [row for row in tatoeba if len(row[0].split()) <= SHORT_WORDS],
        "Tatoeba held out, longer": [row for row in tatoeba if len(row[0].split()) > SHORT_WORDS],
        "PUD, six languages": rows("pud"),
        "WikiNEuRal dev": wiki,
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description="Score a model on the dev files.")
    parser.add_argument("--data", type=Path, required=True, help="folder with ner/ and language/")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--limit", type=int, default=1000, help="sentences per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", type=Path, help="model card to write the tables into")
    chosen = parser.parse_args(arguments)
    model = load(chosen.model)
    lines = [f"Model `{model.version}`, {model.info.shots} shots, grounded decoding.", ""]
    entities = list(report_entities(model, chosen.data, chosen.limit, chosen.seed))
    lines += [*report_language(model, chosen.data, chosen.limit, chosen.seed), "", *entities]
    tables = "\n".join(lines)
    print(tables)
    if chosen.card:
        before, _, after = chosen.card.read_text(encoding="utf-8").split(MARKER)
        chosen.card.write_text(f"{before}{MARKER}\n{tables}\n{MARKER}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
