"""The plots of tinyworld, in a fixed order: their positions are part of what a story's index means."""

from tinychat.data.tinyworld.plots.caring import ANIMAL, GROWING
from tinychat.data.tinyworld.plots.carrying import LOAD
from tinychat.data.tinyworld.plots.collecting import COLLECTING, TRADING
from tinychat.data.tinyworld.plots.daring import FEAR, WARNING
from tinychat.data.tinyworld.plots.giving import SHARING, SURPRISE
from tinychat.data.tinyworld.plots.losing import BROKEN, LOST
from tinychat.data.tinyworld.plots.making import COOKING, SKILL, WEATHER
from tinychat.data.tinyworld.plots.quarrelling import LIE, QUARREL
from tinychat.data.tinyworld.plots.racing import LOST_WAY, RACE

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
