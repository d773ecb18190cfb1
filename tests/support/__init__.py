"""Helpers of the tests; README.md says what each is for."""
