"""Controls for a live notebook: tiles, attention, the next token, and a chat.

    from explorers import TileExplorer

    TileExplorer()

Each is a widget that computes with the package as it is moved. A page that is only read has no
kernel to compute with: there the name is shown, and the figures of the book move instead.
"""

import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image, ImageDraw

from mllama_lite.attention_maps import Looks, look, patch_map
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.errors import InputError
from mllama_lite.generation import Sampler, Sampling, probabilities
from mllama_lite.tiles import choose_canvas, open_image, resized_size
from mllama_lite.tokenizer import ImagePart
from mllama_lite.vlm import VLM

ORANGE = (230, 110, 0)


class Explorer:
    """Controls, what they show, and a line of text on what it is or what went wrong.

    Attributes:
        view: the widget.
        said: the line of text.
    """

    name = ""

    def __init__(self) -> None:
        self.said = widgets.HTML()
        self.view = widgets.VBox()

    def __repr__(self) -> str:
        return (
            f"{self.name}: run this cell in a notebook, and its controls appear here."
        )

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return self.view._repr_mimebundle_(**options) | {"text/plain": repr(self)}

    def say(self, text: str) -> None:
        self.said.value = html.escape(text)

    def whenever(self, *controls: widgets.Widget) -> None:
        """Call `show` now, and whenever one of the controls changes."""
        for control in controls:
            control.observe(lambda change: self.try_to(self.show), "value")
        self.try_to(self.show)

    def on(self, button: widgets.Button, do: Callable[[], None]) -> None:
        button.on_click(lambda _: self.try_to(do))

    def try_to(self, do: Callable[[], None]) -> None:
        """What can't be done is said; an error in a callback would vanish."""
        try:
            do()
        except InputError as error:
            self.say(str(error))

    def show(self) -> None:
        """Compute, and show what comes out."""


class PictureChoice:
    """One of the small model's pictures, or one of the reader's.

    Attributes:
        controls: the two widgets.
    """

    def __init__(self, first: str = "digits") -> None:
        self.folder = find_folder() / "pictures"
        names = sorted(path.stem for path in self.folder.glob("*.png"))
        self.names = widgets.Dropdown(description="Picture", options=names, value=first)
        self.upload = widgets.FileUpload(description="Another", multiple=False)
        self.controls = (self.names, self.upload)

    @property
    def image(self) -> Image.Image:
        if self.upload.value:
            return open_image(bytes(self.upload.value[0]["content"]))
        return open_image(self.folder / f"{self.names.value}.png")


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class TileExplorer(Explorer):
    """Which canvas a picture gets, how large it is on it, and how much is padding.

    Args:
        tile: side of a tile in pixels.
    """

    name = "Tile explorer"

    def __init__(self, tile: int = 560) -> None:
        super().__init__()
        self.tile = tile
        sizes = {"min": 1, "max": 4 * tile, "continuous_update": True}
        self.width = widgets.IntSlider(tile * 3 // 2, description="Width", **sizes)
        self.height = widgets.IntSlider(tile, description="Height", **sizes)
        self.upload = widgets.FileUpload(description="A picture", multiple=False)
        self.picture = widgets.Image(format="png")
        self.view.children = (
            self.width,
            self.height,
            self.upload,
            self.picture,
            self.said,
        )
        self.upload.observe(lambda change: self.try_to(self.take_size), "value")
        self.whenever(self.width, self.height, self.upload)

    @property
    def image(self) -> Image.Image | None:
        if not self.upload.value:
            return None
        return open_image(bytes(self.upload.value[0]["content"]))

    def take_size(self) -> None:
        if image := self.image:
            self.width.max = max(self.width.max, image.width)
            self.height.max = max(self.height.max, image.height)
            self.width.value, self.height.value = image.size

    def show(self) -> None:
        width, height = self.width.value, self.height.value
        rows, columns = canvas = choose_canvas(height, width, self.tile)
        new_height, new_width = resized_size(height, width, canvas, self.tile)
        unit = 140 / self.tile  # a tile is shown 140 pixels wide
        drawn = Image.new("RGB", (140 * columns, 140 * rows), (200, 200, 200))
        size = max(1, round(new_width * unit)), max(1, round(new_height * unit))
        shown = self.image or Image.new("RGB", (1, 1), (86, 180, 233))
        drawn.paste(shown.resize(size), (0, 0))
        draw = ImageDraw.Draw(drawn)
        for row in range(rows):
            for column in range(columns):
                corner = 140 * column, 140 * row
                draw.rectangle(
                    (*corner, corner[0] + 139, corner[1] + 139), outline=ORANGE
                )
        self.picture.value = as_png(drawn)
        empty = 1 - new_width * new_height / (rows * columns * self.tile**2)
        self.say(
            f"{width} x {height} pixels go on {rows} x {columns} tiles (rows x columns), as "
            f"{new_width} x {new_height}; {empty:.0%} of the canvas is padding."
        )


class AttentionExplorer(Explorer):
    """Where each token of an answer was looked up, by layer and head.

    Args:
        vlm: VLM, small enough to answer at once.
    """

    name = "Attention explorer"

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm
        self.looks: Looks | None = None
        self.choice = PictureChoice()
        self.question = widgets.Text("What is in the picture?", description="Question")
        self.ask = widgets.Button(description="Ask")
        self.token = widgets.SelectionSlider(options=["-"], description="Token")
        layers = [layer.layer for layer in vlm.model.cross_attention_layers]
        self.layer = widgets.Dropdown(description="Layer", options=layers)
        heads = range(vlm.config.text.num_attention_heads)
        heads = [("all", None), *((str(n), n) for n in heads)]
        self.head = widgets.Dropdown(description="Head", options=heads)
        self.picture = widgets.Image(format="png")
        asked = widgets.HBox((*self.choice.controls, self.question, self.ask))
        chosen = widgets.HBox((self.token, self.layer, self.head))
        self.view.children = (asked, self.said, chosen, self.picture)
        self.on(self.ask, self.answer)
        self.whenever(self.token, self.layer, self.head)

    def answer(self) -> None:
        self.looks = None
        looks = look(self.vlm, self.question.value, self.choice.image)
        pieces = [(f"{n} {piece!r}", n) for n, piece in enumerate(looks.pieces)]
        self.token.options = pieces or ["-"]
        self.looks = looks
        self.show()

    def show(self) -> None:
        if self.looks is None or not self.looks.pieces:
            self.say(
                "Ask, then move the token." if self.looks is None else "No answer."
            )
            return
        config, image = self.vlm.config.vision, self.looks.images[0]
        weights = self.looks.weights[0][self.layer.value][
            self.token.value
        ]  # [H, tiles, P]
        if self.head.value is not None:
            weights = weights[self.head.value : self.head.value + 1]
        size = image.height, image.width
        canvas = choose_canvas(*size, config.image_size, config.max_num_tiles)
        high, wide = resized_size(*size, canvas, config.image_size)
        share = patch_map(weights.mean(dim=0), canvas)
        mask = Image.fromarray((share / share.max() * 200).numpy().astype(np.uint8))
        zoom = mask.width / (canvas[1] * config.image_size)
        mask = mask.resize(image.size, 0, (0, 0, wide * zoom, high * zoom))
        grey = image.convert("L").convert("RGB")
        seen = Image.composite(Image.new("RGB", image.size, ORANGE), grey, mask)
        self.picture.value = as_png(seen.resize((2 * image.width, 2 * image.height), 0))
        at_best = share.max() / weights.mean(dim=0).sum()
        self.say(
            f"Answer: {self.looks.answer}. Orange is attention; its fullest patch has "
            f"{at_best:.0%} of what these heads gave to the picture."
        )


class SamplingPlayground(Explorer):
    """The next token's probabilities under every setting; the reader writes the answer.

    Args:
        vlm: VLM with a tokenizer, small enough to answer at once.
    """

    name = "Sampling playground"
    shown = 8  # tokens

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm
        self.written: list[int] = []
        self.choice = PictureChoice()
        self.question = widgets.Text("What is in the picture?", description="Question")
        number = widgets.FloatSlider
        self.temperature = number(
            1, min=0.05, max=3, step=0.05, description="temperature"
        )
        self.top_k = widgets.IntSlider(0, min=0, max=20, description="top_k")
        self.top_p = number(1, min=0.05, max=1, step=0.05, description="top_p")
        self.min_p = number(0, min=0, max=1, step=0.05, description="min_p")
        self.tokens = [widgets.Button() for _ in range(self.shown)]
        self.draw = widgets.Button(description="Draw one")
        self.back = widgets.Button(description="Take one back")
        settings = (self.temperature, self.top_k, self.top_p, self.min_p)
        asked = (*self.choice.controls, self.question)
        self.view.children = (
            widgets.HBox(asked),
            widgets.HBox(settings),
            self.said,
            widgets.HBox(self.tokens, layout={"flex_flow": "row wrap"}),
            widgets.HBox((self.draw, self.back)),
        )
        for place, button in enumerate(self.tokens):
            self.on(button, lambda place=place: self.write(int(self.order[place])))
        self.on(self.draw, lambda: self.write(self.drawn()))
        self.on(self.back, lambda: self.write(None))
        for control in asked:
            control.observe(lambda change: self.try_to(self.begin), "value")
        self.try_to(self.begin)
        self.whenever(*settings)

    @property
    def sampling(self) -> Sampling:
        names = ("temperature", "top_k", "top_p", "min_p")
        return Sampling(**{name: getattr(self, name).value for name in names})

    def begin(self) -> None:
        """A new question: nothing is written yet."""
        self.written, self.image = [], self.choice.image
        content = [ImagePart(self.image), self.question.value]
        message = {"role": "user", "content": content}
        self.prompt, _ = self.vlm.tokenizer.encode_chat([message])
        self.compute()

    def compute(self) -> None:
        with torch.inference_mode():
            tokens = self.prompt + self.written
            self.logits = self.vlm.logits(tokens, [self.image])[-1:].cpu()
        self.show()

    def drawn(self) -> int:
        return int(Sampler(self.sampling, self.logits.device)(self.logits)[0])

    def write(self, token: int | None) -> None:
        """Add a token, or take the last one back."""
        if token is None:
            self.written = self.written[:-1]
        elif not self.ended:
            self.written = [*self.written, token]
        self.compute()

    @property
    def ended(self) -> bool:
        return bool(self.written) and self.written[-1] in self.vlm.tokenizer.stop_ids

    def show(self) -> None:
        decode = self.vlm.tokenizer.decode
        chances = probabilities(self.logits, self.sampling)[0]
        self.order = chances.argsort(descending=True)[: self.shown]
        for button, token in zip(self.tokens, self.order.tolist()):
            button.description = f"{decode([token])!r} {chances[token]:.3f}"
            button.disabled = self.ended or not chances[token]
        left = int((chances > 0).sum())
        end = "The answer has ended." if self.ended else f"{left} tokens can come next."
        self.say(f"Written: {decode(self.written, skip_special=True)!r}. {end}")


class ChatBox(Explorer):
    """A conversation with pictures.

    Args:
        vlm: VLM with a tokenizer.
        max_new_tokens: of an answer, at most.
    """

    name = "Chat"

    def __init__(self, vlm: VLM, max_new_tokens: int = 256) -> None:
        super().__init__()
        self.vlm, self.max_new_tokens = vlm, max_new_tokens
        self.history = widgets.HTML()
        self.question = widgets.Text(placeholder="Ask something", description="You")
        self.upload = widgets.FileUpload(description="A picture", multiple=False)
        self.send = widgets.Button(description="Send")
        self.reset = widgets.Button(description="Begin anew")
        line = widgets.HBox((self.question, self.upload, self.send, self.reset))
        self.view.children = (self.history, line, self.said)
        self.on(self.send, self.answer)
        self.on(self.reset, self.begin)
        self.begin()

    def begin(self) -> None:
        self.conversation, self.turns = self.vlm.conversation(), []
        self.history.value = ""
        self.say("")

    def answer(self) -> None:
        """One turn; a question that is refused stays where it is, to be mended."""
        question, files = self.question.value, self.upload.value
        pictures = [bytes(file["content"]) for file in files]
        pieces = self.conversation.stream(question, pictures, self.max_new_tokens)
        self.say("")
        told = f"You: {question}" + "".join(f" [{file['name']}]" for file in files)
        self.turns.append(told)
        self.question.value, self.upload.value = "", ()
        answer = ""
        for piece in pieces:
            answer += piece
            lines = [*self.turns, f"Model: {answer}"]
            self.history.value = "".join(
                f"<p>{html.escape(line)}</p>" for line in lines
            )
        self.turns.append(f"Model: {answer}")
