"""The database itself: connections, schema, partitions, roles, transactions shared by those who wait."""
