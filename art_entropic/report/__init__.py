"""What a run found, for people: tables, sentences and figures made from records."""
