"""What an offline agent looks at: words, character n-grams, image neighbours."""
