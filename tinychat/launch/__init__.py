"""One job as processes: choose the folder, start the ranks, watch them, bring the result back."""
