"""What holds requests and deliveries back: limits, quotas, rates and circuit breakers."""
