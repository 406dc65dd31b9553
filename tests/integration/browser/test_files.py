"""Downloads into the workspace, uploads out of it."""

import asyncio
from http.server import BaseHTTPRequestHandler

import pytest

from app.domain.errors import BrowserFailure
from tests.integration.browser.house import House, index
from tests.integration.browser.site import Page

pytestmark = pytest.mark.asyncio(loop_scope="session")

ATTACHED = {"Content-Disposition": 'attachment; filename="report 1.csv"'}
FORM = (
    "<form method=post enctype=multipart/form-data action=/sent>"
    "<input type=file name=f aria-label=File {more}><button>send</button></form>"
)


@pytest.fixture
def report(house: House) -> str:
    house.site.pages["/report"] = Page(b"a;b\n1;2\n", "text/csv", headers=ATTACHED)
    return house.site.url("/report")


async def test_a_link_to_a_file_downloads_it_and_its_path_and_size_are_told(house: House, report: str) -> None:
    view = await house.show("<p>page</p><a href='/report'>get it</a>")
    view = await (await house.browser()).click(index(view.text, "get it"))
    assert view.notes == ("Downloaded ~/Downloads/report 1.csv (8 bytes).",)
    assert (house.home / "Downloads" / "report 1.csv").read_bytes() == b"a;b\n1;2\n"
    assert "page" in view.text


async def test_navigating_to_a_file_downloads_it_and_the_page_before_stays(house: House, report: str) -> None:
    await house.show("<p>page</p>")
    view = await (await house.browser()).navigate(report)
    assert view.notes == ("Downloaded ~/Downloads/report 1.csv (8 bytes).",)
    assert view.text == "page"


async def test_a_link_that_opens_a_file_in_a_new_tab_leaves_no_tab_behind(house: House, report: str) -> None:
    view = await house.show("<p>page</p><a href='/report' target=_blank>get it</a>")
    view = await (await house.browser()).click(index(view.text, "get it"))
    assert "Downloaded ~/Downloads/report 1.csv (8 bytes)." in view.notes
    assert "page" in view.text


async def test_what_a_script_makes_is_downloaded_too(house: House) -> None:
    view = await house.show(
        '<button onclick=\'const a = document.createElement("a"); a.download = "made.txt";'
        ' a.href = window.URL.createObjectURL(new Blob(["made"])); a.click()\'>make</button>'
    )
    view = await (await house.browser()).click(index(view.text, "make"))
    assert view.notes == ("Downloaded ~/Downloads/made.txt (4 bytes).",)
    assert (house.home / "Downloads" / "made.txt").read_text() == "made"


async def test_no_download_takes_the_place_of_another(house: House, report: str) -> None:
    browser = await house.browser()
    told = [(await browser.navigate(report)).notes[0] for _ in range(2)]
    await house.browsers.release(house.session_id)  # as after a while without use
    browser = await house.browser()
    told.append((await browser.navigate(report)).notes[0])
    assert [each.split(" (")[0] for each in told] == [
        "Downloaded ~/Downloads/report 1.csv",
        "Downloaded ~/Downloads/2/report 1.csv",
        "Downloaded ~/Downloads/3/report 1.csv",
    ]
    assert len([path for path in (house.home / "Downloads").rglob("*.csv")]) == 3


async def test_a_long_download_is_told_to_be_under_way_and_told_again_when_it_is_there(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {**ATTACHED, "Content-Length": "3000"}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(b"x" * 2000)
        request.wfile.flush()
        house.site.over.wait(30)
        request.wfile.write(b"x" * 1000)

    monkeypatch.setattr("app.infrastructure.browser.session.DOWNLOAD_SECONDS", 0.3)
    house.site.pages["/slow"] = slow
    browser = await house.browser()
    view = await browser.navigate(house.site.url("/slow"))
    assert view.notes[0].startswith("~/Downloads/report 1.csv is being downloaded: ")
    house.site.over.set()
    notes: tuple[str, ...] = ()
    async with asyncio.timeout(60):
        while not notes:
            notes = (await browser.view()).notes
    assert notes == ("Downloaded ~/Downloads/report 1.csv (3.0 KB).",)


async def test_a_name_that_leads_out_of_the_folder_does_not(house: House) -> None:
    headers = {"Content-Disposition": 'attachment; filename="../../evil.sh"'}
    house.site.pages["/evil"] = Page(b"evil", "application/octet-stream", headers=headers)
    await (await house.browser()).navigate(house.site.url("/evil"))
    assert [path.name for path in house.home.rglob("*evil*")] != []
    assert all((house.home / "Downloads") in path.parents for path in house.home.rglob("*evil*"))
    assert not (house.home / "evil.sh").exists()


@pytest.mark.parametrize("path", ["~/photo.png", "photo.png", "/home/ubuntu/photo.png"])
async def test_a_file_of_the_workspace_is_put_into_a_file_field_and_sent(house: House, path: str) -> None:
    (house.home / "photo.png").write_bytes(b"screenshot bytes")
    house.site.html("<p>thanks</p>", "/sent")
    view = await house.show(FORM.format(more=""))
    browser = await house.browser()
    view = await browser.input(index(view.text, '"File"'), path, press_enter=False)
    assert 'file "File" = "photo.png"' in view.text
    view = await browser.click(index(view.text, "send"))
    assert view.text == "thanks"
    assert b"screenshot bytes" in house.site.uploads[0]
    assert b'filename="photo.png"' in house.site.uploads[0]


async def test_several_files_go_into_a_field_that_takes_several(house: House) -> None:
    for name in ("a.txt", "b.txt"):
        (house.home / name).write_text(name)
    view = await house.show(FORM.format(more="multiple"))
    view = await (await house.browser()).input(index(view.text, '"File"'), "~/a.txt\n~/b.txt\n", press_enter=False)
    assert '= "a.txt, b.txt"' in view.text


async def test_a_field_in_a_frame_of_another_site_takes_a_file(house: House) -> None:
    (house.home / "a.txt").write_text("a")
    house.site.html(FORM.format(more=""), "/inner")
    view = await house.show(f"<iframe src='{house.site.url('/inner', host='localhost')}'></iframe>")
    view = await (await house.browser()).input(index(view.text, '"File"'), "~/a.txt", press_enter=False)
    assert '= "a.txt"' in view.text


async def test_a_file_that_is_not_there_gets_a_clear_word(house: House) -> None:
    view = await house.show(FORM.format(more=""))
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match=r"There is no file ~/missing\.png") as failure:
        await browser.input(index(view.text, '"File"'), "~/missing.png", press_enter=False)
    assert failure.value.status == 404
    with pytest.raises(BrowserFailure, match="Give the path of the file"):
        await browser.input(index(view.text, '"File"'), " ", press_enter=False)


async def test_a_button_that_asks_for_a_file_gets_it(house: House) -> None:
    (house.home / "a.txt").write_text("a")
    view = await house.show(
        '<button onclick=\'const i = document.createElement("input"); i.type = "file";'
        " i.onchange = () => p.textContent = i.files[0].name; i.click()'>Upload</button><p id=p></p>"
    )
    browser = await house.browser()
    number = index(view.text, "Upload")
    view = await browser.click(number)
    assert view.notes == ("The page asks for a file: give its path with browser_input.",)
    view = await browser.input(number, "~/a.txt", press_enter=False)
    assert "a.txt" in view.text
