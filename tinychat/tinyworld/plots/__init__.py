"""The plots of tinyworld, in a fixed order: their positions are part of what a story's index means."""

from tinychat.tinyworld.plots.caring import ANIMAL, GROWING
from tinychat.tinyworld.plots.carrying import LOAD
from tinychat.tinyworld.plots.collecting import COLLECTING, TRADING
from tinychat.tinyworld.plots.daring import FEAR, WARNING
from tinychat.tinyworld.plots.giving import SHARING, SURPRISE
from tinychat.tinyworld.plots.losing import BROKEN, LOST
from tinychat.tinyworld.plots.making import COOKING, SKILL, WEATHER
from tinychat.tinyworld.plots.quarrelling import LIE, QUARREL
from tinychat.tinyworld.plots.racing import LOST_WAY, RACE

PLOTS = (
    LOST,
    BROKEN,
    LIE,
    QUARREL,
    SHARING,
    TRADING,
    COLLECTING,
    SURPRISE,
    FEAR,
    WARNING,
    RACE,
    LOST_WAY,
    ANIMAL,
    GROWING,
    LOAD,
    COOKING,
    SKILL,
    WEATHER,
)
