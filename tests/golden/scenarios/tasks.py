"""Every pipeline task: one input (cold), several in a batch, a stream."""

from __future__ import annotations

from functools import partial
from typing import Any

from golden.scenarios.parts import each
from golden.stage import Group, Stage
from support import tasks

GROUP = Group("tasks")


def _task(task: tasks.Task, stage: Stage) -> Any:
    missing = tasks.missing(task)
    if missing:
        raise LookupError(f"{task.id} needs {missing}")
    stage.instrument()
    pipe = task.make()
    results = [pipe(task.inputs()[0], **task.call)]  # new ones each time: some pipelines change theirs
    results.append(pipe(task.inputs(), **task.call, **({"batch_size": 2} if task.batches else {})))
    if task.streams:
        results.append(list(pipe(each(task.inputs()[:2]), **task.call)))
    return results


GROUP.update({task.id: partial(_task, task) for task in tasks.TASKS if tasks.available(task)})
