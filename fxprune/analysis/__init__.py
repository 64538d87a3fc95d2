"""The analysis: channel ids pushed through the captured graph, resolved into groups."""
