"""The arq side: claims deliveries, signs and sends them, records what came of it."""
