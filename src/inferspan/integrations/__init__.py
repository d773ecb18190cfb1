"""Which libraries are patched, where, and when: one file for each integration, and the table of them.

An integration only opens, marks and closes records; it never makes a span. To support one more library, write one file
with a function for each module of that library that it patches, and add one row to ``INTEGRATIONS``.

This module is only the table: neither a library nor an integration's own file is imported for it. The file is imported
when the program has imported what it patches (:mod:`inferspan.integrations.registry`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferspan import semconv

if TYPE_CHECKING:
    from inferspan.config import Settings


@dataclass(frozen=True)
class Library:
    """A package that is patched. A version below ``oldest`` is warned of, and what needs the library is left out."""

    name: str
    oldest: tuple[int, int] | None = None
    version_attribute: str = ""
    """Attribute of our instrumentation scope that says which version is imported, a name of ``semconv.py``."""


@dataclass(frozen=True, eq=False)
class Integration:
    """One row: what is patched of one library.

    ``modules`` has, for each module of the library, the function of ``file`` that patches it: it is called with the
    module and :class:`inferspan.integrations.patching.Patches`.
    """

    name: str
    """As in ``INFERSPAN_HOOKS``, unless it is wanted whatever that says (``measure``, ``always``)."""
    library: Library
    file: str
    """Our module, by its dotted name; with a dot in front, below this package."""
    modules: Mapping[str, str]
    needs: tuple[Library, ...] = ()
    """Other libraries that have to be new enough."""
    default: bool = True
    """Whether it is on where ``INFERSPAN_HOOKS`` is not set."""
    measure: str = ""
    """The measure that it serves, and with which it is on and off."""
    always: bool = False
    """On in any case: it is asked for by a call or another setting, or needed whatever is instrumented."""

    @property
    def is_selectable(self) -> bool:
        """Whether ``INFERSPAN_HOOKS`` may name it."""
        return not self.measure and not self.always

    @property
    def libraries(self) -> tuple[Library, ...]:
        return (self.library, *self.needs)

    def is_enabled(self, settings: Settings) -> bool:
        if self.measure:
            return self.measure in settings.measure
        return self.always or self.name in settings.hooks


TRANSFORMERS = Library("transformers", oldest=(4, 57), version_attribute=semconv.TRANSFORMERS_VERSION)
TORCH = Library("torch", oldest=(2, 4), version_attribute=semconv.TORCH_VERSION)

_GRAPHS = (
    "torch.cuda.graphs",
    "torch.xpu.graphs",
    "torch.mtia.mtia_graph",
    "torch.accelerator.graphs",
    "torch_npu.npu.graphs",
)
INTEGRATIONS: tuple[Integration, ...] = (
    Integration(
        "pipelines",
        TRANSFORMERS,
        ".transformers.pipelines",
        {
            "transformers.pipelines.base": "install_base",
            "transformers.pipelines.pt_utils": "install_iterator",
        },
        needs=(TORCH,),
    ),
    Integration(
        "generation",
        TRANSFORMERS,
        ".transformers.generate",
        {
            "transformers.generation.utils": "install_utils",
            "transformers.modeling_utils": "install_models",
        },
        needs=(TORCH,),
    ),
    Integration(
        "streamers",
        TRANSFORMERS,
        ".transformers.streamers",
        {"transformers.generation.streamers": "install"},
        always=True,
    ),
    Integration(
        "handover",
        TRANSFORMERS,
        ".transformers.handover",
        {"transformers.generation.streamers": "install"},
        always=True,
    ),
    Integration(
        "continuous_batching",
        TRANSFORMERS,
        ".transformers.continuous_batching",
        {
            "transformers.generation.continuous_batching.continuous_api": "install_api",
            "transformers.generation.continuous_batching.requests": "install_requests",
            "transformers.generation.continuous_batching.scheduler": "install_scheduler",
        },
        needs=(TORCH,),
    ),
    Integration(
        "tokenizers",
        TRANSFORMERS,
        ".transformers.tokenizers",
        {"transformers.tokenization_utils_base": "install"},
    ),
    Integration(
        "models",
        TRANSFORMERS,
        ".transformers.models",
        {"transformers.modeling_utils": "install"},
        needs=(TORCH,),
    ),
    Integration(
        "modules",
        TORCH,
        ".torch.eval_modules",
        {
            "torch": "install",
            "torch.export.exported_program": "install_exported",
            "torch.export.pt2_archive._package": "install_packaged",
            "torch._inductor.package.package": "install_packaged",  # until torch 2.7
        },
    ),
    Integration(
        "loading",
        TRANSFORMERS,
        ".transformers.loading",
        {"transformers.modeling_utils": "install"},
        needs=(TORCH,),
    ),
    Integration("modules_by_hand", TORCH, ".torch.eval_modules", {"torch": "install_by_hand"}, always=True),
    Integration("compiled", TORCH, ".torch.compiled", {"torch._dynamo.eval_frame": "install"}, always=True),
    Integration(
        "parallel",
        TORCH,
        ".torch.parallel",
        {
            "torch": "install",  # not the class's own module, at whose import torch is half there
            "torch.distributed.pipelining.schedules": "install_schedules",
        },
        always=True,
    ),
    Integration(
        "graphs", TORCH, ".torch.graphs", dict.fromkeys(_GRAPHS, "install"), (Library("torch_npu"),), measure="gpu_time"
    ),
    Integration("compilation", TORCH, ".torch.compilation", {"torch._dynamo.utils": "install"}, measure="compiles"),
    Integration(
        "multiprocessing",
        Library("multiprocessing"),
        ".processes",
        {"multiprocessing.util": "install_multiprocessing"},
        always=True,
    ),
    Integration("uvicorn", Library("uvicorn"), ".processes", {"uvicorn.server": "install_uvicorn"}, always=True),
    Integration("billiard", Library("billiard"), ".processes", {"billiard.pool": "install_billiard"}, always=True),
)


def version_attributes(table: Iterable[Integration] = INTEGRATIONS) -> dict[str, str]:
    """The attributes of our scope that are a library's version, and the library of each."""
    libraries = (library for integration in table for library in integration.libraries)
    return {library.version_attribute: library.name for library in libraries if library.version_attribute}
