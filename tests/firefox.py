"""Firefox by WebDriver BiDi: as little of it as the tests need.

Playwright drives a Firefox of its own build; this drives the one that a system has.
"""

import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import websocket

NAMES = ("firefox", "firefox-esr")
LISTENS = re.compile(r"WebDriver BiDi listening on (ws://\S+)")


def found() -> str | None:
    """The path of a Firefox, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Firefox:
    """A headless Firefox with one tab.

    Attributes:
        said: errors and warnings of the console, and of scripts.
    """

    def __init__(self, program: str, width: int = 900, height: int = 900) -> None:
        self.profile = tempfile.mkdtemp()
        arguments = [
            "--headless",
            "--remote-debugging-port",
            "0",
            "--profile",
            self.profile,
        ]
        size = ["--width", str(width), "--height", str(height), "--no-remote"]
        said = Path(self.profile, "stderr")
        with open(said, "wb") as file:
            words = [program, *arguments, *size]
            self.process = subprocess.Popen(words, stderr=file, stdout=file)
        while not (match := LISTENS.search(said.read_text(errors="replace"))):
            if self.process.poll() is not None:
                raise RuntimeError(f"Firefox ended: {said.read_text(errors='replace')}")
            time.sleep(0.1)
        self.socket = websocket.create_connection(
            f"{match[1]}/session", timeout=120, suppress_origin=True
        )
        self.number, self.said = 0, []
        self.send("session.new", capabilities={})
        self.send("session.subscribe", events=["log.entryAdded"])
        tree = self.send("browsingContext.getTree")
        self.tab = tree["contexts"][0]["context"]

    def send(self, method: str, **parameters):
        """A command's result; what the console says meanwhile is kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("method") == "log.entryAdded":
                entry = answer["params"]
                if entry["level"] in ("error", "warn"):
                    self.said.append(entry.get("text"))
            elif answer.get("id") == self.number:
                if answer["type"] == "error":
                    raise RuntimeError(f"{method}: {answer['message']}")
                return answer["result"]

    def open(self, address: str) -> None:
        self.send(
            "browsingContext.navigate", context=self.tab, url=address, wait="complete"
        )

    def evaluate(self, script: str):
        """The value of an expression, waited for; anything that JSON can hold."""
        result = self.send(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({script})))()",
            target={"context": self.tab},
            awaitPromise=True,
        )
        if result["type"] == "exception":
            raise RuntimeError(result["exceptionDetails"]["text"])
        value = result["result"]
        return None if value["type"] == "undefined" else json.loads(value["value"])

    def wait_for(self, condition: str, seconds: int = 60) -> None:
        """Until an expression is true."""
        self.evaluate(
            f"""new Promise((done, fail) => {{
            const end = Date.now() + {1000 * seconds};
            const look = () => {condition} ? done(true)
              : Date.now() > end ? fail(new Error("not within {seconds} s")) : setTimeout(look, 50);
            look(); }})"""
        )

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(Path(self.profile), ignore_errors=True)
