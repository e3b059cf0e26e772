"""Samples in tar files (WebDataset shards) on this machine, behind http or in s3, read as exactly as files are."""
