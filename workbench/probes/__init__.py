"""The actions `probe_…`: network and data selection and output files; the analyses are in `backbone.probes`."""
