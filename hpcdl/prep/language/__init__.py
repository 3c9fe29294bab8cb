"""What the kind `text` is made of: lines of files, tables, tokens, corpora and sentences."""
