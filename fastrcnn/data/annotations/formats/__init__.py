"""Readers of annotations, one format a file, or two where it is large; all give `Annotated` images."""
