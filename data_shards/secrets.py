"""What must not be written down: values of secret variables, and passwords inside of URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

NAMED = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|_KEY$", re.I
)
IN_URL = re.compile(r"(?<=://)[^\s/@:'\"]*:[^\s/@'\"]+(?=@)|(?<=://)[^\s/@:'\"]{8,}(?=@)")
SHORTEST = 8  # characters: a shorter value is a switch or a number rather than a secret
HIDDEN = "***"


def is_secret(name: str, value: str) -> bool:
    """Whether a variable must not be written down."""
    return bool(NAMED.search(name) or IN_URL.search(value))


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of variables that are named like a secret, longest first: one may hold another."""
    named = {value for name, value in environment.items() if NAMED.search(name)}
    return sorted((value for value in named if len(value) >= SHORTEST), key=len, reverse=True)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with every secret of the environment, and every user and password of a URL, made `***`."""
    for value in secret_values(environment):
        text = text.replace(value, HIDDEN)
    return IN_URL.sub(HIDDEN, text)
