"""Measurements of the data stages on labelled data, each beside the peer it is measured against."""
