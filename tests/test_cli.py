import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from chains import analysis, entities, language, registry
from chains.__main__ import Progress, delimiter, duration, main, open_jobs
from chains.errors import ModelError
from chains.evaluation import read_gold
from chains.exports import RESULT_COLUMNS
from chains.prompts import load_task, write_task
from chains.schema import Analysis, Correction, Detection, Entity, Mention, Recognition
from chains.tables import scan

MODEL = SimpleNamespace(name="fake", version="fake 1 · abc", info=SimpleNamespace(shots=3))
SPANISH = Detection(language="spanish", probability=0.934, probabilities={"english": 0.066, "spanish": 0.934})
ANA = Entity(text="Ana", type="person", start=0, end=3)
LIMA = Entity(text="Lima", type="location", start=12, end=16)
FOUND = Recognition(entities=(ANA, LIMA), ungrounded=(Mention(text="Perú", type="location"),))


class Fake:
    """Stands in for the registry and the chains, and keeps what was asked."""

    def __init__(self):
        self.loaded = []
        self.asked = []
        self.tasks = []
        self.error = None
        self.detection = SPANISH
        self.recognition = FOUND

    def load(self, name):
        self.loaded.append(name)
        if self.error:
            raise self.error
        return MODEL

    def detect_language(self, text, model, *, task=None, shots=None):
        self.tasks.append(task)
        self.asked.append((text, shots))
        return self.detection

    def find_entities(self, text, model, *, task=None, shots=None):
        self.tasks.append(task)
        self.asked.append((text, shots))
        return self.recognition

    def detect_languages(self, texts, model, *, task=None, shots=None):
        return [self.detect_language(text, model, shots=shots) for text in texts]

    def find_entities_batch(self, texts, model, *, task=None, shots=None):
        return [self.find_entities(text, model, shots=shots) for text in texts]

    def analyse(self, texts, model, *, shots=None, tasks=None):
        self.tasks.append(tasks)
        self.asked += [(text, shots) for text in texts]
        return [
            Analysis(text=text, error="no reply")
            if text == "bad"
            else Analysis(text=text, detection=SPANISH, recognition=FOUND)
            for text in texts
        ]


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BLOOM_LENS_DATA", str(tmp_path_factory.mktemp("data")))
    fake = Fake()
    monkeypatch.setattr(registry, "load", fake.load)
    monkeypatch.setattr(language, "detect_language", fake.detect_language)
    monkeypatch.setattr(language, "detect_languages", fake.detect_languages)
    monkeypatch.setattr(entities, "find_entities", fake.find_entities)
    monkeypatch.setattr(entities, "find_entities_batch", fake.find_entities_batch)
    monkeypatch.setattr(analysis, "analyse", fake.analyse)
    return fake


def read(path):
    """The columns of a file, and the cells of each."""
    table = scan(path)
    return table.columns, dict(zip(table.columns, zip_rows(table), strict=True))


def zip_rows(table):
    return [list(cells) for cells in zip(*(row.cells for row in table.rows()), strict=True)]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id;text\n1;Ana vive en Lima.\n2;bad\n3;=1+1\n", encoding="utf-8")
    return path


@pytest.fixture
def run(capsys):
    """Run a command; its exit code, and what it wrote to stdout and stderr."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


def document(result):
    code, out, _ = result
    assert code == 0
    return json.loads(out)


def test_detect_prints_the_language_and_every_probability(run):
    code, out, err = run("detect", "Ana vive en Lima.")
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == ["spanish 93.4%", "  spanish  93.4%", "  english   6.6%"]
    assert out.splitlines()[-1].startswith(f"fake 1 · abc, {load_task('language').identity}, 0.0")


def test_detect_of_an_empty_text_prints_no_probability(run, fake):
    fake.detection = Detection(language="unknown", probability=None, way="empty")
    assert run("detect", "")[1].splitlines()[0] == "unknown"


def test_detect_as_json_is_the_detection_with_model_and_seconds(run):
    written = document(run("detect", "x", "--json"))
    assert written.pop("seconds") >= 0
    assert written == SPANISH.model_dump(mode="json") | {
        "model": "fake 1 · abc",
        "task": load_task("language").identity,
    }


def test_entities_prints_places_and_counts(run):
    code, out, err = run("entities", "Ana vive en Lima.")
    assert (code, err) == (0, "")
    assert out.splitlines()[:5] == [
        "start  end  type      text",
        "    0    3  person    Ana",
        "   12   16  location  Lima",
        "person: 1, location: 1",
        "not in the text: Perú (location)",
    ]


def test_entities_says_when_there_are_none(run, fake):
    fake.recognition = Recognition()
    assert run("entities", "x")[1].splitlines()[0] == "no entities"


def test_entities_as_json_is_the_recognition_with_counts(run):
    written = document(run("entities", "x", "--json"))
    assert written.pop("seconds") >= 0
    assert written == FOUND.model_dump(mode="json") | {
        "counts": {"person": 1, "location": 1},
        "model": "fake 1 · abc",
        "task": load_task("entities").identity,
    }


@pytest.mark.parametrize("command", ["detect", "entities"])
def test_model_and_shots_are_passed_on(run, fake, command):
    run(command, "a")
    run(command, "b", "--model", "bloomz-560m", "--shots", 2)
    assert fake.loaded == ["embedded", "bloomz-560m"]
    assert fake.asked == [("a", None), ("b", 2)]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("naïve\n".encode(), "naïve"),
        (b"two\r\nlines\r\n", "two\r\nlines"),
        (b"\xef\xbb\xbfx\n\n", "x\n"),
        (b"", ""),
    ],
)
def test_a_dash_reads_standard_input_without_its_last_line_end(run, fake, monkeypatch, content, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    run("detect", "-")
    assert fake.asked == [(text, None)]


def test_standard_input_that_is_not_utf_8_is_an_error(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    code, out, err = run("detect", "-")
    assert (code, out) == (1, "")
    assert err.startswith("Error: Standard input is not UTF-8 (byte 3).")


def test_an_argument_that_is_not_utf_8_reaches_the_model_without_surrogates(run, fake):
    run("detect", "caf\udce9")
    assert fake.asked == [("caf\ufffd", None)]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_error_is_told_in_words_on_stderr(run, fake, options):
    fake.error = ModelError("There is no model 'x'.")
    assert run("detect", "a", "--model", "x", *options) == (1, "", "Error: There is no model 'x'.\n")


def test_batch_writes_every_row_with_its_results(run, table, tmp_path):
    code, out, err = run("batch", table, tmp_path / "out.csv", "--text-column", "text", "--shots", 4)
    assert code == 0
    assert out.startswith("3 rows, 1 with an error, in 0.")
    assert "3 of 3 rows · " in err
    columns, written = read(tmp_path / "out.csv")
    assert columns == ("id", "text", *RESULT_COLUMNS)
    assert written["text"] == ["Ana vive en Lima.", "bad", "'=1+1"]
    assert written["error"] == ["", "no reply", ""]
    assert written["people"] == ["1", "", "1"]


def test_raw_cells_leaves_formulas(run, table, tmp_path):
    run("batch", table, tmp_path / "out.csv", "--raw-cells")
    assert read(tmp_path / "out.csv")[1]["text"][2] == "=1+1"


@pytest.mark.parametrize(("name", "lines"), [("out.csv", 4), ("out.jsonl", 4), ("out.parquet", 4), ("out.xlsx", 4)])
def test_batch_writes_a_line_per_entity_in_every_format(run, table, tmp_path, name, lines):
    result = run("batch", table, tmp_path / name, "--shape", "long", "--json")
    assert document(result)["lines"] == lines
    columns, written = read(tmp_path / name)
    assert columns == ("row", "id", "text", "language", "entity", "type", "start", "end", "corrected")
    assert written["entity"] == ["Ana", "Lima"] * 2
    assert [str(row) for row in written["row"]] == ["1", "1", "3", "3"]


def test_the_same_batch_again_computes_nothing_and_writes_the_same(run, fake, table, tmp_path):
    run("batch", table, tmp_path / "a.csv")
    asked = list(fake.asked)
    code, _, err = run("batch", table, tmp_path / "b.csv")
    assert code == 0 and "Going on after 3 of 3 rows." in err
    assert fake.asked == asked
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    run("batch", table, tmp_path / "c.csv", "--shots", 5)
    assert len(document(run("jobs", "--json"))["jobs"]) == 2


def test_corrected_rows_are_written_as_gold(run, table, tmp_path):
    run("batch", table, tmp_path / "a.csv")
    id = document(run("jobs", "--json"))["jobs"][0]["job"]
    lines, cells = tmp_path / "gold.jsonl", tmp_path / "gold.csv"
    code, _, problem = run("jobs", "gold", id, lines)
    assert code == 1 and "No row of job" in problem and not lines.exists()
    jobs = open_jobs()
    jobs.correct(id, 1, Correction(language="spanish", entities=(ANA,)))
    jobs.correct(id, 3, Correction(language="unknown"))
    jobs.store.close()
    assert run("jobs", "gold", id, lines)[1] == f"2 corrected rows: {lines}\n"
    assert read_gold(lines, "entities") == [("Ana vive en Lima.", (ANA,)), ("=1+1", ())]
    assert document(run("jobs", "gold", id, cells, "--raw-cells", "--json")) == {
        "job": id, "output": str(cells), "rows": 2
    }  # fmt: skip
    assert read_gold(cells, "language") == [("Ana vive en Lima.", "spanish"), ("=1+1", "unknown")]
    run("jobs", "gold", id, cells)
    assert read_gold(cells, "language")[1] == ("'=1+1", "unknown")
    run("jobs", "export", id, tmp_path / "b.csv")
    assert read(tmp_path / "b.csv")[1]["corrected"] == ["True", "False", "True"]
    assert run("evaluate", lines, "--task", "entities")[0] == 0
    assert "There is no job" in run("jobs", "gold", "nothing", lines)[2]
    assert "Cannot write" in run("jobs", "gold", id, Path("/proc/gold.csv"))[2]


def test_jobs_are_listed_exported_renamed_retried_and_deleted(run, fake, table, tmp_path):
    id = document(run("batch", table, tmp_path / "a.csv", "--json"))["job"]
    assert run("jobs", "rename", id, "my job")[0] == 0
    code, out, _ = run("jobs")
    assert code == 0 and id in out and "my job" in out
    run("jobs", "export", id, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    fake.asked.clear()
    assert run("jobs", "retry", id)[1] == "3 rows, 1 with an error\n"
    assert fake.asked == [("bad", 3)]
    assert run("jobs", "delete", id)[0] == 0
    assert document(run("jobs", "--json"))["jobs"] == []
    assert run("jobs", "export", id, tmp_path / "c.csv")[2].startswith(f"Error: There is no job {id!r}")


def test_a_row_that_cannot_be_read_is_told_and_costs_the_others_nothing(run, tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n1,Ana vive en Lima.\n2,Ana,Lima\n3,x\n")
    code, out, err = run("batch", tmp_path / "in.csv", tmp_path / "out.csv")
    assert code == 0 and out.startswith("3 rows, 1 with an error")
    assert "Warning: " in err and "3 fields" in err
    assert read(tmp_path / "out.csv")[1]["people"] == ["1", "", "1"]


def test_a_file_without_names_is_read_whole(run, tmp_path):
    (tmp_path / "in.csv").write_text("1,Ana vive en Lima.\n2,x y\n")
    run("batch", tmp_path / "in.csv", tmp_path / "out.csv", "--header", "no", "--text-column", "column 2")
    columns, written = read(tmp_path / "out.csv")
    assert columns[:2] == ("column 1", "column 2") and written["column 1"] == ["1", "2"]


def test_batch_writes_json_lines_by_the_name_of_the_output(run, table, tmp_path):
    run("batch", table, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == ["Ana vive en Lima.", "bad", "=1+1"]
    assert lines[0]["entities"] == [ANA.model_dump(), LIMA.model_dump()]
    assert lines[1]["entities"] is None


def test_batch_as_json_prints_one_summary(run, table, tmp_path):
    result = run("batch", table, tmp_path / "out.csv", "--json")
    assert "Reading the texts of column 'text'" in result[2]
    summary = document(result)
    assert summary.pop("seconds") >= 0
    assert summary.pop("job") and summary.pop("created")
    assert summary == {
        "name": "in.csv", "state": "done", "rows": 3, "done": 3, "failed": 1, "model": "fake 1 · abc", "shots": None,
        "text_column": "text", "error": "", "output": str(tmp_path / "out.csv"), "lines": 3,
    }  # fmt: skip


def test_batch_obeys_the_chosen_encoding_delimiter_and_column(run, fake, tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes("a,b\tc\né\tö\n".encode("cp850"))
    options = ["--encoding", "cp850", "--delimiter", "tab", "--text-column", "c"]
    assert run("batch", source, tmp_path / "out.csv", *options)[0] == 0
    assert fake.asked == [("ö", 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text-column", "txt"], "Error: There is no column 'txt' of 'in.csv': choose one of 'id', 'text'."),
        (["--encoding", "ascii9"], "Error: Python knows no encoding 'ascii9'"),
        (["--delimiter", "::"], "Error: '::' cannot separate fields"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_before_the_model_is_loaded(
    run, fake, table, tmp_path, options, message
):
    code, _, err = run("batch", table, tmp_path / "out.csv", *options)
    assert code == 1
    assert message in err
    assert fake.loaded == []


def test_an_interrupted_batch_says_so_writes_nothing_and_goes_on(run, fake, table, tmp_path, monkeypatch):
    def analyse(texts, model, *, shots=None, tasks=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(analysis, "analyse", analyse)
        code, out, err = run("batch", table, tmp_path / "out.csv", "--text-column", "text")
    assert (code, out) == (130, "")
    assert err.startswith("\nStopped after 0 of 3 rows, which are stored. The same command goes on")
    assert list(tmp_path.iterdir()) == [table]
    assert run("batch", table, tmp_path / "out.csv")[0] == 0
    assert len(document(run("jobs", "--json"))["jobs"]) == 1


def test_a_job_that_fails_says_how_to_go_on(run, table, tmp_path, monkeypatch):
    def analyse(texts, model, *, shots=None, tasks=None):
        raise ModelError("The server is gone.")

    monkeypatch.setattr(analysis, "analyse", analyse)
    code, _, err = run("batch", table, tmp_path / "out.csv")
    assert code == 1
    assert "Error: The server is gone. What is done is stored: the same command goes on after it." in err


def test_an_interrupted_load_says_so(run, fake):
    fake.error = KeyboardInterrupt()
    assert run("detect", "a") == (130, "", "\nInterrupted.\n")


def test_a_result_that_cannot_be_written_leaves_nothing_behind(run, table, tmp_path):
    (tmp_path / "out.csv").mkdir()
    code, _, err = run("batch", table, tmp_path / "out.csv")
    assert code == 1
    assert "Error: Cannot write" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_evaluate_prints_scores_classes_and_confusions(run, tmp_path):
    gold = tmp_path / "gold.csv"
    gold.write_text("text,language\nhola,spanish\nhello,english\n")
    code, out, err = run("evaluate", gold, "--task", "language")
    assert code == 0
    assert "2 of 2 texts" in err
    assert [line.split("%")[0] for line in out.splitlines()[:4]] == [
        "accuracy     50.0",
        "micro F1     50.0",
        "macro F1     33.3",
        "weighted F1  33.3",
    ]
    assert out.splitlines()[0] == "accuracy     50.0%  0.0% to 100.0%"
    assert "expected calibration error: 43.4%" in out  # both are 93.4% probable, and one is right
    assert out.splitlines()[4:13] == [
        "",
        "         precision  recall     F1  support",
        "english       0.0%    0.0%   0.0%        1",
        "spanish      50.0%  100.0%  66.7%        1",
        "",
        "gold \\ predicted  english  spanish",
        "english                 0        1",
        "spanish                 0        1",
        "",
    ]
    assert out.splitlines()[-1].startswith(f"fake 1 · abc, 3 shots, {load_task('language').identity}: 2 texts in 0.")


def test_evaluate_entities_as_json_is_the_report(run, tmp_path):
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"text": "Ana vive en Lima.", "entities": [{"start": 0, "end": 3, "type": "person"}]}\n' * 3)
    report = document(run("evaluate", gold, "--task", "entities", "--json", "--limit", 2, "--shots", 1))
    assert (report["texts"], report["shots"], report["model"]) == (2, 1, "fake 1 · abc")
    assert report["micro_f1"] == pytest.approx(2 / 3)


def test_a_wrong_gold_set_is_an_error_before_the_model_is_loaded(run, fake, tmp_path):
    code, out, err = run("evaluate", tmp_path / "missing.csv", "--task", "language")
    assert (code, out, fake.loaded) == (1, "", [])
    assert err.startswith("Error: Cannot read 'missing.csv'")


def test_models_lists_what_each_needs_and_what_is_free(run, monkeypatch):
    monkeypatch.setattr(registry, "free_memory_bytes", lambda: 3_000_000_000)
    code, out, _ = run("models")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["model", "parameters", "memory", "fits", "licence"]
    assert lines[-1] == "3.0 GB of memory are free"
    assert [line.split()[0] for line in lines[1:-1]] == list(registry.MODELS)
    listed = document(run("models", "--json"))
    assert listed["free_memory_bytes"] == 3_000_000_000
    assert [model["name"] for model in listed["models"]] == list(registry.MODELS)
    assert all(model["fits"] == (model["memory_bytes"] <= 3_000_000_000) for model in listed["models"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["translate", "a"],
        ["detect"],
        ["detect", "a", "--shots", "-1"],
        ["detect", "a", "--shots", "many"],
        ["evaluate", "gold.csv"],
        ["evaluate", "gold.csv", "--task", "language", "--limit", "0"],
        ["batch", "in.csv"],
        ["batch", "in.csv", "out.doc"],
        ["batch", "in.csv", "out.csv", "--engine", "spark"],
        ["jobs", "export", "id"],
        ["jobs", "export", "id", "out.doc"],
        ["jobs", "gold", "id"],
        ["jobs", "gold", "id", "out.xlsx"],
        ["batch", "same.csv", "same.csv"],
        ["batch", "in.csv", "no/such/folder/out.csv"],
    ],
)
def test_wrong_use_ends_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    written = capsys.readouterr()
    assert (caught.value.code, written.out) == (2, "")
    assert written.err.startswith("usage: ")


def test_help_loads_no_heavy_library():
    code = (
        "import sys, chains.__main__ as cli; cli.make_parser().format_help(); "
        "print({'torch', 'pandas', 'transformers', 'langchain_core', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(("seconds", "written"), [(0, "0:00"), (59.6, "1:00"), (123, "2:03"), (3723, "1:02:03")])
def test_durations_are_written_as_clocks(seconds, written):
    assert duration(seconds) == written


@pytest.mark.parametrize(("value", "char"), [("tab", "\t"), ("\\t", "\t"), (";", ";")])
def test_a_tab_may_be_spelled_out(value, char):
    assert delimiter(value) == char


def test_progress_tells_rate_and_time_left_but_not_too_often(monkeypatch, capsys):
    now = iter([0.0, 5.0, 12.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    progress = Progress("rows")
    for done in (10, 24, 40):
        progress.show(done, 40)
    assert capsys.readouterr().err.splitlines() == [
        "24 of 40 rows · 2.0 per second · 0:08 left",
        "40 of 40 rows · 2.0 per second · 0:00 left",
    ]


@pytest.fixture
def task_file(tmp_path):
    """Writes a shipped task with changes; returns it and its file."""

    def write(kind, name="mine.yaml", **changes):
        task = load_task(kind).model_copy(update={"version": 7, **changes})
        (tmp_path / name).write_text(write_task(task), encoding="utf-8")
        return task, tmp_path / name

    return write


@pytest.mark.parametrize(("command", "kind"), [("detect", "language"), ("entities", "entities")])
def test_a_task_file_asks_in_place_of_the_shipped_one(run, fake, task_file, command, kind):
    task, file = task_file(kind)
    written = document(run(command, "Ana vive en Lima.", "--task", file, "--json"))
    assert fake.tasks == [task] and written["task"] == task.identity
    assert f"{kind} 7 · " in run(command, "Ana vive en Lima.", "--task", file)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "a", "--task", "entities.yaml"], "is of kind 'entities': expected one of kind 'language'"),
        (["detect", "a", "--task", "missing.yaml"], "Cannot read the task file"),
        (["batch", "in.csv", "out.csv", "--task", "entities.yaml", "--task", "entities.yaml"], "two are of one kind"),
    ],
)
def test_a_task_file_that_does_not_fit_is_told_before_a_model_is_loaded(
    run, fake, task_file, table, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    task_file("entities", "entities.yaml")
    code, _, err = run(*arguments)
    assert code == 1 and message in err and fake.loaded == []


def test_a_batch_with_an_edited_task_file_is_another_job(run, fake, table, task_file, tmp_path):
    task, file = task_file("language")
    command = ["batch", table, tmp_path / "out.csv", "--text-column", "text", "--task", file]
    for _ in range(2):
        assert run(*command)[0] == 0
    assert len(document(run("jobs", "--json"))["jobs"]) == 1
    assert [tasks.language for tasks in fake.tasks] == [task] * len(fake.tasks) != []
    fake.tasks.clear()
    edited, _ = task_file("language", instruction="Say the language.")
    assert run(*command)[0] == 0
    assert len(document(run("jobs", "--json"))["jobs"]) == 2
    assert [tasks.language for tasks in fake.tasks] == [edited] * len(fake.tasks) != []


def test_evaluate_takes_a_task_file(run, fake, task_file, tmp_path):
    labels = load_task("language").labels | {"catalan": "català"}
    task, file = task_file("language", labels=labels, shots=())
    gold = tmp_path / "gold.csv"
    gold.write_text("text,language\nhola,spanish\nbon dia,catalan\n")
    report = document(run("evaluate", gold, "--task", file, "--json"))
    assert report["task_identity"] == task.identity and report["per_class"]["catalan"]["support"] == 1
    assert "expected one of" in run("evaluate", gold, "--task", "language")[2]
