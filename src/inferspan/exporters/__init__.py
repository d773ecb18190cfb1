"""Span exporters that come with Inferspan."""
