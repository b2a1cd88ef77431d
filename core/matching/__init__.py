"""Which subscriptions want an event: patterns and filters, compiled, explained and tried out."""
