"""What the tests share: real databases, real servers, and a client that sees exact ASGI messages."""
