"""Meta's own builder and parser for Llama Guard 3, as witnesses for chapter 19.

notebooks/witnesses/llama_guard.py is a file of llama-stack 0.2.12, which cannot be imported without
a server's worth of packages. So this one file is run, with stand-ins for the types that it imports;
template, categories and parsing are Meta's. llama_guard_3_1b.jinja is the chat template of Meta's
checkpoint of the 1B, as the package @huggingface/ollama-utils carries it.
"""

import contextlib
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

FOLDER = Path(__file__).resolve().parent / "witnesses"
MODELS = {
    name: f"meta-llama/Llama-Guard-3-{name}" for name in ("1B", "8B", "11B-Vision")
}


class Role(Enum):
    user = "user"


class CoreModelId(Enum):
    llama_guard_3_8b = "Llama-Guard-3-8B"
    llama_guard_3_1b = "Llama-Guard-3-1B"
    llama_guard_3_11b_vision = "Llama-Guard-3-11B-Vision"


class Content:
    """A part of a message: an image, or text."""

    def __init__(self, text=""):
        self.text = text


class ImageContentItem(Content):
    pass


class TextContentItem(Content):
    pass


class UserMessage(SimpleNamespace):
    role = "user"


class Response(SimpleNamespace):
    violation = None


def as_text(content):
    """llama_stack's `interleaved_content_as_str`: parts with a space between them."""
    parts = content if isinstance(content, list) else [content]
    words = {ImageContentItem: "<image>"}
    return " ".join(
        p if isinstance(p, str) else words.get(type(p), p.text) for p in parts
    )


class _StandIns(ModuleType):
    """A module that has every name, each an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Response,), {"INFO": 0, "ERROR": 1})


GIVEN = {
    "Role": Role,
    "CoreModelId": CoreModelId,
    "ImageContentItem": ImageContentItem,
    "TextContentItem": TextContentItem,
    "UserMessage": UserMessage,
    "interleaved_content_as_str": as_text,
}


def _run():
    """The names that Meta's file defines."""
    path = FOLDER / "llama_guard.py"
    source = path.read_text(encoding="utf-8")
    names = [line.split()[1] for line in source.split("\n") if line.startswith("from ")]
    names = [name for name in names if name.startswith(("llama_stack", "."))]
    names = [name.replace(".config", "lg.config") for name in names] + ["lg"]
    for name in list(names):
        parts = name.split(".")
        names += [".".join(parts[: i + 1]) for i in range(len(parts))]
    before = {name: sys.modules.get(name) for name in names}
    try:
        for name in names:
            sys.modules[name] = _StandIns(name)
            sys.modules[name].__dict__.update(GIVEN, __path__=[])
        found = {"__name__": "lg.llama_guard", "__package__": "lg"}
        exec(compile(source, str(path), "exec"), found)
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    return found


META = SimpleNamespace(**{k: v for k, v in _run().items() if not k.startswith("__")})


def shield(model="1B", excluded=()):
    """Meta's LlamaGuardShield for one of MODELS."""
    return META.LlamaGuardShield(MODELS[model], None, list(excluded))


def meta_prompt(messages, model="1B", excluded=(), agent="agent"):
    """Meta's prompt for messages with text; an assistant is called `agent`.

    Their code writes a role as it is called, and the messages of llama-stack call an assistant
    assistant. Meta's documentation, and the chat templates of the checkpoints, have Agent.
    """
    names = {"user": "user", "assistant": agent}
    said = [
        SimpleNamespace(role=names[m["role"]], content=m["content"]) for m in messages
    ]
    return shield(model, excluded).build_prompt(said)


def meta_verdict(answer, excluded=()):
    """None if Meta's parser finds no violation, else the codes as it keeps them.

    Raises:
        ValueError: it is no answer of a guard.
    """
    found = shield(excluded=excluded).get_shield_response(answer).violation
    return None if found is None else found.metadata["violation_type"]


def meta_request(messages, model="1B"):
    """The content of the one message that Meta's `run` sends to the guard."""
    sent = []

    class Inference:
        async def chat_completion(self, model_id, messages, stream):
            sent.extend(messages)
            message = SimpleNamespace(content="safe")
            return SimpleNamespace(completion_message=message)

    asked = META.LlamaGuardShield(MODELS[model], Inference())
    # It waits for nothing, so that it needs no loop, which a notebook has already.
    with contextlib.suppress(StopIteration):
        asked.run(messages).send(None)
    return sent[0].content


def hub_prompt(messages, **settings):
    """The text that the chat template of Meta's checkpoint makes, special tokens included.

    Args:
        messages: dicts with "role" and "content"; an ImagePart becomes an image.
        settings: `categories`, or `excluded_category_keys`.
    """
    from jinja2 import Environment

    text = (FOLDER / "llama_guard_3_1b.jinja").read_text(encoding="utf-8")
    shown = []
    for message in messages:
        content = message["content"]
        parts = [
            {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"}
            for p in (content if isinstance(content, list) else [content])
        ]
        shown.append({"role": message["role"], "content": parts})
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    return template.render(messages=shown, excluded_category_keys=[], **settings)
