"""From files to batches: annotations, proposals, pictures."""
