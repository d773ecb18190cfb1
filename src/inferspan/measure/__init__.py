"""From a mark to a number: clocks, token counts, the process's own use of the machine.

Nothing here imports torch or transformers, waits for a device, or raises: what cannot be read is ``None``.
"""
