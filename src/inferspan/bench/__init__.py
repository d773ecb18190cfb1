"""Benchmarks of a model in this process, by the same measuring code that production uses (docs/bench.md).

``results`` is what a run leaves behind and all the rest reads, ``result_file`` the file of it; ``workload`` says what
is asked, ``targets`` what is asked of, ``runner`` and ``point`` ask, ``recorder`` hears from Inferspan what it cost.
"""
