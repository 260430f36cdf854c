"""The schedules in Triton: how a row is walked. They know no loss; a loss arrives as its term, a launch argument.

Importing this package imports nothing; its modules need Triton and are imported by the Triton backend on first use.
"""
