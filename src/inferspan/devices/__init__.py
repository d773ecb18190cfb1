"""GPUs and host as metrics: what is read (``reader``), by which driver (``nvml``, ``host``), and by whom and when
(``identity``, ``ownership``, ``sampler``; ``choice`` puts them together). None of it is imported, and no driver is
asked, before a metric reader collects, or an inference runs on a GPU.
"""
