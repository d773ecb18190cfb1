"""Tiny real models and a table of every pipeline task, for the tests."""
