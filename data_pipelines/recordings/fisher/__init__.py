"""Fisher English as one of the formats: files, tables, transcripts.

Its A and B end here; outside it is left and right.
"""
