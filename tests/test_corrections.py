import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chains.corrections import as_shot, check_correction, mark, write_shot
from chains.errors import CorrectionError
from chains.prompts import TASKS_FOLDER, Tasks, load_task
from chains.schema import Correction, Entity, Gold

LANGUAGE, ENTITIES = load_task("language"), load_task("entities")
TEXT = "😀 Ana met Ana in Porto"


def entity(start, end, type_="person", text=TEXT):
    return Entity(text=text[start:end], type=type_, start=start, end=end)


ANA, OTHER_ANA, PORTO = entity(2, 5), entity(10, 13), entity(17, 22, "location")


def test_a_name_is_added_in_reading_order_where_it_was_marked():
    assert mark(TEXT, [PORTO], 10, 13, "person") == (OTHER_ANA, PORTO)


def test_white_space_at_the_edges_is_left_out():
    assert mark(TEXT, [], 1, 6, "person") == (ANA,)
    assert mark(TEXT, [ANA], 5, 6, "person") == (ANA,)
    assert mark(TEXT, [ANA], 3, 3, None) == (ANA,)


def test_a_name_gets_another_type_or_none():
    assert mark(TEXT, [ANA, PORTO], 17, 22, "organization") == (ANA, entity(17, 22, "organization"))
    assert mark(TEXT, [ANA, OTHER_ANA], 2, 5, None) == (OTHER_ANA,)


def test_names_that_overlap_the_new_one_give_way():
    assert mark(TEXT, [ANA, OTHER_ANA, PORTO], 4, 11, "person") == (entity(4, 11), PORTO)
    assert mark(TEXT, [ANA], 5, 9, "person") == (ANA, entity(6, 9))


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 23), (5, 4)])
def test_places_outside_the_text_are_an_error(start, end):
    with pytest.raises(CorrectionError, match="does not lie in its text of 22 characters"):
        mark(TEXT, [], start, end, "person")


@given(st.text(), st.data())
def test_what_is_marked_fits_its_text(text, data):
    entities = ()
    for _ in range(4):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, len(text)))
        entities = mark(text, entities, start, end, data.draw(st.sampled_from([*ENTITIES.labels, None])))
    assert check_correction(text, Correction(language="unknown", entities=entities), Tasks()).entities == entities


def test_a_correction_comes_back_in_reading_order():
    correction = Correction(language="unknown", entities=(PORTO, ANA))
    assert check_correction(TEXT, correction, Tasks()).entities == (ANA, PORTO)


@pytest.mark.parametrize(
    ("correction", "message"),
    [
        (Correction(language="other"), "'other' is none of english, spanish, french, unknown"),
        (Correction(language="english", entities=(entity(2, 5, "dog"),)), "'dog' of 'Ana' is none of location"),
        (
            Correction(language="english", entities=(ANA.model_copy(update={"text": "Eva"}),)),
            "'Eva' is not what stands",
        ),
        (Correction(language="english", entities=(entity(22, 22),)), "is not what stands"),
        (Correction(language="english", entities=(entity(-5, 22),)), "is not what stands"),
        (Correction(language="english", entities=(ANA, entity(4, 9))), "'a met' overlaps"),
    ],
)
def test_a_correction_that_does_not_fit_its_text_is_an_error(correction, message):
    with pytest.raises(CorrectionError, match=message):
        check_correction(TEXT, correction, Tasks())


@pytest.mark.parametrize("language", ["english", "spanish", "french", "unknown"])
def test_a_language_becomes_a_shot_that_the_task_takes(language):
    shot = as_shot(LANGUAGE, Gold(text=TEXT, language=language))
    assert shot.reply == {**LANGUAGE.labels, "unknown": LANGUAGE.out_of_scope}[language]
    changed = LANGUAGE.model_copy(update={"shots": (*LANGUAGE.shots[:5], shot)})
    assert type(LANGUAGE).model_validate(changed.model_dump()) == changed


def test_entities_become_a_shot_that_the_task_takes():
    gold = Gold(text=f"{TEXT} <b>\n{{x}}", language="english", entities=(ANA, OTHER_ANA, PORTO))
    shot = as_shot(ENTITIES, gold)
    assert shot.reply == "<Ana>(person) <Porto>(location)"
    changed = ENTITIES.model_copy(update={"shots": (*ENTITIES.shots[:5], shot)})
    assert type(ENTITIES).model_validate(changed.model_dump()) == changed
    assert as_shot(ENTITIES, Gold(text=TEXT, language="english")).reply == "none"


def test_one_name_with_two_types_is_told_in_order():
    gold = Gold(text=TEXT, language="english", entities=(ANA, entity(10, 13, "location")))
    assert as_shot(ENTITIES, gold).reply == "<Ana>(person) <Ana>(location)"


def test_what_no_reply_can_say_is_an_error():
    with pytest.raises(CorrectionError, match="every place where it stands"):
        as_shot(ENTITIES, Gold(text=TEXT, language="english", entities=(ANA,)))
    with pytest.raises(CorrectionError, match="no word for the language 'german'"):
        as_shot(LANGUAGE, Gold(text=TEXT, language="german"))
    with pytest.raises(CorrectionError, match="no word for the language 'unknown'"):
        task = LANGUAGE.model_copy(update={"out_of_scope": None})
        as_shot(task, Gold(text=TEXT, language="unknown"))
    with pytest.raises(CorrectionError, match="no word for the type 'dog'"):
        as_shot(ENTITIES, Gold(text=TEXT, language="english", entities=(entity(2, 5, "dog"),)))


@pytest.mark.parametrize("text", ['😀 Ana: "yes" {x}', "- null", "two\nlines\t'", "yes", "a" * 300 + " # b"])
def test_a_shot_is_written_as_the_task_file_holds_it(text):
    shot = as_shot(LANGUAGE, Gold(text=text, language="french"))
    lines = write_shot(shot)
    assert lines.startswith("  - text: ")
    shipped = (TASKS_FOLDER / "language.yaml").read_text(encoding="utf-8")
    read = yaml.safe_load(shipped + lines)
    assert read["shots"][:-1] == [shot.model_dump() for shot in LANGUAGE.shots]
    assert read["shots"][-1] == {"text": text, "reply": "française"}
