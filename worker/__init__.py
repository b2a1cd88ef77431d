"""The worker process: claims deliveries, signs and sends them, records what came of it."""
