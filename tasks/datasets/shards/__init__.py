"""WebDataset shards (tar files), local, over http or in s3, read as deterministically as single files."""
