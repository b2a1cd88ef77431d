"""Faults for real: processes of `hookwright`, PostgreSQL and Valkey are killed, stopped and emptied under load, and
then the books must balance. docs/reliability.md names the test of each fault.

Moments are drawn from a seed; `FAULT_SEEDS=1,2,3` runs every random scenario once for each.
"""
