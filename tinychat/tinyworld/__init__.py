"""tinyworld: an embedded, seeded world of short stories that needs no network and no files.

`story(seed, split, index)` gives one `Story` (its structure and its text); `stories(seed, split, n)` the texts of many;
`documents(...)` stories with lessons (see `lessons`) between them.
"""

from collections.abc import Iterator
from random import Random

from tinychat.tinyworld.combinations import SPLITS, combination, mix
from tinychat.tinyworld.grammar import capital, expand
from tinychat.tinyworld.lessons import copying_lessons, lesson, row_lesson
from tinychat.tinyworld.scene import FRAME, Plot, Scene, Story, close_scene, open_scene

__all__ = ["Story", "documents", "stories", "story"]


def story(seed: int, split: str, index: int) -> Story:
    """One story, a pure function of its arguments: the same on every machine, in any order, in any process.

    Args:
        seed: a whole number; another seed gives other stories in another order.
        split: "train" or "validation"; they share no story, whatever their seeds.
        index: from 0 up to the capacity of the split (tens of millions).

    Raises:
        ValueError: unknown split.
        IndexError: index outside the split.
    """
    plot, chosen = combination(seed, split, index)
    uniform = Random(mix(seed, SPLITS.index(split), index)).random
    weather = plot.weathers[int(uniform() * len(plot.weathers))] if chosen.place.outdoors else None
    scene = Scene(chosen, weather, uniform)
    open_scene(scene, plot.together)
    plot.plan(scene)
    moral = scene.pick(plot.morals)
    close_scene(scene, moral)
    return Story(
        chosen,
        weather,
        tuple(scene.characters),
        tuple(scene.objects),
        tuple(scene.events),
        moral,
        _render(scene, plot),
    )


def stories(seed: int, split: str, n: int) -> Iterator[str]:
    """The texts of the stories 0 to n - 1, all different."""
    for index in range(n):
        yield story(seed, split, index).text


def documents(seed: int, split: str, n_stories: int, n_lessons: int, bilingual: bool = False) -> Iterator[str]:
    """Lessons of copying, a share of all lessons, and after them stories with the other lessons evenly between.
    bilingual: every second lesson is in Chinese."""
    n_copying = copying_lessons(n_lessons)
    yield from (row_lesson(seed, number, bilingual) for number in range(n_copying))
    n_lessons -= n_copying
    told = 0
    for index in range(n_stories):
        yield story(seed, split, index).text
        due = n_lessons * (index + 1) // n_stories
        yield from (lesson(seed, number, bilingual) for number in range(told, due))
        told = due


def _render(scene: Scene, plot: Plot) -> str:
    """Choose a telling of every event; one paragraph an act."""
    paragraphs: list[str] = []
    sentences: list[str] = []
    act = 0
    for event in scene.events:
        if event.act != act:
            paragraphs.append(" ".join(sentences))
            sentences, act = [], event.act
        parts: list[str] = []
        tellings = plot.compiled.get(event.kind) or FRAME[event.kind]
        expand(scene.pick(tellings), scene.uniform, parts)
        sentences.append(capital("".join(parts)))
    paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs).format_map(scene.slots)
