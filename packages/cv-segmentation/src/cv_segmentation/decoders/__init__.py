"""Decoders: from an encoder's maps to one map; ``encoders`` describes the protocol."""
