"""The actions `probe_…`: which network, on which data, and what is written; the measuring is `backbone.probes`."""
