"""Downloads into the workspace, and uploads from it."""

import asyncio
from http.server import BaseHTTPRequestHandler

import pytest

from app.domain.errors import BrowserFailure
from app.domain.models.sandbox import FileText
from app.infrastructure.browser import tab
from tests.integration.browser.browser_harness import BrowserHarness, FolderSandbox, number_of
from tests.integration.browser.local_site import Page

pytestmark = pytest.mark.asyncio(loop_scope="session")

ATTACHED = {"Content-Disposition": 'attachment; filename="report 1.csv"'}
FORM = (
    "<form method=post enctype=multipart/form-data action=/sent>"
    "<input type=file name=f aria-label=File {more}><button>send</button></form>"
)


@pytest.fixture
def report(harness: BrowserHarness) -> str:
    harness.site.pages["/report"] = Page(b"a;b\n1;2\n", "text/csv", headers=ATTACHED)
    return harness.site.url("/report")


async def test_click_on_file_link_notes_path_and_size(harness: BrowserHarness, report: str) -> None:
    view = await harness.open_page("<p>page</p><a href='/report'>get it</a>")
    view = await (await harness.browser()).click(number_of(view.text, "get it"))
    assert view.notes == ("Downloaded ~/Downloads/report 1.csv (8 bytes).",)
    assert (harness.home / "Downloads" / "report 1.csv").read_bytes() == b"a;b\n1;2\n"
    assert "page" in view.text


async def test_navigate_to_file_keeps_previous_page(harness: BrowserHarness, report: str) -> None:
    await harness.open_page("<p>page</p>")
    view = await (await harness.browser()).navigate(report)
    assert view.notes == ("Downloaded ~/Downloads/report 1.csv (8 bytes).",)
    assert view.text == "page"


async def test_file_link_with_new_tab_leaves_no_tab(harness: BrowserHarness, report: str) -> None:
    view = await harness.open_page("<p>page</p><a href='/report' target=_blank>get it</a>")
    view = await (await harness.browser()).click(number_of(view.text, "get it"))
    assert "Downloaded ~/Downloads/report 1.csv (8 bytes)." in view.notes
    assert "page" in view.text


async def test_blob_download_is_saved(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        '<button onclick=\'const a = document.createElement("a"); a.download = "made.txt";'
        ' a.href = window.URL.createObjectURL(new Blob(["made"])); a.click()\'>make</button>'
    )
    view = await (await harness.browser()).click(number_of(view.text, "make"))
    assert view.notes == ("Downloaded ~/Downloads/made.txt (4 bytes).",)
    assert (harness.home / "Downloads" / "made.txt").read_text() == "made"


async def test_downloads_of_same_name_get_separate_folders(harness: BrowserHarness, report: str) -> None:
    browser = await harness.browser()
    notes = [(await browser.navigate(report)).notes[0] for _ in range(2)]
    await harness.browsers.release(harness.session_id)  # as the sweeper does with an idle connection
    browser = await harness.browser()
    notes.append((await browser.navigate(report)).notes[0])
    assert [each.split(" (")[0] for each in notes] == [
        "Downloaded ~/Downloads/report 1.csv",
        "Downloaded ~/Downloads/2/report 1.csv",
        "Downloaded ~/Downloads/3/report 1.csv",
    ]
    assert len([path for path in (harness.home / "Downloads").rglob("*.csv")]) == 3


async def test_long_download_is_noted_in_progress_and_when_complete(
    harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond_slowly(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {**ATTACHED, "Content-Length": "3000"}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(b"x" * 2000)
        request.wfile.flush()
        harness.site.released.wait(30)
        request.wfile.write(b"x" * 1000)

    monkeypatch.setattr("app.infrastructure.browser.session.DOWNLOAD_SECONDS", 0.3)
    harness.site.pages["/slow"] = respond_slowly
    browser = await harness.browser()
    view = await browser.navigate(harness.site.url("/slow"))
    assert view.notes[0].startswith("~/Downloads/report 1.csv is being downloaded: ")
    harness.site.released.set()
    notes: tuple[str, ...] = ()
    async with asyncio.timeout(60):
        while not notes:
            notes = (await browser.view()).notes
    assert notes == ("Downloaded ~/Downloads/report 1.csv (3.0 KB).",)


async def test_download_name_cannot_escape_folder(harness: BrowserHarness) -> None:
    headers = {"Content-Disposition": 'attachment; filename="../../evil.sh"'}
    harness.site.pages["/evil"] = Page(b"evil", "application/octet-stream", headers=headers)
    await (await harness.browser()).navigate(harness.site.url("/evil"))
    assert [path.name for path in harness.home.rglob("*evil*")] != []
    assert all((harness.home / "Downloads") in path.parents for path in harness.home.rglob("*evil*"))
    assert not (harness.home / "evil.sh").exists()


@pytest.mark.parametrize("path", ["~/photo.png", "photo.png", "/home/ubuntu/photo.png"])
async def test_upload_workspace_file(harness: BrowserHarness, path: str) -> None:
    (harness.home / "photo.png").write_bytes(b"screenshot bytes")
    harness.site.html("<p>thanks</p>", "/sent")
    view = await harness.open_page(FORM.format(more=""))
    browser = await harness.browser()
    view = await browser.input(number_of(view.text, '"File"'), path, press_enter=False)
    assert 'file "File" = "photo.png"' in view.text
    view = await browser.click(number_of(view.text, "send"))
    assert view.text == "thanks"
    assert b"screenshot bytes" in harness.site.uploads[0]
    assert b'filename="photo.png"' in harness.site.uploads[0]


async def test_upload_several_files(harness: BrowserHarness) -> None:
    for name in ("a.txt", "b.txt"):
        (harness.home / name).write_text(name)
    view = await harness.open_page(FORM.format(more="multiple"))
    view = await (await harness.browser()).input(
        number_of(view.text, '"File"'), "~/a.txt\n~/b.txt\n", press_enter=False
    )
    assert '= "a.txt, b.txt"' in view.text


async def test_upload_of_folder_sends_its_files(harness: BrowserHarness) -> None:
    (harness.home / "folder" / "inner").mkdir(parents=True)
    (harness.home / "folder" / "inner" / "a.txt").write_text("a")
    view = await harness.open_page(FORM.format(more="webkitdirectory"))
    browser = await harness.browser()
    number = number_of(view.text, '"File"')
    assert '= "a.txt"' in (await browser.input(number, "~/folder", press_enter=False)).text
    path = await browser.execute("document.querySelector('[type=file]').files[0].webkitRelativePath")
    assert path.value == "folder/inner/a.txt"
    with pytest.raises(BrowserFailure, match=r"There is no folder ~/folder/inner/a\.txt"):
        await browser.input(number, "~/folder/inner/a.txt", press_enter=False)


@pytest.mark.parametrize("more", ["", "webkitdirectory"])
async def test_several_paths_for_single_file_field_fail_and_change_nothing(harness: BrowserHarness, more: str) -> None:
    for name in ("a.txt", "b.txt"):
        (harness.home / name).write_text(name)
    view = await harness.open_page(FORM.format(more=more))
    with pytest.raises(BrowserFailure, match=r"takes one (file|folder) only"):
        await (await harness.browser()).input(number_of(view.text, '"File"'), "~/a.txt\n~/b.txt", press_enter=False)
    assert 'file "File" (browser_input with a path)' in await harness.page_text()


async def test_upload_in_cross_site_frame(harness: BrowserHarness) -> None:
    (harness.home / "a.txt").write_text("a")
    harness.site.html(FORM.format(more=""), "/inner")
    view = await harness.open_page(f"<iframe src='{harness.site.url('/inner', host='localhost')}'></iframe>")
    view = await (await harness.browser()).input(number_of(view.text, '"File"'), "~/a.txt", press_enter=False)
    assert '= "a.txt"' in view.text


async def test_upload_missing_file_fails_with_404(harness: BrowserHarness) -> None:
    view = await harness.open_page(FORM.format(more=""))
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match=r"There is no file ~/missing\.png") as failure:
        await browser.input(number_of(view.text, '"File"'), "~/missing.png", press_enter=False)
    assert failure.value.status == 404
    with pytest.raises(BrowserFailure, match="Give the path of the file"):
        await browser.input(number_of(view.text, '"File"'), " ", press_enter=False)


async def test_upload_to_file_chooser_of_button(harness: BrowserHarness) -> None:
    (harness.home / "a.txt").write_text("a")
    view = await harness.open_page(
        '<button onclick=\'const i = document.createElement("input"); i.type = "file";'
        " i.onchange = () => p.textContent = i.files[0].name; i.click()'>Upload</button><p id=p></p>"
    )
    browser = await harness.browser()
    number = number_of(view.text, "Upload")
    view = await browser.click(number)
    assert view.notes == ("The page asks for a file: give its path with browser_input.",)
    view = await browser.input(number, "~/a.txt", press_enter=False)
    assert "a.txt" in view.text


async def test_upload_unreadable_file_fails_and_changes_nothing(
    harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def file_read(_: FolderSandbox, file: str, **__: object) -> FileText:
        return FileText(file=file, content="")  # the sandbox can read what the browser cannot

    monkeypatch.setattr(FolderSandbox, "file_read", file_read)
    (harness.home / "a.txt").write_text("a")
    view = await harness.open_page(FORM.format(more="multiple"))
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match=r"cannot read ~/secret\.txt: chmod a\+r"):
        await browser.input(number_of(view.text, '"File"'), "~/a.txt\n~/secret.txt", press_enter=False)
    assert 'file "File" (browser_input with a path)' in await harness.page_text()


@pytest.mark.parametrize(("seconds", "is_taken"), [(6.0, True), (0.0, False)])
async def test_file_dialog_after_action_is_for_the_service_or_a_person(
    harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch, seconds: float, is_taken: bool
) -> None:
    monkeypatch.setattr(tab, "FILE_DIALOG_SECONDS", seconds)
    view = await harness.open_page(
        "<input type=file id=f hidden><button onclick='f.click()'>now</button>"
        "<button onclick='setTimeout(() => { f.click(); document.title = \"asked\" }, 1500)'>later</button>"
    )
    browser = await harness.browser()
    await browser.click(number_of(view.text, "later"))
    async with asyncio.timeout(30):
        while (await browser.view()).title != "asked":
            await asyncio.sleep(0.02)
    (harness.home / "a.txt").write_text("a")
    if is_taken:
        await browser.input(None, "~/a.txt", press_enter=False)
        assert (await browser.execute("f.files[0].name")).value == "a.txt"
    now = await browser.click(number_of(view.text, '"now"'))
    assert now.notes == ("The page asks for a file: give its path with browser_input.",)
