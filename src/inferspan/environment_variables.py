"""The ``OTEL_…`` variables that :mod:`inferspan.config` reads, as ``opentelemetry-instrument`` wants them listed:
one module attribute each, from which it makes its command-line options (``--inferspan_hooks`` and so on)."""

from inferspan.config import SETTINGS, variables

for _setting in SETTINGS:
    for _variable in variables(_setting):
        if _variable.startswith("OTEL_"):
            globals()[_variable] = _variable
