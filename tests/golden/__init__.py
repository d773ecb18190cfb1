"""The golden run: what Inferspan tells of many small programs, as text that is kept and compared."""
