"""One file for each measure: whether it applies, what it notes on the calling thread, and what becomes of it.

Nothing here imports torch or transformers, waits for a device, or raises: what cannot be read is absent.
"""
