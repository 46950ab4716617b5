"""The served models, one file per architecture."""
