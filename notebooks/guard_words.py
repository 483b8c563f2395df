"""A list of words, the filter that everybody writes first; for chapter 19."""

import re

WORDS = """abuse assassin attack blackmail bomb bribe burgl cheat cocaine counterfeit deceiv drug
evade explo fake forge fraud gun hack harass hate hijack illegal kill launder malware meth murder
phish poison rob scam sexual shoot smuggle spy steal stole suicid threat traffic undetected
vandal virus weapon""".split()
PATTERN = re.compile(r"\b(?:" + "|".join(WORDS) + ")", re.IGNORECASE)


def hits(text):
    """How many words of the list a text has; each stands for all that begin like it."""
    return len(PATTERN.findall(text))
