"""The pages for people, in a browser. They work without JavaScript."""
