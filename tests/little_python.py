"""The page's small part of Python in Node.js, for the tests that compare it."""

import live
from node import Node


class LittlePython(Node):
    """The page's scripts that read and run code."""

    def __init__(self):
        super().__init__("little_python.js", live.LIVE)

    def results(self, sources):
        return self("results", sources=sources)
