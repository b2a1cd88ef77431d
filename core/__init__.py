"""What both sides of Hookwright mean by its nouns. Imports neither `app` nor `worker`."""
