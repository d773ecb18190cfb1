"""Names that have changed on purpose since the golden run was recorded.

The recorded text is read with these, so a change of names needs no new recording. Keep the recordings as they are, and
add a line here for each name that the change gives another.
"""

RENAMES: dict[str, str] = {
    "inferspan.overhead.finalizer.time": "inferspan.overhead.worker.time",
}
"""Of each span, attribute, metric, event or value with a new name: the recorded name, and the name now."""
