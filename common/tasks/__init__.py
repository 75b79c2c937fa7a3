"""The table of competitions; the first is the default."""

from common.tasks import biomass, glacier, landslide, rts

TASKS = {task.name: task for task in (biomass.TASK, glacier.TASK, rts.TASK, landslide.TASK)}
