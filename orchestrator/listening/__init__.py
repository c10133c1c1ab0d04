"""Where messages come in: the contract in `door`, and one module per kind of door (`stomp`, `spool`).

A door knows nothing of collections; it hands bytes to a handler and does with the message as the verdict says.
"""
