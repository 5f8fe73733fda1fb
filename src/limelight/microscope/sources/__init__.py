"""What a decoder looks at in the source of an encoder-decoder, and when each word of a sound is said."""
