"""The plots of tinyworld, in a fixed order: their positions are part of what a story's index means."""

from tinychat.tinyworld.plots.doing import COOKING, LOST_WAY, RACE, SKILL, WEATHER
from tinychat.tinyworld.plots.helping import ANIMAL, GROWING, LOAD, SHARING, SURPRISE
from tinychat.tinyworld.plots.searching import BROKEN, COLLECTING, LOST, TRADING
from tinychat.tinyworld.plots.troubles import FEAR, LIE, QUARREL, WARNING

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
