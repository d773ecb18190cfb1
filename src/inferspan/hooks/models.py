"""Models called directly: ``model(**inputs)`` outside of any pipeline or ``generate()`` is one ``forward`` span.

``PreTrainedModel`` gets a guarded ``__call__`` of its own (:mod:`inferspan.hooks.forwards`): torch.compile
(``fullgraph=True`` too), export, jit.trace, deepcopy and pickle then see the same as without it.
"""

from __future__ import annotations

from types import ModuleType

from inferspan.hooks import compiled
from inferspan.hooks.forwards import guard
from inferspan.hooks.patches import Patches


def _install(module: ModuleType, patches: Patches) -> None:
    guard(module.PreTrainedModel, patches, every=True)


MODULES = {"transformers.modeling_utils": _install, **compiled.MODULES}
