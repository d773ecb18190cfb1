"""OpenTelemetry for models that run inside your own process.

    import inferspan
    inferspan.instrument()

From then on every Hugging Face pipeline call, ``generate()``, tokenizer call and model forward, and every call of a
torch module that is put in ``eval()``, is a trace with its phases and gives metrics, through the OpenTelemetry
providers that the program has set.
``opentelemetry-instrument python serve.py`` does the same without a line of code.

Public is what this module lists, the entry points, the command line, the settings (``inferspan.config``) and the
emitted names (``inferspan.semconv``); every other module may change without notice.
"""

import sys
from typing import Any

from inferspan.core.block import inference
from inferspan.faults import InferspanWarning
from inferspan.integrations.torch.eval_modules import instrument_module
from inferspan.version import __version__

__all__ = [
    "InferspanWarning",
    "__version__",
    "force_flush",
    "inference",
    "instrument",
    "instrument_module",
    "uninstrument",
]


def instrument(**settings: Any) -> None:
    """Instrument transformers and torch in this process, now and as they are imported later.

    Args:
        **settings: ``tracer_provider``, ``meter_provider``, ``logger_provider`` (by default the global ones, whenever
            they are set), and any field of ``docs/configuration.md``.

    Raises:
        TypeError: a keyword that is no setting.
        ValueError: a value that is not allowed.

    A second call changes nothing and logs a warning.
    """
    from inferspan.instrumentor import InferspanInstrumentor

    InferspanInstrumentor().instrument(skip_dep_check=True, **settings)


def uninstrument() -> None:
    """Put every class back as it was. What is finished is handed to the providers first."""
    from inferspan.instrumentor import InferspanInstrumentor

    InferspanInstrumentor().uninstrument()


def force_flush(timeout_s: float = 30.0) -> bool:
    """Hand every finished inference to the providers and have them flush.

    Args:
        timeout_s: seconds to wait at most, for ours and again for the providers.

    Returns:
        Whether everything was handed over and flushed in time.
    """
    # not imported for this: a signal handler may flush while the program is just importing it
    instrumentor = getattr(sys.modules.get(f"{__name__}.instrumentor"), "InferspanInstrumentor", None)
    return True if instrumentor is None else bool(instrumentor.flush(timeout_s))
