"""Tables that blocc ships; see README.md for sources, licences and units."""
