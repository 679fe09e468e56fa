"""What only a browser shows: each page once, as a user goes through it."""

import gzip
import io
import json
import re
import time
from subprocess import Popen

import openpyxl
import pyarrow
import pytest
from playwright.sync_api import expect
from pyarrow import parquet

from tests.browser.conftest import free_port, run_server

pytestmark = pytest.mark.browser
PAYLOAD = "<img src=x onerror=alert(1)>"
HOSTILE = [
    PAYLOAD,
    "<script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](x)",
    "*b* $c$ `d` :red[e]",
    ":material/home: :smile:",
    '"><iframe srcdoc="<script>parent.alert(1)</script>">',
    "{{7*7}} ${7*7} </textarea>",
]


def pick_folder(page, folder):
    """Choose the model in ``folder`` in the sidebar, as a user with a checkpoint of their own does."""
    page.get_by_role("combobox", name=re.compile("Model")).click()
    page.get_by_role("option", name="A folder on this machine").click()
    path = page.get_by_role("textbox", name="Path of a BLOOM checkpoint")
    path.fill(str(folder))
    path.press("Enter")
    expect(page.get_by_text("is ready")).to_be_visible()


def open_batch(new_page, address, folder, width=1280):
    page = new_page(address, width)
    pick_folder(page, folder)
    page.get_by_role("link", name="Batch").click()
    return page


def settle(page):
    """Wait until the page stands: what a user does who reads before the next click."""
    page.wait_for_timeout(300)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(state="attached")


def upload(page, name, content):
    expect(page.get_by_role("button", name="Try with sample data")).to_be_visible()
    settle(page)
    page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "", "buffer": content})


def choose(page, label, option):
    box = page.get_by_test_id("stSelectbox").filter(has=page.get_by_text(label, exact=True)).get_by_role("combobox")
    box.scroll_into_view_if_needed()  # while the page still scrolls, a list that opens closes again
    settle(page)
    box.click()
    page.get_by_role("option", name=option, exact=True).click()


def download(page):
    settle(page)
    page.get_by_role("button", name="Prepare download").click()
    with page.expect_download() as started:
        page.get_by_role("button", name=re.compile("Download [0-9,]+ row")).click()
    return started.value.path().read_bytes()


def start_long_job(page, name, rows):
    texts = [f"{name} {number}: Nadia Okafor left Siemens for Porto, said {number * 7919}." for number in range(rows)]
    upload(page, f"{name}.txt", "\n".join(["text", *texts]).encode())
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("rows per second")).to_be_visible()


def read_progress(page):
    """How many rows are done, and of how many."""
    words = page.locator("[data-testid=stProgress]").inner_text()
    done, total = re.search(r"([\d,]+) of ([\d,]+) row", words).groups()
    return int(done.replace(",", "")), int(total.replace(",", ""))


def wait_until(is_so, what):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.1)


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
    page.get_by_label("Text contains").fill("Madrid")
    page.get_by_label("Text contains").press("Enter")
    choose(page, "Rows", "Only the 1 that match")
    assert len(download(page).decode("utf-8-sig").splitlines()) == 2

    page.get_by_role("button", name="Charts", exact=True).click()
    expect(page.get_by_text("Rows: 30")).to_be_visible()
    page.locator(".st-key-languages path[aria-roledescription=bar]").first.click()
    expect(page.get_by_text("Click a bar to see only its rows.")).to_be_hidden()
    page.set_viewport_size({"width": 390, "height": 900})
    expect(page.get_by_text("Who is named most?")).to_be_visible()
    assert is_within_width(page)


def test_every_kind_of_file_is_taken(new_page, server, tiny_folder):
    page = open_batch(new_page, server, tiny_folder)
    table = pyarrow.table({"text": ["Lyon", "Porto"]})
    packed, book = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, packed)
    sheet = openpyxl.Workbook()
    for text in ("text", "Lyon", "Porto"):
        sheet.active.append([text])
    sheet.save(book)
    comma, tab, lines = (
        b"id,text\n1,Lyon\n2,Porto\n",
        b"id\ttext\n1\tLyon\n2\tPorto\n",
        b'{"text": "Lyon"}\n{"text": ""}\n',
    )
    for name, content, words in (
        ("a.csv", comma, "Read as CSV, utf-8, separated by comma"),
        ("a.tsv", tab, "Read as CSV, utf-8, separated by tab"),
        ("a.txt", b"text\nLyon\nPorto\n", "Read as CSV, utf-8, one column"),
        ("a.csv.gz", gzip.compress(comma), "Read as gzipped CSV"),
        ("a.jsonl", lines, "Read as JSON Lines"),
        ("a.ndjson", lines, "Read as JSON Lines"),
        ("a.jsonl.gz", gzip.compress(lines), "Read as gzipped JSON Lines"),
        ("a.parquet", packed.getvalue(), "Read as Parquet"),
        ("a.xlsx", book.getvalue(), "Read as Excel"),
    ):
        upload(page, name, content)
        expect(page.get_by_text(words)).to_be_visible()
        expect(page.get_by_role("heading", name=name)).to_be_visible()
        if name != "a.xlsx":
            page.get_by_role("button", name="Another file").click()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("2 of 2 rows · done in")).to_be_visible()


def test_every_format_is_downloaded_from_a_keyboard_and_a_phone(new_page, server, tiny_folder):
    page = open_batch(new_page, server, tiny_folder)
    page.get_by_role("button", name="Try with sample data").press("Enter")
    expect(page.get_by_text("30 of 30 rows · done in")).to_be_visible()
    lines = download(page).decode("utf-8-sig").splitlines()
    assert lines[0].startswith("date,channel,text,language,") and len(lines) == 31
    page = new_page(page.url, width=390)
    expect(page.get_by_test_id("stDataFrame").locator("canvas").first).to_be_visible()
    for name, start in (("JSON Lines", b'{"date":'), ("Parquet", b"PAR1"), ("Excel", b"PK\x03\x04")):
        choose(page, "File format", name)
        expect(page.get_by_text("Protect spreadsheets")).to_be_hidden()
        content = download(page)
        assert content.startswith(start)
    assert is_within_width(page)
    choose(page, "Shape", "One row per name")
    choose(page, "File format", "CSV")
    expect(page.get_by_text("Protect spreadsheets")).to_be_visible()
    assert download(page).decode("utf-8-sig").startswith("row,date,channel,text,language,entity,type,start,end")


def test_hostile_names_columns_and_cells_are_shown_as_text(new_page, server, tiny_folder):
    page = open_batch(new_page, server, tiny_folder)
    header = ["text", *(f'"{text.replace(chr(34), chr(34) * 2)}"' for text in HOSTILE)]
    rows = [",".join([cell, *header[1:]]) for cell in header[1:]] + [header[1]]  # the last is too short
    for payload in HOSTILE:
        name = f"{payload.replace('/', '-')}.csv".replace('"', "'")  # which browsers do not send as they are
        upload(page, name, "\n".join([",".join(header), *rows]).encode())
        expect(page.get_by_text("1 of 10 rows cannot be read")).to_be_visible()
        if payload != HOSTILE[-1]:
            page.get_by_role("button", name="Another file").click()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("10 of 10 rows · done in")).to_be_visible()
    for payload in HOSTILE:
        page.get_by_role("button", name="Change").first.click()
        page.get_by_label("Name", exact=True).fill(payload)
        page.get_by_role("button", name="Rename").click()
        words = page.get_by_role("heading", level=3).first
        expect(words).to_have_text(re.compile(re.escape(payload).replace(":", ":\u2060?")))
        page.keyboard.press("Escape")
    page.get_by_role("button", name="New file").click()
    expect(page.locator("strong", has_text=HOSTILE[-1])).to_be_visible()
    injected = "img[src=x], img[alt=x], iframe[srcdoc], main script, svg[onload], a[href^=javascript]"
    assert page.locator(injected).count() == 0


def test_browsers_on_one_job_see_the_same_while_a_second_job_advances_too(new_page, new_server, tiny_folder):
    one = open_batch(new_page, new_server, tiny_folder)
    start_long_job(one, "first", 20_000)
    two = new_page(one.url)

    def see_the_same():
        seen = read_progress(one)
        return seen == read_progress(two) and 0 < seen[0] < seen[1]

    wait_until(see_the_same, "two browsers on one job saw different progress")
    three = open_batch(new_page, new_server, tiny_folder)
    start_long_job(three, "second", 20_000)
    for page in (one, three, two):
        done, total = read_progress(page)
        assert done < total
        wait_until(lambda page=page, done=done: read_progress(page)[0] > done, "a job stood still")
    lines = download(two).decode("utf-8-sig").splitlines()
    assert 64 < len(lines) < 20_001
    wait_until(see_the_same, "two browsers on one job saw different progress")
    one.locator('[class*="st-key-stop-"] button').click()  # and not the one that Streamlit shows while a page runs
    expect(two.get_by_text("rows · stopped")).to_be_visible()
    two.get_by_role("button", name="Resume").click()
    expect(one.get_by_text("rows per second")).to_be_visible()


@pytest.mark.parametrize("end", [Popen.kill, Popen.terminate], ids=["killed", "stopped"])
def test_job_outlives_a_refresh_and_the_end_of_its_server(new_page, tmp_path, tiny_folder, end):
    port = free_port()
    with run_server(tmp_path, port, end=end) as address:
        page = open_batch(new_page, address, tiny_folder)
        start_long_job(page, "long", 900)
        page.reload()
        expect(page.get_by_text("rows per second")).to_be_visible()
        before, total = read_progress(page)
        assert 0 < before < total
    with run_server(tmp_path, port):
        page.reload()
        wait_until(lambda: page.get_by_text("of 900 rows").count() == 1, "the job was not found again")
        assert read_progress(page)[0] >= before
        expect(page.get_by_text("900 of 900 rows · done in")).to_be_visible()
        assert len(download(page).decode("utf-8-sig").splitlines()) == 901


def test_model_that_cannot_be_loaded_leaves_the_one_before(new_page, server, tiny_folder, tmp_path):
    page = new_page(server)
    pick_folder(page, tiny_folder)
    path = page.get_by_role("textbox", name="Path of a BLOOM checkpoint")
    path.fill(str(tmp_path))
    path.press("Enter")
    expect(page.get_by_text("going on with")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.get_by_role("button", name="French").click()
    expect(page.get_by_text("Locations (LOC)")).to_be_visible()


def pick_row(page, place):
    """Tick a row of the table of results; a canvas has no elements to click."""
    table = page.get_by_test_id("stDataFrame")
    table.scroll_into_view_if_needed()
    settle(page)
    left, top = (table.locator("canvas").first.bounding_box()[side] for side in ("x", "y"))
    page.mouse.click(left + 15, top + 35 * (place + 1.5))
    expect(page.locator(".marking-text")).to_be_visible()
    settle(page)


def select_by_mouse(page, text, start, end):
    """Draw the mouse from before the character at ``start`` of a text to before that at ``end``, in UTF-16 units."""

    def edge(place):
        return text.evaluate(
            """(root, place) => {
                const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT)
                for (let node; (node = walker.nextNode()); place -= node.length) {
                    if (place >= node.length) continue
                    const range = document.createRange()
                    range.setStart(node, place)
                    range.setEnd(node, place + 1)
                    const { left, top, height } = range.getBoundingClientRect()
                    return [left, top + height / 2]
                }
            }""",
            place,
        )

    text.scroll_into_view_if_needed()
    page.mouse.move(*edge(start))
    page.mouse.down()
    page.mouse.move(*edge(end))
    page.mouse.up()


def say(page, kind):
    page.locator(".marking-buttons").get_by_role("button", name=kind, exact=True).click()
    settle(page)


def test_names_are_marked_by_selecting_them_behind_emoji_and_come_out_as_gold(new_page, server, tiny_folder):
    page = open_batch(new_page, server, tiny_folder)
    text = f"😀👩\u200d👧 Zed met Zed {PAYLOAD} in Porto."
    upload(page, "people.csv", f'text\n"{text}"\nother\n'.encode())
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("2 of 2 rows · done in")).to_be_visible()
    pick_row(page, 0)
    shown = page.locator(".marking-text")
    assert shown.text_content() == text
    marks = shown.locator("mark")
    while marks.count():  # what random weights have found
        count = marks.count()
        marks.first.press("Enter")
        say(page, "Not a name")
        expect(marks).to_have_count(count - 1)
    units = text.encode("utf-16-le")
    for surface, kind in (("Zed <", "Person"), ("Porto", "Location")):
        start = units.index(surface.encode("utf-16-le")) // 2
        select_by_mouse(page, shown, start, start + len(surface.rstrip(" <")))
        expect(page.locator(".marking-chosen")).to_have_text(surface.rstrip(" <"))
        say(page, kind)
    expect(marks).to_have_text(["Zed", "Porto"])
    page.reload()
    expect(page.get_by_text("2 of 2 rows · done in")).to_be_visible()
    pick_row(page, 0)
    expect(marks).to_have_text(["Zed", "Porto"])
    assert page.locator("img[src=x]").count() == 0
    marks.last.click()
    expect(page.locator(".marking-chosen")).to_have_text("Porto")
    say(page, "Organization")
    choose(page, "Shape", "Gold set: only corrected rows")
    gold = json.loads(download(page))
    zed, porto = text.rindex("Zed"), text.index("Porto")
    assert (gold["text"], gold["entities"]) == (
        text,
        [
            {"start": zed, "end": zed + 3, "text": "Zed", "type": "person"},
            {"start": porto, "end": porto + 5, "text": "Porto", "type": "organization"},
        ],
    )
    page.get_by_role("button", name="Undo").click()
    expect(marks.last).to_have_attribute("aria-label", "Porto, Location")
    page.get_by_role("button", name="Next").click()
    expect(shown).to_have_text("other")
    page.set_viewport_size({"width": 390, "height": 900})
    expect(page.locator(".marking-buttons")).to_be_visible()
    assert is_within_width(page)
