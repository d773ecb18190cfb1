"""The variables of :mod:`inferspan.config` that are its own, as ``opentelemetry-instrument`` wants them listed: one
module attribute each, from which it makes its command-line options (``--inferspan_hooks`` and so on).

The standard ``OTEL_…`` variables are left out: ``opentelemetry-instrument`` ends with an argparse error for every
program as soon as two distributions list one name, and contrib lists ``OTEL_SEMCONV_STABILITY_OPT_IN`` itself.
"""

from inferspan.config import SETTINGS, variables

for _setting in SETTINGS:
    for _variable in variables(_setting):
        if _variable.startswith("OTEL_INFERSPAN_"):
            globals()[_variable] = _variable
