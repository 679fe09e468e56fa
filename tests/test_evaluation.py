import gzip
import json
from types import SimpleNamespace

import pytest

from chains import entities, evaluation, language
from chains.errors import ModelError, TableError
from chains.evaluation import GoldRow, evaluate, read_gold, read_gold_set
from chains.schema import Detection, Entity, Recognition

MODEL = SimpleNamespace(version="fake 1 · abc", info=SimpleNamespace(shots=3))
LANGUAGES = (
    b"id,text,language\n1,the cat,english\n2,el gato,spanish\n3,le chat,french\n4,die Katze,other\n5,123,unknown\n"
)
ANA = Entity(text="Ana", type="person", start=0, end=3)
LIMA = Entity(text="Lima", type="location", start=7, end=11)


def line(text, *spans, **extra):
    return json.dumps(
        {"text": text, "entities": [dict(zip(("start", "end", "type"), span, strict=True)) for span in spans]} | extra
    )


ENTITIES = "\n".join([line("Ana en Lima", (0, 3, "person"), (7, 11, "location"), id=7), "", line("nada")]).encode()


@pytest.fixture
def write(tmp_path):
    def write(content, name="gold"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def asked(monkeypatch):
    """Every text asked of the fake chains: one answers english, the other finds Ana in each text."""
    texts = []

    def detect(some, model, *, task=None, shots=None):
        texts.extend((text, shots) for text in some)
        return [Detection(language="english", probability=1.0) for _ in some]

    def find(some, model, *, task=None, shots=None):
        texts.extend((text, shots) for text in some)
        return [Recognition(entities=(ANA,)) for _ in some]

    monkeypatch.setattr(language, "detect_languages", detect)
    monkeypatch.setattr(entities, "find_entities_batch", find)
    return texts


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_language_gold_is_read_with_other_as_unknown(write, pack):
    assert read_gold(write(pack(LANGUAGES)), "language") == [
        ("the cat", "english"),
        ("el gato", "spanish"),
        ("le chat", "french"),
        ("die Katze", "unknown"),
        ("123", "unknown"),
    ]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_entity_gold_is_read_with_its_spans(write, pack):
    assert read_gold(write(pack(ENTITIES)), "entities") == [("Ana en Lima", (ANA, LIMA)), ("nada", ())]


def test_offsets_count_code_points_and_a_line_ends_only_at_a_line_feed(write):
    content = json.dumps({"text": "😀\u2028Ana", "entities": [{"start": 2, "end": 5, "type": "person", "text": "Ana"}]})
    written = json.loads(content)
    path = write(json.dumps(written, ensure_ascii=False).encode())
    assert read_gold(path, "entities") == [("😀\u2028Ana", (Entity(text="Ana", type="person", start=2, end=5),))]


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        (
            "language",
            b"text,language\na,english\nb,German\n",
            "Row 2 of 'gold' has the language 'German': expected one of ",
        ),
        ("language", b"text,language\na,\n", "Row 1 of 'gold' has the language ''"),
        ("language", b"text,label\na,english\n", "There is no column 'language' of 'gold'"),
        ("language", b"text,language\na,english\nb\n", "'gold': Row 2 (line 3) has 1 field and the table 2 fields"),
        ("language", b"", "The file of 'gold' is empty"),
        ("language", gzip.compress(LANGUAGES)[:-5], "'gold' is damaged or not whole"),
        ("entities", b"\n", "The gold set 'gold' is empty"),
        ("entities", b"\xff", "'gold' is not UTF-8 (byte 0)"),
        ("entities", (line("a") + "\n{").encode(), "Line 2 of 'gold': the line: Invalid JSON"),
        ("entities", b'{"text": "a"}', "Line 1 of 'gold': entities: Field required"),
        ("entities", b'{"text": 1, "entities": []}', "Line 1 of 'gold': text: Input should be a valid string"),
        ("entities", line("abc", ("0", 1, "person")).encode(), "entities.0.start: Input should be a valid integer"),
        ("entities", line("abc", (-1, 1, "person")).encode(), "entities.0.start: Input should be greater than"),
        (
            "entities",
            line("abc", (0, 4, "person")).encode(),
            "an entity from 0 to 4 does not lie in its text of 3 char",
        ),
        ("entities", line("abc", (2, 2, "person")).encode(), "an entity from 2 to 2 does not lie in its text"),
        (
            "entities",
            line("abc", (0, 1, "PER")).encode(),
            "Line 1 of 'gold': the type 'PER' is none of location, person,",
        ),
        (
            "entities",
            b'{"text": "\\u00e9 Ana", "entities": [{"start": 3, "end": 5, "type": "person", "text": "Ana"}]}',
            "the entity 'Ana' is not what stands from 3 to 5, 'na'",
        ),
        ("entities", gzip.compress(ENTITIES)[:-5], "Cannot read the gold set"),
    ],
)
def test_a_gold_set_that_breaks_a_rule_is_an_error_naming_the_place(write, task, content, message):
    with pytest.raises(TableError) as caught:
        read_gold(write(content), task)
    assert message in str(caught.value)


@pytest.mark.parametrize("task", ["language", "entities"])
def test_a_missing_gold_set_is_an_error(tmp_path, task):
    with pytest.raises(TableError, match="Cannot read .*missing.csv': No such file"):
        read_gold(tmp_path / "missing.csv", task)


def test_gold_set_of_a_table_has_languages(write):
    rows = read_gold_set(write(LANGUAGES), "mine.csv")
    assert rows[0] == GoldRow("the cat", "english") and rows[3] == GoldRow("die Katze", "unknown")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_gold_set_of_json_lines_has_either_or_both(write, pack):
    lines = [
        line("Ana en Lima", (0, 3, "person"), language="spanish"),
        '{"text": "nada", "language": "other"}',
        line("x", lang="en"),
    ]
    assert read_gold_set(write(pack("\n".join(lines).encode())), "mine.jsonl") == [
        GoldRow("Ana en Lima", "spanish", (ANA,)),
        GoldRow("nada", "unknown", None),
        GoldRow("x", None, ()),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,b\n", "'mine' has the columns 'text', 'label': expected 'text', and 'language'"),
        (b"text,entities\na,b\n", "expected 'text', and 'language' (a label) or 'entities' (spans, in JSON Lines)"),
        ((line("a") + "\n" + '{"text": "b"}').encode(), "Line 2 of 'mine': there is neither a language nor entities"),
        (line("a", language="German").encode(), "Line 1 of 'mine': the language 'German': expected one of english"),
        (
            line("Ana en Lima", (0, 6, "person"), (4, 11, "location")).encode(),
            "Line 1 of 'mine': the entities 'Ana en' and 'en Lima' overlap",
        ),
        (b"text,language\n" + 4 * b"a,english\n", "'mine' has 4 texts: expected at most 3"),
        (b"", "The file of 'mine' is empty"),
        (b"%PDF-1.7", "'mine' is a PDF document"),
    ],
)
def test_a_gold_set_that_cannot_be_used_is_an_error_naming_the_upload(write, monkeypatch, content, message):
    monkeypatch.setattr(evaluation, "MAX_TEXTS", 3)
    with pytest.raises(TableError) as caught:
        read_gold_set(write(content, "a1b2"), "mine")
    assert message in str(caught.value)


def test_language_evaluation_reports_scores_and_what_was_asked(write, asked):
    progress = []
    report = evaluate(write(LANGUAGES), "language", MODEL, on_progress=lambda *step: progress.append(step))
    assert (report["accuracy"], report["texts"], report["task"], report["model"]) == (0.2, 5, "language", MODEL.version)
    assert (report["shots"], report["task_version"]) == (3, 1)
    assert report["confusion_matrix"]["labels"] == ["english", "french", "spanish", "unknown"]
    assert report["texts_per_second"] == pytest.approx(5 / report["seconds"])
    assert progress == [(5, 5)]
    assert report["intervals"]["accuracy"][0] <= 0.2 <= report["intervals"]["accuracy"][1]
    assert report["calibration"]["expected_error"] == pytest.approx(0.8)
    assert "wrong" not in report
    json.dumps(report)


def test_entity_evaluation_reports_scores_and_wrong_texts(write, asked):
    report = evaluate(write(ENTITIES), "entities", MODEL, shots=2, keep_wrong=1)
    assert report["micro_f1"] == pytest.approx(0.5)
    assert report["per_type"]["person"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert report["wrong"] == [
        {"text": "Ana en Lima", "gold": [ANA.model_dump(), LIMA.model_dump()], "predicted": [ANA.model_dump()]}
    ]
    assert (report["shots"], {shots for _, shots in asked}) == (2, {2})
    json.dumps(report)


def test_a_limit_takes_the_same_random_sample_each_time(write, asked):
    content = b"text,language\n" + b"".join(b"%d,english\n" % number for number in range(100))
    samples = []
    for seed in (0, 0, 1):
        asked.clear()
        assert evaluate(write(content), "language", MODEL, limit=10, seed=seed)["texts"] == 10
        samples.append([text for text, _ in asked])
    assert samples[0] == samples[1] != samples[2]
    assert samples[0] != [str(number) for number in range(10)]


def test_a_limit_above_the_size_takes_every_text_in_order(write, asked):
    evaluate(write(LANGUAGES), "language", MODEL, limit=99)
    assert [text for text, _ in asked] == ["the cat", "el gato", "le chat", "die Katze", "123"]


def test_long_gold_sets_are_asked_in_parts(write, asked):
    progress = []
    content = b"text,language\n" + b"a,english\n" * 300
    evaluate(write(content), "language", MODEL, on_progress=lambda *step: progress.append(step))
    assert progress == [(256, 300), (300, 300)]


def test_a_model_that_fails_gives_no_score(write, monkeypatch):
    def detect(some, model, *, task=None, shots=None):
        raise ModelError("No memory.")

    monkeypatch.setattr(language, "detect_languages", detect)
    with pytest.raises(ModelError):
        evaluate(write(LANGUAGES), "language", MODEL)
