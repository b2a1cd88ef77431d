"""Who may come in: users, sessions, API keys, OpenID Connect."""
