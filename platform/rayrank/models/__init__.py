"""The rankers: pure torch modules that turn events and candidates into logits. No files, no ray, no losses."""
