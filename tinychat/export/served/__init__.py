"""What an exported MLflow model runs: files that are copied into it and import no part of tinychat."""
