"""What a policy replied while it learnt, token by token, in the terminal."""
