"""One small application per framework, each with the same endpoints; ``shop`` says what they do."""
