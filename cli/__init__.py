"""The `hookwright` command: composes the parts and runs the embedded services."""
