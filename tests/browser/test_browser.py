"""What only a browser shows: each page once, as a user goes through it."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
PAYLOAD = "<img src=x onerror=alert(1)>"


def pick_folder(page, folder):
    """Choose the model in ``folder`` in the sidebar, as a user with a checkpoint of their own does."""
    page.get_by_role("combobox", name=re.compile("Model")).click()
    page.get_by_role("option", name="A folder on this machine").click()
    path = page.get_by_label("Path of a BLOOM checkpoint")
    path.fill(str(folder))
    path.press("Enter")
    expect(page.get_by_text("is ready")).to_be_visible()


def is_within_width(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_link_to_a_page_is_answered_inside_the_dashboard_by_a_new_server(new_page, new_server):
    page = new_page(f"{new_server}/batch?job=no-such-job")
    expect(page.get_by_text("There is no job")).to_be_visible()
    expect(page.get_by_role("link", name="Single text")).to_be_visible()
    expect(page.get_by_role("combobox", name=re.compile("Model"))).to_be_visible()


def test_text_is_answered_and_shown_as_text(new_page, server, tiny_folder):
    page = new_page(server)
    pick_folder(page, tiny_folder)
    text = f"Nadia Okafor left Porto. {PAYLOAD} *not bold*"
    box = page.get_by_role("textbox", name="Text")
    box.fill(text)
    box.press("Control+Enter")
    expect(page.get_by_text("Locations (LOC)")).to_be_visible()
    shown = page.locator("[data-testid=stHtml]").first
    shown.evaluate("node => node.querySelectorAll('abbr').forEach(tag => tag.remove())")
    assert shown.text_content().strip() == text
    assert page.locator("img[src=x]").count() == 0
    page.get_by_text("How was this answered?").click()
    expect(page.get_by_text("Language: prompt")).to_be_visible()
    page.get_by_text("Use this in Python").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    assert PAYLOAD in download.value.path().read_text(encoding="utf-8")

    page.get_by_role("link", name="Charts").click()
    expect(page.get_by_role("heading", name="Charts")).to_be_visible()
    page.get_by_role("link", name="Single text").click()
    expect(page.get_by_text("Locations (LOC)")).to_be_visible()
    expect(box).to_have_value(text)


def test_phone_shows_an_example_in_one_column(new_page, server):
    page = new_page(server, width=390)
    expect(page.get_by_role("button", name="Spanish")).to_be_visible()
    assert is_within_width(page)


def test_sample_job_survives_a_refresh_and_gives_files_and_charts(new_page, server, tiny_folder):
    page = new_page(server)
    pick_folder(page, tiny_folder)
    page.get_by_role("link", name="Batch").click()
    page.get_by_role("button", name="Try with sample data").click()
    expect(page.get_by_text("30 of 30 rows · done in")).to_be_visible()
    assert "?job=" in page.url
    page.reload()
    expect(page.get_by_text("30 of 30 rows · done in")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV, 30 rows").click()
    lines = download.value.path().read_text(encoding="utf-8-sig").splitlines()
    assert lines[0].startswith("date,channel,text,language,") and len(lines) == 31
    page.get_by_label("Text contains").fill("Madrid")
    page.get_by_label("Text contains").press("Enter")
    expect(page.get_by_role("button", name="CSV, 1 row")).to_be_visible()

    page.get_by_role("button", name="Charts", exact=True).click()
    expect(page.get_by_text("Rows: 30")).to_be_visible()
    page.locator(".st-key-languages path[aria-roledescription=bar]").first.click()
    expect(page.get_by_text("Click a bar to see only its rows.")).to_be_hidden()
    page.set_viewport_size({"width": 390, "height": 900})
    expect(page.get_by_text("Who is named most?")).to_be_visible()
    assert is_within_width(page)


def test_file_of_the_user_is_read_previewed_and_run(new_page, server, tiny_folder):
    page = new_page(server)
    pick_folder(page, tiny_folder)
    page.get_by_role("link", name="Batch").click()
    content = f"id;comentario\n1;Lucía Ferrer vive en Valencia\n2;{PAYLOAD}\n".encode("cp1252")
    file = {"name": f"{PAYLOAD}.csv", "mimeType": "text/csv", "buffer": content}
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text("was read as cp1252, separated by semicolon")).to_be_visible()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("2 of 2 rows · done in")).to_be_visible()
    assert page.locator("img[src=x]").count() == 0


def test_model_that_cannot_be_loaded_leaves_the_one_before(new_page, server, tiny_folder, tmp_path):
    page = new_page(server)
    pick_folder(page, tiny_folder)
    path = page.get_by_label("Path of a BLOOM checkpoint")
    path.fill(str(tmp_path))
    path.press("Enter")
    expect(page.get_by_text("going on with")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.get_by_role("button", name="French").click()
    expect(page.get_by_text("Locations (LOC)")).to_be_visible()
