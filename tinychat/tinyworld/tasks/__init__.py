"""Instructions with checkable answers from tinyworld: families of tasks, each worded in several ways.

`instruction(seed, split, index)` gives one `Task`; `instructions(seed, split, n)` many.
"""

from tinychat.tinyworld.tasks.generate import FAMILIES, LEVELS, Task, capacity, instruction, instructions

__all__ = ["FAMILIES", "LEVELS", "Task", "capacity", "instruction", "instructions"]
