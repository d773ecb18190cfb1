"""torch: models called directly, compiled, on several devices; their layers; compilations; CUDA graphs."""
