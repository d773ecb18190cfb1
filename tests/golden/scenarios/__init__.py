"""The scenarios, in one module for each subject."""
