"""What changes something, for whoever calls (`app.caller`): the API and the pages do it by the same functions, with the
same entries in the audit log.
"""
