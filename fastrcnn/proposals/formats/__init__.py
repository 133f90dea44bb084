"""Readers for the proposal files of other programs. All of them return a `Content`."""
