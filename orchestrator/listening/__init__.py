"""Where messages come in: one module per kind of door (STOMP, spool folder)."""
