"""From finished records to spans, metric points and events, on a thread of our own. Knows no framework."""
