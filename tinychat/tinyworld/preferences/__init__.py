"""tinyworld preferences: benign and harmful requests, replies of every sort, and an oracle that scores any text.

`request(seed, split, index)` gives one `Request`, `preference` two replies to it, `demonstration` its best reply, and
`judge(request, reply)` the oracle's score of any text.
"""

from tinychat.tinyworld.preferences.benign import LOOK_ALIKES
from tinychat.tinyworld.preferences.family import Facts, Request
from tinychat.tinyworld.preferences.generate import (
    BENIGN_FAMILIES,
    HARM_CATEGORIES,
    Preference,
    capacity,
    demonstration,
    preference,
    preferences,
    reply,
    request,
    requests,
)
from tinychat.tinyworld.preferences.oracle import REWARD_RANGE, OracleScore, judge

LOOK_ALIKE_FAMILIES = tuple(LOOK_ALIKES)

__all__ = [
    "BENIGN_FAMILIES",
    "HARM_CATEGORIES",
    "LOOK_ALIKE_FAMILIES",
    "REWARD_RANGE",
    "Facts",
    "OracleScore",
    "Preference",
    "Request",
    "capacity",
    "demonstration",
    "judge",
    "preference",
    "preferences",
    "reply",
    "request",
    "requests",
]
