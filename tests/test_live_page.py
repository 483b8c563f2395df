"""The live page in a browser, as a reader uses it: with the mouse, with keys, from a link."""

import functools
import http.server
import threading

import pytest
from PIL import Image

import live
from mllama_lite import load
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.rope import apply_rope_interleaved

FOLDER = find_folder()
PICTURE = FOLDER / "pictures" / "mixed.png"


@pytest.fixture(scope="module")
def site(live_site):
    """The folder of a page that holds the live model and nothing else."""
    live.write_page(live_site, "index", '<div class="mllama-live"></div>')
    return live_site


@pytest.fixture
def page(browser):
    """A page that fails the test if a script fails or anything is written to the console."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page, said = context.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    yield page
    context.close()
    assert said == []


@pytest.fixture(scope="module")
def vlm():
    return load(device="cpu", dtype="float32")


def opened(page, site, state=""):
    page.goto(f"{(site / 'index.html').as_uri()}{state}")
    page.wait_for_selector("[data-live=ask]")
    return page


def answered(page):
    """Wait until the answer is there, and return it."""
    page.wait_for_function(
        """() => { const answer = document.querySelector("[data-live=answer]");
        return answer.textContent && !answer.hasAttribute("aria-busy"); }""",
        timeout=60_000,
    )
    return page.inner_text("[data-live=answer]")


def asked(page, question=None):
    if question:
        page.fill("[data-live=question]", question)
    page.click("[data-live=ask]")
    return answered(page)


def test_it_answers_from_a_folder_as_the_package_does(page, site, vlm):
    opened(page, site)
    for name in ("digits", "mixed", "one", "tall"):
        page.check(f"input[value={name}]")
        for question in ("What is in the picture?", "How many digits are there?"):
            want = vlm.ask(question, FOLDER / "pictures" / f"{name}.png")
            assert asked(page, question) == want
    assert "tokens a second" in page.inner_text("[data-live=tokens-per-second]")


def test_a_server_is_asked_for_its_own_files_alone(browser, site, vlm):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *a: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page, requests = browser.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("[data-live=ask]")
        before = [url for url in requests if "/packed/" in url and "index" not in url]
        assert before == []  # the weights come with the first question
        assert asked(page) == vlm.ask(
            "What is in the picture?", FOLDER / "pictures/digits.png"
        )
    finally:
        page.close()
        server.shutdown()
    own = f"http://127.0.0.1:{server.server_port}/"
    assert [url for url in requests if not url.startswith((own, "data:"))] == []


def test_a_picture_of_ones_own(page, site, vlm, tmp_path):
    opened(page, site)
    page.check("input[value=own]")
    page.set_input_files("[data-live=picture]", PICTURE)
    question = "What is in the picture?"
    assert asked(page, question) == vlm.ask(question, PICTURE)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("[data-live=picture]", broken)
    page.wait_for_selector("text=broken.png cannot be read here")


def draw_seven(page):
    box = page.locator("canvas.live-picture").bounding_box()
    points = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)]
    for i, (x, y) in enumerate(points):
        place = box["x"] + x * box["width"], box["y"] + y * box["height"]
        page.mouse.move(*place, steps=12)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def test_a_drawing_is_asked_about_and_carried_by_a_link(page, site, browser):
    opened(page, site)
    page.check("input[value=paper]")
    page.select_option("[aria-label=Colour]", "green")
    draw_seven(page)
    assert asked(page, "What is in the picture?") == "green 7"
    other = browser.new_page()
    other.goto(page.url)
    other.wait_for_selector("[data-live=ask]")
    assert asked(other) == "green 7"
    other.close()
    page.click("text=Clear")
    assert page.inner_text("[data-live=answer]") == ""
    assert asked(page) == "nothing"


def test_stamps_and_keys(page, site):
    """A shape stamped without a mouse."""
    opened(page, site)
    page.check("input[value=paper]")
    page.select_option("[aria-label=Tool]", "star")
    page.select_option("[aria-label=Colour]", "red")
    page.focus("canvas.live-picture")
    for key in ("ArrowLeft", "ArrowUp", " "):
        page.keyboard.press(key)
    assert asked(page, "What is in the picture?") == "red star"
    page.click("text=Undo >> nth=0")
    page.select_option("[aria-label=Tool]", "pen")
    page.focus("canvas.live-picture")
    for keys in ((" ", 1), ("ArrowDown", 12), (" ", 1)):
        for _ in range(keys[1]):
            page.keyboard.press(keys[0])
    assert asked(page, "Which digit is this?") == "1"


def change(page, site, changes, question="What is in the picture?", picture="digits"):
    from urllib.parse import urlencode

    state = urlencode({"picture": picture, "question": question, "changes": changes})
    opened(page, site, f"#{state}")  # without loading it again, where it is open
    page.wait_for_selector("[data-live=answer]:empty", state="attached")
    return asked(page)


def said(vlm, picture):
    """What the package says about a picture, as long as the page lets an answer become."""
    return vlm.ask("What is in the picture?", picture, max_new_tokens=64)


def test_every_switch_does_what_the_package_does(page, site, vlm):
    """Each change, set by a link, gives the answer of the package changed in the same way.

    tests/test_live.py compares the logits, of every switch.
    """
    path = FOLDER / "pictures" / "digits.png"
    image, model = Image.open(path).convert("RGB"), vlm.model
    layers = model.language_model.model.layers
    plain = said(vlm, path)

    def without(index):
        layer, keep = layers[index], layers[index].forward
        layer.forward = lambda hidden, step: hidden
        answer = said(vlm, path)
        layer.forward = keep
        return answer

    for index in range(7):
        assert change(page, site, f'{{"drop":[{index}]}}') == without(index)
        assert plain in page.inner_text("text=Without the changes")
    gate = layers[3].cross_attn_attn_gate
    trained = gate.item()
    gate.data.fill_(0.0)
    assert change(page, site, '{"gates":{"attn3":0}}') == said(vlm, path)
    gate.data.fill_(trained)
    white = Image.new("RGB", image.size, "white")
    assert change(page, site, '{"shown":"blank"}') == said(vlm, white)
    mixed = FOLDER / "pictures" / "mixed.png"
    assert change(page, site, '{"shown":"wrong"}') == said(vlm, mixed)
    wide = image.resize((112, 56), Image.Resampling.BILINEAR)
    assert change(page, site, '{"stretched":true}') == said(vlm, wide)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mllama_lite.attention.apply_rope", apply_rope_interleaved)
        assert change(page, site, '{"rotary":true}') == said(vlm, path)


def test_a_switch_asks_again_and_all_is_undone(page, site):
    opened(page, site)
    first = asked(page)
    page.click("summary")
    for gate in ("attn1", "attn3", "attn5"):
        slider = page.locator(f"[data-gate={gate}]")
        slider.evaluate(
            "s => { s.value = 0; s.dispatchEvent(new Event('input'));"
            " s.dispatchEvent(new Event('change')); }"
        )
    page.wait_for_function(
        """first => document.querySelector("[data-live=unchanged]").textContent.includes(first)
        && document.querySelector("[data-live=answer]").textContent !== first""",
        arg=first,
    )
    page.click("text=Undo all changes")
    page.wait_for_function(
        "want => document.querySelector('[data-live=answer]').textContent === want",
        arg=first,
    )
    assert "changes" not in page.url


def test_where_it_looked_is_drawn_for_every_token_layer_and_head(page, site):
    opened(page, site)
    asked(page, "Read the digits from left to right.")
    assert page.locator(".live-looks canvas").count() == 3 * 5
    labels = []
    for i in range(3):
        page.locator(".live-token").nth(i).focus()
        canvas = page.locator(".live-looks canvas").nth(5)
        labels.append(canvas.get_attribute("aria-label"))
    assert all(label.startswith("Layer 3, all heads: ") for label in labels)
    assert len(set(labels)) == 3


@pytest.mark.parametrize(
    "state",
    [
        "#picture=nowhere&changes={",
        "#marks=[1]&picture=paper",
        "#changes=%7B%22drop%22:7%7D",
    ],
)
def test_a_damaged_link_opens_the_page(page, site, state):
    opened(page, site, state)
    assert page.input_value("[data-live=question]") == "What is in the picture?"


def test_an_empty_question_is_refused(page, site):
    opened(page, site)
    page.fill("[data-live=question]", "  ")
    page.click("[data-live=ask]")
    page.wait_for_selector("text=The question is empty")
