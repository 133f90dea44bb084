"""Readers of annotation formats, which return `Annotated` images. Each format has one or two modules."""
