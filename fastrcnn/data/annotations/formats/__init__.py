"""Readers of annotation formats, which return `Annotated` images. Each format has one to three modules."""
