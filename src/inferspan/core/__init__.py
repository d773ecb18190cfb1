"""What one inference is and where it is recorded: knows no framework, no measure and no exporter.

Read in this order: ``record`` (what is kept of one inference), ``current`` (which inference runs here), ``plan`` (what
is decided once for a call site), ``probe`` (what a measure has to offer), ``block`` (``inferspan.inference()``),
``worker`` (the background thread that hands finished records on). The others are small and answer one question each.
"""
