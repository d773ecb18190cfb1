"""From finished records to spans, metric points and events, on the background worker. Knows no framework."""
