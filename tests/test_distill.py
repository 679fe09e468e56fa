import gzip
import json

import pytest

from chains.evaluation import read_gold
from chains.prompts import load_task
from chains.schema import Detection, Entity
from tests.test_remote import Server, completion
from training.distill import distill, judge_language, main
from training.gold import read_examples

# The labels, and the words by which a server is asked whether it can score any.
WORDS = ("english", "español", "française", "other", "early", "late")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy stands before the loopback, whatever the machine says."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def serve():
    """``serve(language=…, entities=…)``: a server that answers a text, given whether the shots are in their order."""
    servers = []

    def start(language=lambda text, in_order: {"english": -0.1}, entities=lambda text, in_order: "none"):
        def answer(body):
            choices = []
            for prompt in body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]:
                if body.get("echo"):
                    word = next(word for word in WORDS if prompt.endswith(word))
                    head = prompt.removesuffix(word)
                    text = head.rpartition("\n<")[2].removesuffix(">(")
                    score = language(text, is_in_order(prompt, "language")).get(word, -9.0)
                    logprobs = {"tokens": [head, word], "token_logprobs": [None, score], "text_offset": [0, len(head)]}
                    choices.append((prompt, logprobs))
                else:
                    text = prompt.rpartition("Text: ")[2].partition("\n")[0]
                    choices.append(" " + entities(text, is_in_order(prompt, "entities")))
            return completion(*choices)

        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def is_in_order(prompt, task):
    shots = load_task(task).shots
    places = [prompt.find(shot.text) for shot in shots]
    return places[0] < places[-1]


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked_texts(server):
    prompts = [prompt for body in server.requests for prompt in body["prompt"]]
    return [prompt.rpartition("Text: ")[2].partition("\n")[0] for prompt in prompts if "Text: " in prompt]


REPLIES = {
    "Ana left Lima.": ("<Ana>(person) <Lima>(location)", "<Lima>(location) <Ana>(person)"),
    "Ana is back.": ("<Ana>(person)", "<Ana>(organization)"),
    "It rains.": ("none", "none"),
    "Who?": ("I cannot say.", "none"),
    "Nobody.": ("<Zed>(person)", "<Zed>(person)"),
}


def test_only_grounded_answers_on_which_two_shot_orders_agree_are_kept(serve, tmp_path):
    server = serve(entities=lambda text, in_order: REPLIES.get(text, ("none", "none"))[0 if in_order else 1])
    texts = tmp_path / "raw.txt.gz"
    texts.write_bytes(gzip.compress("\n".join([*REPLIES, "", "ana, left LIMA"]).encode()))
    counts = distill(server.name, "entities", [texts], tmp_path / "gold.jsonl")
    assert counts == {"kept": 2, "disagree": 1, "unreadable": 1, "ungrounded": 1}
    ana = Entity(text="Ana", type="person", start=0, end=3)
    lima = Entity(text="Lima", type="location", start=9, end=13)
    assert read_gold(tmp_path / "gold.jsonl", "entities") == [("Ana left Lima.", (ana, lima)), ("It rains.", ())]
    assert [row["reason"] for row in rows(tmp_path / "gold.jsonl.dropped.jsonl")] == [
        "disagree", "unreadable", "ungrounded",
    ]  # fmt: skip
    first = rows(tmp_path / "gold.jsonl")[0]["source"]
    assert (first["file"], first["row"], first["shots"]) == ("raw.txt.gz", 1, 6)
    assert first["teacher"] == f"openai:{server.host}/big/bloomz · remote"


def test_languages_are_kept_if_both_orders_are_sure_of_the_same(serve, tmp_path):
    def language(text, in_order):
        return {
            "hello": {"english": -0.01},
            "quizás": {"español": -0.7, "française": -0.7},
            "si": {"español": -0.01} if in_order else {"française": -0.01},
            "Hallo": {"other": -0.01},
        }.get(text, {"english": -0.1})

    server = serve(language=language)
    table = tmp_path / "raw.csv"
    table.write_text("id,sentence\n1,hello\n2,quizás\n3,si\n4,Hallo\n", encoding="utf-8")
    counts = distill(server.name, "language", [table], tmp_path / "gold.jsonl", column="sentence")
    assert counts == {"kept": 2, "unsure": 1, "disagree": 1}
    assert read_gold(tmp_path / "gold.jsonl", "language") == [("hello", "english"), ("Hallo", "unknown")]
    # What lora reads: the out-of-scope word is learned for a text in another language.
    assert [example.answer for example in read_examples([tmp_path / "gold.jsonl"])] == ["english", "other"]


@pytest.mark.parametrize(
    ("language", "kept"), [("unknown", "unsure"), ("french", {"language": "french"})]
)  # fmt: skip
def test_without_probabilities_unknown_is_no_answer(language, kept):
    assert judge_language([Detection(language=language, probability=None, way="plain")] * 2) == kept


def test_given_again_it_goes_on_and_asks_nothing_twice(serve, tmp_path):
    server = serve(entities=lambda text, in_order: REPLIES.get(text, ("none", "none"))[0 if in_order else 1])
    texts, out = tmp_path / "raw.txt", tmp_path / "gold.jsonl"
    texts.write_text("\n".join(REPLIES), encoding="utf-8")
    assert distill(server.name, "entities", [texts], out, limit=2).total() == 2
    with out.open("a") as file:
        file.write('{"text": "cut o')  # as if the process had ended there
    server.requests.clear()
    assert distill(server.name, "entities", [texts], out) == {"kept": 1, "unreadable": 1, "ungrounded": 1}
    assert sorted(set(asked_texts(server))) == ["It rains.", "Nobody.", "Who?"]
    assert [row["text"] for row in rows(out)] == ["Ana left Lima.", "It rains."]


def test_texts_of_the_evaluation_set_are_not_asked(serve, tmp_path):
    server = serve()
    gold = tmp_path / "eval.jsonl"
    gold.write_text(json.dumps({"text": "ANA left lima", "entities": []}))
    texts = tmp_path / "raw.txt"
    texts.write_text("Ana left Lima.\nIt rains.", encoding="utf-8")
    assert distill(server.name, "entities", [texts], tmp_path / "out.jsonl", held_out=[gold]) == {"kept": 1}
    assert set(asked_texts(server)) == {"It rains."}


def test_a_file_that_is_not_its_own_is_an_error_and_left_as_it_is(serve, tmp_path, capsys):
    texts, out = tmp_path / "raw.txt", tmp_path / "mine.jsonl"
    texts.write_text("It rains.")
    out.write_text('{"text": "a", "entities": []}\n{"text": "b"')
    before = out.read_bytes()
    arguments = ["--teacher", serve().name, "--task", "entities", "--texts", str(texts), "--out", str(out)]
    assert main(arguments) == 1
    assert "no file of this command's" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shots", "1"], "1 shots have no order to change"),
        (["--shots", "7"], "7 shots were asked for"),
        (["--texts", "missing.txt"], "Cannot read 'missing.txt'"),
        (["--texts", "missing.csv"], "missing.csv"),
    ],
)
def test_wrong_use_is_an_error_in_words(serve, tmp_path, capsys, more, message):
    texts = tmp_path / "raw.txt"
    texts.write_text("It rains.")
    arguments = ["--teacher", serve().name, "--task", "entities", "--texts", str(texts)]
    assert main([*arguments, "--out", str(tmp_path / "out.jsonl"), *more]) == 1
    assert message in capsys.readouterr().err


def test_a_teacher_whose_server_goes_away_is_an_error_and_what_is_done_stays(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.distill.CHUNK", 1)

    def entities(text, in_order):
        return "none"

    server = serve(entities=entities)
    scripted = server.answer
    server.answer = lambda body: (
        (403, {"error": {"message": "no"}}) if "second" in str(body["prompt"]) else scripted(body)
    )
    texts, out = tmp_path / "raw.txt", tmp_path / "gold.jsonl"
    texts.write_text("first\nsecond\nthird")
    assert main(["--teacher", server.name, "--task", "entities", "--texts", str(texts), "--out", str(out)]) == 1
    assert "BLOOM_LENS_API_KEY" in capsys.readouterr().err
    assert [row["text"] for row in rows(out)] == ["first"]
