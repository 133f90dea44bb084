"""Region proposals (boxes that may contain an object): selective search, proposal stores, and format conversion."""
