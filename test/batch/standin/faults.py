"""What goes wrong with requests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Something that goes wrong with the next requests that match.

    Attributes:
        method: of the request.
        path: regular expression that the path matches from its start.
        what: ``refuse``: answered with `status` before anything is done; ``lose``: done, then answered with `status`;
            ``drop``: the connection ends when half of the request is read; ``cut``: when half of the answer is sent;
            ``shorten``: half of the answer is sent as if it were all.
        status: of the answer.
        text: its body.
        headers: its headers.
        times: how often.
    """

    method: str
    path: str
    what: str = "refuse"
    status: int = 502
    text: str = "Bad Gateway"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


class RandomFaults:
    """Some fault in a tenth of all requests, whatever they are; to be given as an account's faults."""

    def __init__(self, seed: int) -> None:
        self.rng, self.asked, self.made = random.Random(seed), 0, Counter[str]()

    def __iter__(self) -> Iterator[Fault]:
        self.asked += 1
        if self.rng.random() < 0.1:
            what = self.rng.choice(["refuse", "lose", "drop", "cut", "shorten"])
            status = self.rng.choice([502, 503, *([429] if what == "refuse" else [])])  # 429: nothing was done
            self.made[what] += 1
            for method in ("GET", "POST", "PATCH", "PUT"):
                yield Fault(method, "/", what=what, status=status, headers={"Retry-After": "0"})
