"""Models called directly: ``model(**inputs)`` outside of any pipeline or ``generate()`` is one ``forward`` span.

``PreTrainedModel`` gets a guarded ``__call__`` of its own (:mod:`inferspan.integrations.torch.calls`): torch.compile
(``fullgraph=True`` too), export, jit.trace, deepcopy and pickle then see the same as without it.
"""

from __future__ import annotations

from types import ModuleType

from inferspan.integrations.patching import Patches
from inferspan.integrations.torch.calls import wrap_call


def install(module: ModuleType, patches: Patches) -> None:
    wrap_call(module.PreTrainedModel, patches, every=True)
