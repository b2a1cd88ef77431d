"""The Starlette side: accepts events, manages subscriptions, answers questions about deliveries."""
